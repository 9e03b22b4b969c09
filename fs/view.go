package fs

import (
	"context"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// A view is one part of the tree: what the kernel may ask of its entries. Views are stateless; a node's image and entry
// say what is meant. Each method's error becomes the request's errno.
type view interface {
	// attr describes an entry. With cheap set it may refuse with errCostly what would take reading more than memory.
	attr(ctx context.Context, n node, cheap bool) (attr, error)
	// lookup finds a name in a directory.
	lookup(ctx context.Context, dir node, name string) (found, error)
	// list calls emit for the entries of a directory that follow cookie from, until emit returns false. Cookies are
	// greater than 0 and rise; they mean the same while the directory changes.
	list(ctx context.Context, dir node, from uint64, emit func(dirent) bool) error
	// read reads a file's bytes at off into dest; fewer than len(dest) only at the end.
	read(ctx context.Context, n node, dest []byte, off int64) (fuse.ReadResult, error)
	// readlink returns a symbolic link's target.
	readlink(ctx context.Context, n node) ([]byte, error)
}

// An attr is what stat shows of an entry, and how long it holds.
type attr struct {
	ino   ino
	mode  uint32 // type and permissions
	nlink uint32
	size  int64
	mtime time.Time
	live  bool // may change: the kernel asks each time

	control bool // takes writes

	// What only files out of layers have.
	layered bool // these hold
	uid     uint32
	gid     uint32
	rdev    uint32
	stored  int64 // bytes that are not holes
}

// A dirent is an entry of a listing.
type dirent struct {
	name   string
	node   node
	ino    ino
	mode   uint32 // the type's bits
	cookie uint64
	keep   keep
	attr   *attr // if they are at hand
}

// keep says how long the kernel may keep a name. It is also told when one is gone.
type keep uint8

const (
	keepForever keep = iota
	keepMoment       // for a second
	keepNot
)

// found is the result of a lookup that found something.
type found struct {
	node node
	keep keep
}

// errCostly: these attributes are not to be had for a mere listing.
type costlyError struct{}

func (costlyError) Error() string { return "costly attributes" }

var errCostly = costlyError{}

// asLive says that the attributes may change.
func (a attr) asLive() attr {
	a.live = true
	return a
}

func dirAttr(i ino, mtime time.Time, live bool) attr {
	return attr{ino: i, mode: syscall.S_IFDIR | 0o555, nlink: 1, mtime: mtime, live: live}
}

func fileAttr(i ino, size int64, mtime time.Time) attr {
	return attr{ino: i, mode: syscall.S_IFREG | 0o444, nlink: 1, size: size, mtime: mtime}
}

func linkAttr(i ino, size int, mtime time.Time) attr {
	return attr{ino: i, mode: syscall.S_IFLNK | 0o777, nlink: 1, size: int64(size), mtime: mtime}
}

// view returns the view that node n stands in, or nil.
func (f *FS) view(n node) view {
	if n.image() == 0 {
		return f.topViews[n.view()]
	}
	if f.image(n.image()) == nil {
		return nil
	}
	if n.view() >= firstDiff {
		return f.diffs
	}
	return f.views[n.view()]
}

// readBytes answers a read from bytes in memory.
func readBytes(b, dest []byte, off int64) fuse.ReadResult {
	if off < 0 || off >= int64(len(b)) {
		return fuse.ReadResultData(nil)
	}
	return fuse.ReadResultData(b[off:min(int64(len(b)), off+int64(len(dest)))])
}
