package layer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
)

// largeBuild is from what size of its tables in bytes on the making of an index is a large one: some 300,000 files. It
// takes several times as much until it is done.
const largeBuild = 32 << 20

// BuildIndex indexes a layer. Errors: imgsrc.ErrDamaged also for one with more than MaxEntries entries, or with many
// more directories than entries; those of Entries.
func BuildIndex(ctx context.Context, files imgsrc.Files) (*Index, error) {
	return buildIndex(ctx, files, func() error { return nil })
}

// buildIndex is BuildIndex, and asks large once when it turns out to be a large one. An error of that ends it.
func buildIndex(ctx context.Context, files imgsrc.Files, large func() error) (*Index, error) {
	b := newIndexBuilder()
	asked := false
	filter := &stargzFilter{pass: b.add}
	err := files.Entries(ctx, func(f *imgsrc.File) error {
		if !asked && b.memory() > largeBuild {
			asked = true
			if err := large(); err != nil {
				return err
			}
		}
		return filter.add(f)
	})
	if err == nil {
		err = filter.end()
	}
	if err != nil {
		return nil, err
	}
	x := b.index()
	x.digest = files.Key().Digest
	return x, nil
}

// An indexBuilder takes a layer's entries in the tar's order. What an entry replaces stays in its tables until the end,
// out of reach.
type indexBuilder struct {
	arena   []byte
	nodes   []buildNode // [0] is the root
	inodes  []inode
	byName  nameTable
	parts   []string // room for a path's
	skipped int
	count   int               // entries so far
	made    int               // implicit directories so far
	known   map[string]uint32 // extras, which are often the same
}

// A buildNode is a name that was met. Its parent was met before it.
type buildNode struct {
	ent
	hash uint64
}

func newIndexBuilder() *indexBuilder {
	b := &indexBuilder{arena: make([]byte, 1, 64<<10), known: map[string]uint32{}} // the arena's 0 stands for nothing
	b.byName.init()
	b.nodes = append(b.nodes, buildNode{})
	b.inodes = append(b.inodes, inode{mode: unix.S_IFDIR | 0o755 | implicit})
	return b
}

// memory is what the tables occupy, in bytes.
func (b *indexBuilder) memory() int64 {
	return int64(len(b.arena)) + int64(len(b.nodes))*24 + int64(len(b.inodes))*56 + int64(len(b.byName.slots))*4
}

var (
	errTooMany     = errors.New("more entries than can be shown")
	errTooManyDirs = errors.New("many more directories than entries")
)

// splitPath appends the parts of a path to parts: "." and empty ones do nothing, ".." goes up, but not beyond the root.
// It returns false if a part cannot be a name.
func splitPath(parts []string, path string) ([]string, bool) {
	if len(path) > maxPath {
		return parts, false
	}
	for part := range strings.SplitSeq(path, "/") {
		switch {
		case part == "" || part == ".":
		case part == "..":
			parts = parts[:max(0, len(parts)-1)]
		case len(part) > maxNameLen || strings.IndexByte(part, 0) >= 0:
			return parts, false
		default:
			parts = append(parts, part)
		}
	}
	return parts, true
}

func (b *indexBuilder) add(f *imgsrc.File) error {
	parts, ok := splitPath(b.parts[:0], f.Name)
	b.parts = parts
	b.count++
	if !ok {
		b.skipped++
		return nil
	}
	if len(parts) == 0 {
		if f.Type == '5' && b.count == 1 { // so that what the root is can be told from the beginning alone
			return b.setInode(b.nodes[0].inode, f)
		}
		return nil
	}
	dir := uint32(0)
	for _, part := range parts[:len(parts)-1] {
		n, ok := b.find(dir, part)
		if !ok || !b.inodes[b.nodes[n].inode].isDir() {
			var err error
			if n, err = b.mkdir(dir, part); err != nil {
				return err
			}
		}
		dir = n
	}
	name := parts[len(parts)-1]
	if f.Type == '5' {
		if n, ok := b.find(dir, name); ok && b.inodes[b.nodes[n].inode].isDir() {
			return b.setInode(b.nodes[n].inode, f)
		}
	}
	var in uint32
	if ok = false; f.Type == '1' {
		in, ok = b.linkTarget(f.Link)
	}
	if !ok {
		in = b.newInode(inode{})
		if err := b.setInode(in, f); err != nil {
			return err
		}
	}
	_, err := b.insert(dir, name, in)
	return err
}

// mkdir makes a directory that has no entry yet.
func (b *indexBuilder) mkdir(dir uint32, name string) (uint32, error) {
	if b.made++; b.made > freeImplicit+eachImplicit*b.count {
		return 0, fmt.Errorf("%w: %w", imgsrc.ErrDamaged, errTooManyDirs)
	}
	return b.insert(dir, name, b.newInode(inode{mode: unix.S_IFDIR | 0o755 | implicit}))
}

// linkTarget returns the inode that a hard link means, if it is in this layer. Symbolic links are not followed, and a
// directory has one name only.
func (b *indexBuilder) linkTarget(path string) (uint32, bool) {
	parts, ok := splitPath(b.parts[:0], path)
	b.parts = parts
	if !ok || len(parts) == 0 {
		return 0, false
	}
	n := uint32(0)
	for _, part := range parts {
		if !b.inodes[b.nodes[n].inode].isDir() {
			return 0, false
		}
		if n, ok = b.find(n, part); !ok {
			return 0, false
		}
	}
	in := b.nodes[n].inode
	return in, !b.inodes[in].isDir()
}

func (b *indexBuilder) newInode(n inode) uint32 {
	b.inodes = append(b.inodes, n)
	return uint32(len(b.inodes) - 1)
}

var typeBits = map[byte]uint32{
	'0': unix.S_IFREG, '1': 0, '2': unix.S_IFLNK, '3': unix.S_IFCHR, '4': unix.S_IFBLK, '5': unix.S_IFDIR, '6': unix.S_IFIFO,
}

// setInode fills an inode from a header.
func (b *indexBuilder) setInode(i uint32, f *imgsrc.File) error {
	e := extra{xattrs: f.Xattrs, extents: f.Extents}
	switch f.Type {
	case '1', '2':
		e.link = f.Link
	case '3', '4':
		e.rdev = rdevOf(f.Major, f.Minor)
	}
	at := uint32(0)
	if e.link != "" || e.rdev != 0 || e.xattrs != nil || e.extents != nil {
		text := e.encode(nil)
		var ok bool
		if at, ok = b.known[string(text)]; !ok {
			var err error
			if at, err = b.store(text); err != nil {
				return err
			}
			if len(text) < 256 && len(b.known) < 1<<16 {
				b.known[string(text)] = at
			}
		}
	}
	b.inodes[i] = inode{
		sec: f.Sec, nsec: f.Nsec, uid: f.UID, gid: f.GID, mode: typeBits[f.Type] | f.Mode&0o7777,
		size: f.Size, where: f.Where, extra: at,
	}
	if f.Extents == nil && f.Stored != f.Size {
		return fmt.Errorf("%w: %q has %d bytes, and %d are stored", imgsrc.ErrDamaged, f.Name, f.Size, f.Stored)
	}
	return nil
}

// store puts text into the arena.
func (b *indexBuilder) store(text []byte) (uint32, error) {
	at := len(b.arena)
	if at+len(text) > maxArena {
		return 0, fmt.Errorf("%w: names and attributes of more than %d bytes", imgsrc.ErrDamaged, maxArena)
	}
	b.arena = append(b.arena, text...)
	return uint32(at), nil
}

func (b *indexBuilder) nameOf(n uint32) []byte {
	e := &b.nodes[n]
	return b.arena[e.name : e.name+uint32(e.nameLen)]
}

func (b *indexBuilder) find(dir uint32, name string) (uint32, bool) {
	return b.byName.find(b, dir, name, b.byName.hash(dir, name))
}

// insert puts an inode under a name of a directory, in place of what was there.
func (b *indexBuilder) insert(dir uint32, name string, in uint32) (uint32, error) {
	if len(b.nodes) > MaxEntries {
		return 0, fmt.Errorf("%w: %w", imgsrc.ErrDamaged, errTooMany)
	}
	h := b.byName.hash(dir, name)
	n := uint32(len(b.nodes))
	e := ent{parent: dir, inode: in, nameLen: uint8(len(name))}
	if old, ok := b.byName.find(b, dir, name, h); ok {
		e.name = b.nodes[old].name
		b.nodes = append(b.nodes, buildNode{e, h})
		b.byName.replace(b, old, n, h)
		return n, nil
	}
	at, err := b.store([]byte(name))
	if err != nil {
		return 0, err
	}
	e.name = at
	b.nodes = append(b.nodes, buildNode{e, h})
	b.byName.insert(b, n)
	return n, nil
}

// index brings what is in reach into its final order.
func (b *indexBuilder) index() *Index {
	alive := make([]bool, len(b.nodes))
	alive[0] = true
	counts := make([]uint32, len(b.nodes)) // of children
	total := 1
	for i := 1; i < len(b.nodes); i++ {
		n := &b.nodes[i]
		if !alive[n.parent] || !b.byName.has(uint32(i), n.hash) {
			continue
		}
		alive[i] = true
		counts[n.parent]++
		total++
	}
	// The children of each node, together.
	starts := make([]uint32, len(b.nodes)+1)
	for i, c := range counts {
		starts[i+1] = starts[i] + c
	}
	children := make([]uint32, total-1)
	next := slices.Clone(starts[:len(b.nodes)])
	for i := 1; i < len(b.nodes); i++ {
		if alive[i] {
			p := b.nodes[i].parent
			children[next[p]] = uint32(i)
			next[p]++
		}
	}
	x := &Index{
		arena: string(b.arena), ents: make([]ent, 1, total), inodes: make([]inode, 1, len(b.inodes)), skipped: b.skipped,
	}
	x.inodes[0] = b.inodes[b.nodes[0].inode]
	newInode := make([]uint32, len(b.inodes)) // 0: not yet, because the root is no other's
	type dir struct{ old, at uint32 }
	queue := []dir{{0, 0}}
	for len(queue) > 0 {
		d := queue[len(queue)-1]
		queue = queue[:len(queue)-1]
		kids := children[starts[d.old]:starts[d.old+1]]
		slices.SortFunc(kids, func(a, c uint32) int {
			return bytes.Compare(b.nameOf(a), b.nameOf(c))
		})
		first := uint32(len(x.ents))
		self := &x.inodes[x.ents[d.at].inode]
		self.first, self.count = first, uint32(len(kids))
		for _, kid := range kids {
			n := &b.nodes[kid]
			at := uint32(len(x.ents))
			in := newInode[n.inode]
			if in == 0 {
				in = uint32(len(x.inodes))
				newInode[n.inode] = in
				fresh := b.inodes[n.inode]
				fresh.first, fresh.count = at, 0
				x.inodes = append(x.inodes, fresh)
			}
			file := &x.inodes[in]
			if !file.isDir() {
				file.count++
			}
			e := n.ent
			e.parent, e.inode = d.at, in
			x.ents = append(x.ents, e)
		}
		// Last first, so that the queue gives the directories in the order of a walk.
		for k := len(kids) - 1; k >= 0; k-- {
			if b.inodes[b.nodes[kids[k]].inode].isDir() {
				queue = append(queue, dir{kids[k], first + uint32(k)})
			}
		}
	}
	x.inodes = slices.Clip(x.inodes)
	x.notePlain()
	return x
}

// notePlain sets plain and outer.
func (x *Index) notePlain() {
	for i := range x.inodes {
		x.outer = x.outer || x.inodes[i].isLink()
	}
	x.plain = !x.outer
	for i := range x.ents {
		if isMark(x.name(uint32(i))) || x.isWhiteout(x.inodeOf(uint32(i))) {
			x.plain = false
		}
	}
}

// LinksOut says whether there are hard links to files that are not in the layer, but in one below it.
func (x *Index) LinksOut() bool { return x.outer }
