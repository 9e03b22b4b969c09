package layer

import (
	"encoding/binary"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
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
	// digest is the layer's, for messages.
	digest digest.Digest
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
	// maxPath bounds a path, in bytes: no system call takes a longer one.
	maxPath = unix.PathMax
	// maxArena bounds what the names and extended attributes of one layer may take.
	maxArena = 1 << 30
	// MaxEntries is how many entries a layer or a merged tree may have.
	MaxEntries = 1<<24 - 1
	// A layer may have freeImplicit directories without an entry of their own, and eachImplicit more for every entry:
	// a long path in a tar of a few bytes stands for thousands of them.
	freeImplicit = 1 << 16
	eachImplicit = 4
)

// memory is what the index occupies, in bytes.
func (x *Index) memory() int64 {
	return int64(len(x.arena)) + int64(len(x.ents))*16 + int64(len(x.inodes))*56
}

// Skipped is how many entries of the layer are left out, because a name or the path is longer than a kernel can hold.
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
