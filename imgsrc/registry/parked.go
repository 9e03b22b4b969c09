package registry

import (
	"bytes"
	"context"
	"hash"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc/cachefile"
)

// A parked blob is one that gave way to others. Its part file stays open, for those who read what has come of it, but is not locked:
// another process may go on with it, or the cache evict it. If nobody has, it goes on where it stopped; otherwise where the other
// one stopped, or in a copy, so that whoever is in the middle of it can read on.
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

// takeAgain is take, and keeps what was read of a file that was parked.
func (x *blob) takeAgain(ctx context.Context, f *os.File) {
	if p := x.parked; p != nil {
		if id, err := cachefile.Identify(f); err == nil && id == p.file || x.goesOn(ctx, f) || x.copied(ctx, f) {
			x.update(func() {
				x.swapLocked(f)
				x.arrived = p.off
			})
			return
		}
		x.parked = nil
	}
	x.take(f)
}

// swapLocked makes f, which begins as the blob's file does, that file. x.mu is held.
func (x *blob) swapLocked(f *os.File) {
	x.unref(x.file)
	x.file = f
	x.refs[f]++
}

// begins says whether f begins with what was read before the blob was parked, and returns the sum of that.
func (p *parked) begins(ctx context.Context, x *blob, f *os.File) (sum hash.Hash, ok bool) {
	sum = x.digest.Algorithm().Hash()
	err := hashFile(ctx, f, sum, 0, p.off)
	return sum, err == nil && bytes.Equal(sum.Sum(nil), p.sum.Sum(nil))
}

// goesOn says whether another process has gone on with f, and if so takes over what that has fetched.
func (x *blob) goesOn(ctx context.Context, f *os.File) bool {
	p, size := x.parked, fileSize(f)
	if size < p.off || x.size >= 0 && size > x.size {
		return false
	}
	sum, ok := p.begins(ctx, x, f)
	if !ok || hashFile(ctx, f, sum, p.off, size) != nil {
		return false
	}
	p.sum, p.off = sum, size
	return true
}

// copied copies what was read before the blob was parked into f, which is another file.
func (x *blob) copied(ctx context.Context, f *os.File) bool {
	p := x.parked
	if _, ok := p.begins(ctx, x, x.file); !ok { // which another process has emptied, perhaps, and it is f
		return false
	}
	if _, err := x.room(f, p.off); err != nil || f.Truncate(0) != nil {
		return false
	}
	_, err := io.Copy(io.NewOffsetWriter(f, 0), io.NewSectionReader(x.file, 0, p.off))
	if err != nil {
		return false
	}
	_, ok := p.begins(ctx, x, f)
	return ok
}
