package layer

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
)

// An Index is one layer as a tree: what unpacking its tar into an empty directory would give, whiteouts as the files
// that they are in the tar. It is immutable, has no pointers for the garbage collector to follow, and is the same for
// the same layer everywhere.
type Index struct {
	arena  string  // names, and the variable parts of inodes
	ents   []ent   // [0] is the root; the entries of a directory lie together, sorted by name, and before those of its subdirectories
	inodes []inode // in the order in which ents first mentions them

	// plain says that merging this layer alone changes nothing: no whiteouts, and no link that leads out of the layer.
	plain bool
	// outer says that there are hard links to files that are not in the layer.
	outer bool
	// skipped counts the entries whose names no kernel can hold.
	skipped int
}

// An ent is a name in a directory.
type ent struct {
	name    uint32 // where in the arena
	inode   uint32
	parent  uint32
	nameLen uint8
}

// An inode is what a name stands for. Hard links are several names of one inode.
type inode struct {
	sec   int64
	size  int64  // of a regular file
	where uint64 // the File's
	nsec  uint32
	uid   uint32
	gid   uint32
	mode  uint32 // S_IFMT and permissions; no type: a hard link whose target is not in the layer
	extra uint32 // where in the arena the variable part begins; 0: there is none
	first uint32 // a directory's first entry; otherwise the first of its names
	count uint32 // how many entries or names there are
}

// implicit, in mode, marks a directory without an entry of its own.
const implicit = 1 << 31

const (
	// maxNameLen is what a name may have in bytes on every file system that images are unpacked to.
	maxNameLen = 255
	// maxPath bounds a path, in bytes. The kernel takes 4,096 at once, and more by steps.
	maxPath = 64 << 10
	// maxArena bounds what the names and extended attributes of one layer may take.
	maxArena = 1 << 30
	// MaxEntries is how many entries a layer or a merged tree may have.
	MaxEntries = 1<<24 - 1
)

// memory is what the index occupies, in bytes.
func (x *Index) memory() int64 {
	return int64(len(x.arena)) + int64(len(x.ents))*16 + int64(len(x.inodes))*56
}

// Skipped is how many entries of the layer are left out, because one of their names is longer than a kernel can hold.
func (x *Index) Skipped() int { return x.skipped }

func (x *Index) name(e uint32) string {
	d := &x.ents[e]
	return x.arena[d.name : d.name+uint32(d.nameLen)]
}

func (x *Index) inodeOf(e uint32) *inode { return &x.inodes[x.ents[e].inode] }

func (n *inode) isDir() bool { return n.mode&unix.S_IFMT == unix.S_IFDIR }

// isLink says whether this is a hard link to something that is not in the layer.
func (n *inode) isLink() bool { return n.mode&unix.S_IFMT == 0 }

// isWhiteout says whether overlayfs takes this for a whiteout: a character device 0:0.
func (x *Index) isWhiteout(n *inode) bool {
	return n.mode&unix.S_IFMT == unix.S_IFCHR && x.extraOf(n).rdev == 0
}

// path returns the path of an entry from the layer's root.
func (x *Index) path(e uint32) string {
	var names []string
	for ; e != 0; e = x.ents[e].parent {
		names = append(names, x.name(e))
	}
	slices.Reverse(names)
	return strings.Join(names, "/")
}

// child returns the entry called name in the directory dir.
func (x *Index) child(dir *inode, name string) (uint32, bool) {
	lo, hi := dir.first, dir.first+dir.count
	for lo < hi {
		mid := (lo + hi) / 2
		switch c := strings.Compare(x.name(mid), name); {
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

// extra is the variable part of an inode.
type extra struct {
	link    string // the target of a symbolic link, or of a hard link that leads out of the layer
	rdev    uint32
	xattrs  []imgsrc.Xattr
	extents []imgsrc.Extent // nil: not sparse
}

// The variable part of an inode in the arena: the link and its length, the device, the attributes and their number,
// and the number of extents plus one, or 0. All numbers are varints.
func (e *extra) encode(b []byte) []byte {
	text := func(s string) {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	text(e.link)
	b = binary.AppendUvarint(b, uint64(e.rdev))
	b = binary.AppendUvarint(b, uint64(len(e.xattrs)))
	for _, x := range e.xattrs {
		text(x.Name)
		text(x.Value)
	}
	if e.extents == nil {
		return binary.AppendUvarint(b, 0)
	}
	b = binary.AppendUvarint(b, uint64(len(e.extents))+1)
	for _, x := range e.extents {
		b = binary.AppendUvarint(b, uint64(x.Off))
		b = binary.AppendUvarint(b, uint64(x.Len))
	}
	return b
}

func (x *Index) extraOf(n *inode) extra {
	var e extra
	if n.extra == 0 {
		return e
	}
	rest := x.arena[n.extra:]
	number := func() uint64 {
		var v uint64
		for shift := 0; ; shift += 7 {
			c := rest[0]
			rest = rest[1:]
			v |= uint64(c&0x7f) << shift
			if c < 0x80 {
				return v
			}
		}
	}
	text := func() string {
		n := number()
		s := rest[:n]
		rest = rest[n:]
		return s
	}
	e.link = text()
	e.rdev = uint32(number())
	for range number() {
		e.xattrs = append(e.xattrs, imgsrc.Xattr{Name: text(), Value: text()})
	}
	if k := number(); k > 0 {
		e.extents = make([]imgsrc.Extent, k-1)
		for i := range e.extents {
			e.extents[i] = imgsrc.Extent{Off: int64(number()), Len: int64(number())}
		}
	}
	return e
}

// rdevOf is a device number as the kernel encodes it.
func rdevOf(major, minor uint32) uint32 {
	return minor&0xff | major&0xfff<<8 | minor&^0xff<<12
}

// BuildIndex indexes a layer. Errors: imgsrc.ErrDamaged also for one with more than MaxEntries entries; those of
// Entries.
func BuildIndex(ctx context.Context, files imgsrc.Files) (*Index, error) {
	b := newIndexBuilder()
	if err := files.Entries(ctx, b.add); err != nil {
		return nil, err
	}
	return b.index(), nil
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

var errTooMany = errors.New("more entries than can be shown")

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
			if n, err = b.insert(dir, part, b.newInode(inode{mode: unix.S_IFDIR | 0o755 | implicit})); err != nil {
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

// A nameTable finds a node by its directory and name: open addressing over node numbers.
type nameTable struct {
	seed  maphash.Seed
	slots []uint32 // 0: free, because the root has no name
	used  int
}

func (t *nameTable) init() {
	t.seed = maphash.MakeSeed()
	t.slots = make([]uint32, 1<<10)
}

func (t *nameTable) hash(dir uint32, name string) uint64 {
	return maphash.String(t.seed, name) ^ uint64(dir)*0x9e3779b97f4a7c15
}

func (t *nameTable) find(b *indexBuilder, dir uint32, name string, h uint64) (uint32, bool) {
	mask := uint64(len(t.slots) - 1)
	for i := h & mask; ; i = (i + 1) & mask {
		n := t.slots[i]
		if n == 0 {
			return 0, false
		}
		if e := &b.nodes[n]; e.hash == h && e.parent == dir && string(b.nameOf(n)) == name {
			return n, true
		}
	}
}

// has says whether node n is still what its name stands for.
func (t *nameTable) has(n uint32, h uint64) bool {
	mask := uint64(len(t.slots) - 1)
	for i := h & mask; t.slots[i] != 0; i = (i + 1) & mask {
		if t.slots[i] == n {
			return true
		}
	}
	return false
}

func (t *nameTable) replace(b *indexBuilder, old, n uint32, h uint64) {
	mask := uint64(len(t.slots) - 1)
	for i := h & mask; ; i = (i + 1) & mask {
		if t.slots[i] == old {
			t.slots[i] = n
			return
		}
	}
}

func (t *nameTable) insert(b *indexBuilder, n uint32) {
	if 2*(t.used+1) > len(t.slots) {
		old := t.slots
		t.slots = make([]uint32, 2*len(old))
		for _, m := range old {
			if m != 0 {
				t.put(m, b.nodes[m].hash)
			}
		}
	}
	t.put(n, b.nodes[n].hash)
	t.used++
}

func (t *nameTable) put(n uint32, h uint64) {
	mask := uint64(len(t.slots) - 1)
	i := h & mask
	for t.slots[i] != 0 {
		i = (i + 1) & mask
	}
	t.slots[i] = n
}

// Whiteouts, as layers have them (image-spec, layer.md): an empty file .wh.NAME hides NAME of the layers below, and
// .wh..wh..opq in a directory all that they have there. Other names that begin with .wh..wh. are the aufs file system's
// own and mean nothing.
const (
	markPrefix = ".wh."
	opaqueMark = ".wh..wh..opq"
	aufsPrefix = ".wh..wh."
)

// isMark says whether a name is a whiteout or another mark, and no file of the image.
func isMark(name string) bool { return strings.HasPrefix(name, markPrefix) }

// hiddenBy returns the name that a mark hides in the layers below; false if it hides none.
func hiddenBy(mark string) (string, bool) {
	name := strings.TrimPrefix(mark, markPrefix)
	return name, name != "" && name != "." && name != ".." && !strings.HasPrefix(mark, aufsPrefix)
}
