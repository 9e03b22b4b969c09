package registry

import (
	"hash"
	"os"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc/cachefile"
)

// A parked blob is one that gave way to others. Its part file stays open, for those who read what has come of it, but is not locked:
// another process may go on with it, or the cache evict it. If nobody has, it goes on where it stopped.
type parked struct {
	file   cachefile.Identity
	sum    hash.Hash // of the bytes before off
	off    int64
	direct bool
}

// park lets others have the part file f.
func (x *blob) park(f *os.File) {
	id, err := cachefile.Identify(f)
	if err != nil {
		id = cachefile.Identity{} // then it is hashed again
	}
	x.parked.file = id
	if err := cachefile.Flock(f, unix.LOCK_UN); err != nil {
		x.blobs.source.log.Debug("unlocking a part file", "blob", x.digest, "error", err)
	}
}

// takeAgain is take, and keeps what was read of a file that was parked, if f is that file and nobody has written to it.
func (x *blob) takeAgain(f *os.File) {
	if p := x.parked; p != nil {
		if id, err := cachefile.Identify(f); err == nil && id == p.file {
			x.update(func() {
				x.unref(x.file)
				x.file = f
				x.refs[f]++
			})
			return
		}
		x.parked = nil
	}
	x.take(f)
}
