package imgsrc

import (
	"context"
	"sync"
)

// A Verdict is what becomes of bytes that were given out before all of their blob was verified. Verdicts are compared with ==.
type Verdict interface {
	// Wait returns when that is known: nil if the bytes are right. Otherwise whoever keeps them has to throw them away: they
	// are wrong, or will never have been verified. That is known before other bytes of the blob can be had in their place. It
	// returns ctx's error when ctx ends first.
	Wait(ctx context.Context) error
}

type earlyKey struct{}

// WithEarly returns a context in which a blob's ReadAt need not wait until all of the blob is verified, if the blob is read
// from its beginning on: took is called, before such a read returns, with the verdict that is still to come. The end of a blob,
// [Withheld] bytes of it, is never given out early, so nobody comes to have a whole one of wrong bytes. A read of anything but
// what follows on what was read, and any read in another context, waits.
func WithEarly(ctx context.Context, took func(Verdict)) context.Context {
	return context.WithValue(ctx, earlyKey{}, took)
}

// Early returns what ctx was made with, or nil.
func Early(ctx context.Context) func(Verdict) {
	took, _ := ctx.Value(earlyKey{}).(func(Verdict))
	return took
}

// Withheld is how many bytes at a blob's end wait until all of it is verified, so that a smaller one waits as a whole. It is
// more than what programs put behind the end of a tar (up to a MiB): one who stops reading there has read
// into it. And to hash as much takes a few milliseconds.
const Withheld = 4 << 20

// A Front is how far a blob has been read from its beginning, without a gap. The zero value is ready.
type Front struct {
	mu    sync.Mutex
	at    int64
	moved chan struct{} // closed when at moves; nil: nobody waits
}

// Follows says whether a read at off follows on what was read. The kernel reads ahead, and its requests overtake each other: so
// it waits for those before, until ctx ends or what waits returns is closed; waits is called only if it has to wait.
func (f *Front) Follows(ctx context.Context, off int64, waits func() <-chan struct{}) bool {
	for {
		f.mu.Lock()
		at := f.at
		if off > at && f.moved == nil {
			f.moved = make(chan struct{})
		}
		moved := f.moved
		f.mu.Unlock()
		if off <= at {
			return true
		}
		select {
		case <-moved:
		case <-waits():
			return false
		case <-ctx.Done():
			return false
		}
	}
}

// Advance takes note of a read of n bytes at off.
func (f *Front) Advance(off, n int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if off > f.at || off+n <= f.at {
		return
	}
	f.at = off + n
	if f.moved != nil {
		close(f.moved)
		f.moved = nil
	}
}
