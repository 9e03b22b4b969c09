package registry

import (
	"context"
	"errors"
	"os"

	"github.com/imgfs/imgfs/imgsrc"
)

// A filling is one attempt to come by a blob: its bytes come in, or are hashed where they lie in the cache. It is what early
// reads of the blob depend on.
type filling struct {
	blob *blob
	done chan struct{}
	err  error // valid when done is closed
}

var _ imgsrc.Verdict = (*filling)(nil)

// errGivenUp ends a filling that another takes the place of, or that nobody waits for.
var errGivenUp = errors.New("the blob was not verified")

// Wait implements [imgsrc.Verdict]. It is nobody who wants more of the blob, for which others would have to wait.
func (f *filling) Wait(ctx context.Context) error {
	if f.ended() {
		return f.err
	}
	select {
	case <-f.done:
		return f.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (f *filling) ended() bool {
	select {
	case <-f.done:
		return true
	default:
		return false
	}
}

// beginLocked begins a filling. x.mu is held.
func (x *blob) beginLocked() {
	x.endLocked(errGivenUp)
	x.filling = &filling{blob: x, done: make(chan struct{})}
}

// endLocked ends the filling, if there is one, before anything takes the place of its bytes. x.mu is held.
func (x *blob) endLocked(err error) {
	if f := x.filling; f != nil {
		f.err = err
		close(f.done)
		x.filling = nil
	}
}

// useFound makes f, which lies in the cache and is about to be verified, a file that can be read early. If another process has
// finished what was parked here, that goes on being read.
func (x *blob) useFound(ctx context.Context, f *os.File) error {
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	goesOn := false
	if p := x.parked; p != nil {
		_, goesOn = p.begins(ctx, x, f)
		x.parked = nil
	}
	x.update(func() {
		if goesOn {
			x.swapLocked(f)
		} else {
			x.dropLocked()
			x.file = f
			x.refs[f]++
			x.beginLocked()
		}
		x.arrived, x.unsure = 0, fi.Size()
	})
	return nil
}

// readEarly reads what follows on what was read of the blob, while that comes in or is verified. Not ok: it is to be waited for.
func (c *content) readEarly(ctx context.Context, p []byte, off int64) (n int, ok bool) {
	took, end := imgsrc.Early(ctx), off+int64(len(p))
	if took == nil || c.size < 0 || end > c.size-imgsrc.Withheld {
		return 0, false
	}
	x, err := c.blob()
	if err != nil {
		return 0, false
	}
	h, err := x.waitUntil(ctx, true, func() bool { return x.whole || max(x.arrived, x.unsure) >= end })
	if err != nil {
		return 0, false // and there it is said why
	}
	defer x.done(h)
	if h.filling == nil {
		return 0, false
	}
	front := c.frontOf(h.filling)
	if !front.Follows(ctx, off, func() <-chan struct{} { return h.filling.done }) {
		return 0, false
	}
	n, err = h.ReadAt(p, off)
	if err != nil || n < len(p) || h.filling.ended() && h.filling.err != nil {
		clear(p)
		return 0, false
	}
	took(h.filling)
	front.Advance(off, int64(n))
	return n, true
}

// frontOf is how far the blob was read in this filling.
func (c *content) frontOf(f *filling) *imgsrc.Front {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.read != f {
		c.read, c.front = f, new(imgsrc.Front)
	}
	return c.front
}
