package layer

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/imgfs/imgfs/imgsrc"
)

// MaxLayers is how many layers a tree can be merged from.
const MaxLayers = 1<<16 - 1

// Merge returns what overlayfs shows of layers, base first, each unpacked by itself into an empty directory:
//
//   - The topmost layer that has a name decides what it is. A directory is merged with the directories of that name
//     below it, down to the first layer that has something else there, and shows the mode, owner and time of the
//     topmost: those of an implicit directory too.
//   - A whiteout hides its name in the layers below its own, whatever its own layer has there; so does a character device
//     0:0, which shows nothing itself. An opaque mark, or the extended attribute trusted.overlay.opaque, hides all that the
//     directory has in the layers below.
//   - A hard link out of its layer is the file as the layers below it show it.
//   - The root is always merged, and shows what the topmost layer says whose first entry is for it.
//
// Errors: imgsrc.ErrUnsupported for more than MaxLayers, or more than MaxEntries entries; ctx's.
func Merge(ctx context.Context, layers []*Index) (*Tree, error) {
	if len(layers) == 0 {
		return NewTree(nil, newIndexBuilder().index()), nil
	}
	if len(layers) > MaxLayers {
		return nil, fmt.Errorf("merging %d layers: %w: more than %d", len(layers), imgsrc.ErrUnsupported, MaxLayers)
	}
	if len(layers) == 1 && layers[0].plain {
		return NewTree(nil, layers[0]), nil
	}
	m := &merger{ctx: ctx, layers: layers, nodes: make([]node, 1, len(layers[len(layers)-1].ents))}
	root := make([]part, 0, len(layers))
	for i := len(layers) - 1; i >= 0; i-- {
		if m.append(&root, part{uint16(i), 0}) {
			break
		}
	}
	m.nodes[0].layer = root[0].layer
	for i := range slices.Backward(layers) {
		if layers[i].inodes[0].mode&implicit == 0 {
			m.nodes[0].layer = uint16(i)
			break
		}
	}
	if err := m.merge(root); err != nil {
		return nil, err
	}
	t := &Tree{layers: layers, nodes: slices.Clip(m.nodes)}
	t.resolveLinks()
	return t, nil
}

// A part is what one layer has of a directory, or under a name.
type part struct {
	layer uint16
	ent   uint32
}

// A named is a part under its name; if it is a mark, under the name that it hides.
type named struct {
	name string
	part
	hides bool
}

type merger struct {
	ctx    context.Context
	layers []*Index
	nodes  []node
	names  []named // of the directory at hand
}

// append adds a directory's part in one layer, the layers above being there already. It returns true if what the layers
// below have of it does not show.
func (m *merger) append(parts *[]part, p part) (opaque bool) {
	*parts = append(*parts, p)
	return isOpaque(m.layers[p.layer], p.ent)
}

func isOpaque(x *Index, dir uint32) bool {
	if x.plain && x.inodeOf(dir).extra == 0 {
		return false
	}
	in := x.inodeOf(dir)
	if _, ok := x.child(in, opaqueMark); ok {
		return true
	}
	for _, a := range x.extraOf(in).xattrs {
		if a.Name == overlayXattrs+"opaque" && a.Value == "y" {
			return true
		}
	}
	return false
}

// merge fills the tree below its root, whose parts are given, topmost first.
func (m *merger) merge(root []part) error {
	type dir struct {
		node  uint32
		parts []part
	}
	queue := []dir{{0, root}}
	for len(queue) > 0 {
		d := queue[len(queue)-1]
		queue = queue[:len(queue)-1]
		if err := m.ctx.Err(); err != nil {
			return err
		}
		first := uint32(len(m.nodes))
		under := m.entries(d.node, d.parts)
		if len(m.nodes) > MaxEntries {
			return fmt.Errorf("merging layers: %w: %w", imgsrc.ErrUnsupported, errTooMany)
		}
		self := &m.nodes[d.node]
		self.first, self.count = first, uint32(len(m.nodes))-first
		for i, parts := range slices.Backward(under) {
			if parts != nil {
				queue = append(queue, dir{first + uint32(i), parts})
			}
		}
	}
	return nil
}

// entries appends the entries of a directory, and returns for each that is a directory its parts.
func (m *merger) entries(parent uint32, parts []part) [][]part {
	if len(parts) == 1 {
		return m.single(parent, parts[0])
	}
	m.names = m.names[:0]
	for _, p := range parts {
		x := m.layers[p.layer]
		in := x.inodeOf(p.ent)
		for e := in.first; e < in.first+in.count; e++ {
			name := x.name(e)
			var hides bool
			if isMark(name) {
				if name, hides = hiddenBy(name); !hides {
					continue
				}
			} else {
				hides = x.isWhiteout(x.inodeOf(e))
			}
			m.names = append(m.names, named{name, part{p.layer, e}, hides})
		}
	}
	// Of one name, the topmost layer first, and in it what it has before what it hides.
	slices.SortFunc(m.names, func(a, b named) int {
		if c := strings.Compare(a.name, b.name); c != 0 {
			return c
		}
		if a.layer != b.layer {
			return int(b.layer) - int(a.layer)
		}
		if a.hides != b.hides {
			if b.hides {
				return -1
			}
			return 1
		}
		return 0
	})
	var under [][]part
	for i := 0; i < len(m.names); {
		j := i + 1
		for j < len(m.names) && m.names[j].name == m.names[i].name {
			j++
		}
		if top, dirs := m.resolve(m.names[i:j]); top != nil {
			m.nodes = append(m.nodes, node{ent: top.ent, layer: top.layer, parent: parent})
			under = append(under, dirs)
		}
		i = j
	}
	return under
}

// resolve says what shows under a name: nothing, or an entry, and if that is a directory its parts.
func (m *merger) resolve(all []named) (top *part, dirs []part) {
	for i := range all {
		n := &all[i]
		if n.hides {
			break
		}
		dir := m.layers[n.layer].inodeOf(n.ent).isDir()
		if top != nil && !dir {
			break
		}
		if top == nil {
			top = &n.part
		}
		if !dir || m.append(&dirs, n.part) {
			break
		}
	}
	return top, dirs
}

// single is entries for a directory that only one layer has.
func (m *merger) single(parent uint32, p part) [][]part {
	x := m.layers[p.layer]
	in := x.inodeOf(p.ent)
	var under [][]part
	for e := in.first; e < in.first+in.count; e++ {
		file := x.inodeOf(e)
		if !x.plain && (isMark(x.name(e)) || x.isWhiteout(file)) {
			continue
		}
		m.nodes = append(m.nodes, node{ent: e, layer: p.layer, parent: parent})
		if file.isDir() {
			under = append(under, []part{{p.layer, e}})
		} else {
			under = append(under, nil)
		}
	}
	return under
}

// below finds what the layers below number top show under a path, through directories only.
func below(layers []*Index, top int, path string) (part, bool) {
	m := &merger{layers: layers}
	var parts []part
	for i := top - 1; i >= 0; i-- {
		if m.append(&parts, part{uint16(i), 0}) {
			break
		}
	}
	names, ok := splitPath(nil, path)
	if !ok {
		return part{}, false
	}
	for i, name := range names {
		var all []named
		for _, p := range parts {
			x := layers[p.layer]
			in := x.inodeOf(p.ent)
			if e, ok := x.child(in, name); ok {
				all = append(all, named{name, part{p.layer, e}, x.isWhiteout(x.inodeOf(e))})
			}
			if e, ok := x.child(in, markPrefix+name); ok {
				if _, ok := hiddenBy(markPrefix + name); ok {
					all = append(all, named{name, part{p.layer, e}, true})
				}
			}
		}
		top, dirs := m.resolve(all)
		switch {
		case top == nil || isMark(name):
			return part{}, false
		case i == len(names)-1:
			return *top, dirs == nil
		case dirs == nil:
			return part{}, false
		}
		parts = dirs
	}
	return part{}, false
}

// resolveLinks finds the targets of hard links out of their layers, and the names that are one file.
func (t *Tree) resolveLinks() {
	type file struct {
		layer uint16
		inode uint32
	}
	outer := map[file]bool{} // targets of links out of their layers
	for i := range t.nodes {
		n := &t.nodes[i]
		at := part{n.layer, n.ent}
		x := t.layers[at.layer]
		if !x.inodeOf(at.ent).isLink() {
			continue
		}
		ok := true
		for ok && x.inodeOf(at.ent).isLink() {
			if at, ok = below(t.layers, int(at.layer), x.extraOf(x.inodeOf(at.ent)).link); ok { // lower each time
				x = t.layers[at.layer]
			}
		}
		if !ok {
			continue // Attr says that it is lost
		}
		if t.targets == nil {
			t.targets = map[uint32]part{}
		}
		t.targets[uint32(i)] = at
		outer[file{at.layer, x.ents[at.ent].inode}] = true
	}
	groups := map[file][]uint32{}
	for i := range t.nodes {
		layer, ent := t.fileAt(uint32(i))
		x := t.layers[layer]
		if in := x.inodeOf(ent); in.isDir() || in.isLink() || in.count < 2 && !outer[file{layer, x.ents[ent].inode}] {
			continue
		}
		key := file{layer, x.ents[ent].inode}
		groups[key] = append(groups[key], uint32(i))
	}
	for _, names := range groups {
		for _, n := range names {
			if t.links == nil {
				t.links = map[uint32]link{}
			}
			t.links[n] = link{names[0], uint32(len(names))}
		}
	}
}
