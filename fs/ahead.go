package fs

import (
	"context"
	"sync/atomic"
)

// A small file costs its reader a round trip, whatever is in it. So the answer to the first read of one is preceded by
// the bytes of those that come after it in the directory, straight into the kernel's cache: whoever reads one file of a
// directory (grep -r, rsync, tar) mostly reads the next one next.
//
// The kernel makes the one who stores wait while somebody else's read of the same file is under way. Only files behind the
// one that is being read are stored, so such waits never go round in a circle.

// aheadFiles is how many bytes are stored ahead of one read at the most; more brings nothing.
const aheadBytes = 256 << 10

// aheadOf remembers which of a directory's files have been stored, so that a second reader does not pay again.
type aheadOf struct{ done atomic.Uint64 }

// take says whether file i, one of the first 64, is yet to be stored, and counts it as stored.
func (a *aheadOf) take(i uint32) bool {
	if i >= 64 {
		return false
	}
	bit := uint64(1) << i
	return a.done.Or(bit)&bit == 0
}

// ahead collects what to store before a read is answered.
type ahead struct {
	f     *FS
	bytes int
}

// store stores a file, and says whether there is room for more.
func (a *ahead) store(n node, b []byte) bool {
	if len(b) == 0 {
		return true
	}
	if a.bytes += len(b); a.bytes > aheadBytes {
		return false
	}
	// A file that the kernel does not know is refused, at a fraction of a round trip.
	return a.f.server.InodeNotifyStoreCache(uint64(n), 0, b).Ok()
}

// treeAhead remembers which files of a tree have been stored.
type treeAhead struct{ done []atomic.Uint64 }

func (a *treeAhead) init(n uint32) { a.done = make([]atomic.Uint64, (n+63)/64) }

func (t *tree) readAhead(ctx context.Context, n uint32) {}
