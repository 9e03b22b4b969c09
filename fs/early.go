package fs

import (
	"context"

	"github.com/imgfs/imgfs/imgsrc"
)

// The beginning of a large blob is given out before all of it is verified, to whoever reads it from there on. The kernel keeps
// what it is given, so it is told to forget it if the blob turns out to be another.

// An earlyRead is a file that the kernel has been given bytes of, and what they depend on.
type earlyRead struct {
	node    node
	verdict imgsrc.Verdict
}

// early returns the context of a read of file n that may be answered so.
func (f *FS) early(ctx context.Context, n node) context.Context {
	return imgsrc.WithEarly(ctx, func(v imgsrc.Verdict) {
		read := earlyRead{n, v}
		if _, known := f.earlyReads.LoadOrStore(read, struct{}{}); !known {
			go f.awaitVerdict(read)
		}
	})
}

// awaitVerdict has the kernel forget a file if it should. That waits for the reads of the file that are under way: nobody who
// answers one may wait for it.
func (f *FS) awaitVerdict(read earlyRead) {
	err := read.verdict.Wait(f.ctx)
	f.earlyReads.Delete(read) // one that is answered from here on has its own
	if err == nil || f.ctx.Err() != nil {
		return
	}
	if server := f.server.Load(); server != nil {
		server.InodeNotify(uint64(read.node), 0, 0)
	}
}
