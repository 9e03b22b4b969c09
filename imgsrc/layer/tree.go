package layer

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
)

// A Tree is one layer, or several merged, as directories and files. Its nodes are numbered: 0 is the root, the entries
// of a directory have consecutive numbers in the order of their names, and the same layers give the same numbers always.
// It is immutable.
type Tree struct {
	layers []*Index
	// nodes are what the merge has left; nil if the tree is the only layer as it is, and a node its ent.
	nodes []node
	// links are the files that have several names in their layer, by node; nil if the tree is one layer.
	links map[uint32]link
	// targets are what hard links out of their layers lead to.
	targets map[uint32]part
}

// A node is an entry of one of the layers in its place in the merged tree.
type node struct {
	ent    uint32
	parent uint32
	first  uint32 // of a directory's entries
	count  uint32
	layer  uint16
}

// A link is where a name of a file with several leads: the first of them, and how many there are.
type link struct{ first, count uint32 }

// Attr describes a node.
type Attr struct {
	Mode   uint32 // S_IFMT and permissions
	UID    uint32
	GID    uint32
	Rdev   uint32 // as the kernel encodes it
	Nlink  uint32 // 1 for directories
	Size   int64  // bytes of a regular file, or of a symbolic link's target
	Stored int64  // bytes of it that are not holes
	Sec    int64  // when it was modified, since 1970
	Nsec   uint32
	// Implicit is set for a directory that no layer has an entry for: it has no time, and belongs to root.
	Implicit bool
}

// NewTree returns one layer as it is, whiteouts shown as the files that they are in its tar. The layers below it, base first, are
// looked at if it links out: they have the files that are meant.
func NewTree(below []*Index, x *Index) *Tree {
	if !x.outer {
		return &Tree{layers: []*Index{x}}
	}
	t := &Tree{layers: append(slices.Clone(below), x), nodes: make([]node, len(x.ents))}
	for i := range t.nodes {
		in := x.inodeOf(uint32(i))
		t.nodes[i] = node{ent: uint32(i), parent: x.ents[i].parent, layer: uint16(len(below))}
		if in.isDir() {
			t.nodes[i].first, t.nodes[i].count = in.first, in.count
		}
	}
	t.resolveLinks()
	return t
}

// Memory is what the tree occupies in bytes, with its layers.
func (t *Tree) Memory() int64 {
	size := int64(len(t.nodes))*20 + int64(len(t.links))*40
	for _, x := range t.layers {
		size += x.memory()
	}
	return size
}

// Len is the number of nodes.
func (t *Tree) Len() uint32 {
	if t.nodes == nil {
		return uint32(len(t.layers[0].ents))
	}
	return uint32(len(t.nodes))
}

// at returns the entry that gave a node its name.
func (t *Tree) at(n uint32) (*Index, uint32) {
	if t.nodes == nil {
		return t.layers[0], n
	}
	m := &t.nodes[n]
	return t.layers[m.layer], m.ent
}

// fileAt returns the entry that a node shows: the same, unless it is a hard link out of its layer.
func (t *Tree) fileAt(n uint32) (layer uint16, ent uint32) {
	if t.nodes == nil {
		return 0, n
	}
	if t.targets != nil {
		if p, ok := t.targets[n]; ok {
			return p.layer, p.ent
		}
	}
	return t.nodes[n].layer, t.nodes[n].ent
}

func (t *Tree) inode(n uint32) (*Index, *inode) {
	layer, ent := t.fileAt(n)
	x := t.layers[layer]
	return x, x.inodeOf(ent)
}

// Name returns a node's name in its directory: one of its names, if it has several.
func (t *Tree) Name(n uint32) string {
	x, e := t.at(n)
	return x.name(e)
}

// Parent returns the directory that the node stands in. The root is its own.
func (t *Tree) Parent(n uint32) uint32 {
	if t.nodes == nil {
		return t.layers[0].ents[n].parent
	}
	return t.nodes[n].parent
}

// Dir returns the number of a directory's first entry and how many it has; false if the node is no directory.
func (t *Tree) Dir(n uint32) (first, count uint32, ok bool) {
	x, e := t.at(n)
	in := x.inodeOf(e)
	if !in.isDir() {
		return 0, 0, false
	}
	if t.nodes == nil {
		return in.first, in.count, true
	}
	m := &t.nodes[n]
	return m.first, m.count, true
}

// Child finds a name in a directory.
func (t *Tree) Child(dir uint32, name string) (uint32, bool) {
	lo, count, ok := t.Dir(dir)
	if !ok {
		return 0, false
	}
	hi := lo + count
	for lo < hi {
		mid := (lo + hi) / 2
		switch c := strings.Compare(t.Name(mid), name); {
		case c == 0:
			return mid, true
		case c < 0:
			lo = mid + 1
		default:
			hi = mid
		}
	}
	return 0, false
}

// Inode returns the node that stands for all of a file's names: the first of them.
func (t *Tree) Inode(n uint32) uint32 {
	if t.nodes == nil {
		x := t.layers[0]
		if in := x.inodeOf(n); !in.isDir() {
			return in.first
		}
		return n
	}
	if l, ok := t.links[n]; ok {
		return l.first
	}
	return n
}

// Attr describes a node. Error: ErrDamaged for a hard link whose target no layer has.
func (t *Tree) Attr(n uint32) (Attr, error) {
	x, in := t.inode(n)
	a := Attr{
		Mode: in.mode &^ implicit, UID: in.uid, GID: in.gid, Nlink: 1, Size: in.size, Stored: in.size, Sec: in.sec, Nsec: in.nsec,
		Implicit: in.mode&implicit != 0,
	}
	switch {
	case in.isDir():
		return a, nil
	case in.isLink():
		return Attr{}, fmt.Errorf("%q: %w: it is a hard link to %q, which none of the layers has", t.Path(n), imgsrc.ErrDamaged, x.extraOf(in).link)
	case t.nodes == nil:
		a.Nlink = in.count
	case len(t.links) > 0:
		if l, ok := t.links[n]; ok {
			a.Nlink = l.count
		}
	}
	if in.extra == 0 {
		return a, nil
	}
	v := x.extraOf(in)
	a.Rdev = v.rdev
	switch in.mode & unix.S_IFMT {
	case unix.S_IFLNK:
		a.Size = int64(len(v.link))
		a.Stored = a.Size
	case unix.S_IFREG:
		a.Stored = storedIn(v.extents, in.size)
	}
	return a, nil
}

func storedIn(extents []imgsrc.Extent, size int64) int64 {
	if extents == nil {
		return size
	}
	size = 0
	for _, e := range extents {
		size += e.Len
	}
	return size
}

// Mode returns what Attr returns as Mode, 0 for a hard link whose target no layer has.
func (t *Tree) Mode(n uint32) uint32 {
	_, in := t.inode(n)
	if in.isLink() {
		return 0
	}
	return in.mode &^ implicit
}

// Readlink returns the target of a symbolic link; false if the node is none.
func (t *Tree) Readlink(n uint32) (string, bool) {
	x, in := t.inode(n)
	if in.mode&unix.S_IFMT != unix.S_IFLNK {
		return "", false
	}
	return x.extraOf(in).link, true
}

// overlayXattrs are overlayfs's own marks, which it does not show.
const overlayXattrs = "trusted.overlay."

// Xattrs returns the extended attributes of a node, sorted by name.
func (t *Tree) Xattrs(n uint32) []imgsrc.Xattr {
	x, in := t.inode(n)
	if in.extra == 0 {
		return nil
	}
	return slices.DeleteFunc(x.extraOf(in).xattrs, func(a imgsrc.Xattr) bool { return strings.HasPrefix(a.Name, overlayXattrs) })
}

// Layers is how many layers the tree is made from.
func (t *Tree) Layers() int { return len(t.layers) }

// A Place is where the bytes of a regular file are.
type Place struct {
	Layer   int // which of the tree's layers has the body, counted from 0 at the base
	Body    imgsrc.Body
	Size    int64           // of the file, holes included
	Extents []imgsrc.Extent // what the body is, if the file is sparse; else nil
}

// Place returns where the bytes of a regular file are; false if the node is none.
func (t *Tree) Place(n uint32) (Place, bool) {
	layer, ent := t.fileAt(n)
	x := t.layers[layer]
	in := x.inodeOf(ent)
	if in.mode&unix.S_IFMT != unix.S_IFREG {
		return Place{}, false
	}
	c := Place{Layer: int(layer), Size: in.size}
	c.Body = imgsrc.Body{Path: x.path(in.first), Size: in.size, Where: in.where}
	if in.extra != 0 {
		c.Extents = x.extraOf(in).extents
		c.Body.Size = storedIn(c.Extents, in.size)
	}
	return c, true
}

// Path returns the path of a node from the root, without a leading slash.
func (t *Tree) Path(n uint32) string {
	var names []string
	for ; n != 0; n = t.Parent(n) {
		names = append(names, t.Name(n))
	}
	slices.Reverse(names)
	return strings.Join(names, "/")
}
