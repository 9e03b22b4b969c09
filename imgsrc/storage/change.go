package storage

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"syscall"
	"time"

	cs "go.podman.io/storage"

	"github.com/imgfs/imgfs/imgsrc"
)

// A storeWrite is one change to an image of the store.
type storeWrite struct {
	id    string
	may   func() error          // looks without the library whether something is against it
	still func(*cs.Image) error // looks at the image as it is when the locks have been waited for
	do    func(cs.Store) error
}

// The states of a write: one that was given up is not made any more, and one that is made is waited for.
const (
	writeWaits = iota
	writeGivenUp
	writeMade
)

// change opens the store's library for one write. It is not made for somebody who has left. The library waits for the
// store's locks whatever becomes of ctx: change returns when that ends, and leaves the waiting behind. Error:
// imgsrc.ErrLocked if ctx ended for want of time meanwhile.
func (s *Source) change(ctx context.Context, w storeWrite) error {
	type outcome struct {
		err      error
		panicked any // for the caller's goroutine, which knows what to do about it
	}
	began := time.Now()
	var state atomic.Int32
	ended := make(chan outcome, 1)
	go func() {
		var out outcome
		defer func() {
			out.panicked = recover()
			ended <- out
		}()
		out.err = s.changeUnlessGivenUp(ctx, w, &state)
	}()
	var out outcome
	stop := s.tellLocked(ctx)
	select {
	case out = <-ended:
		stop()
	case <-ctx.Done():
		stop()
		if state.CompareAndSwap(writeWaits, writeGivenUp) {
			return lockedSince(began, context.Cause(ctx))
		}
		out = <-ended
	}
	if out.panicked != nil {
		panic(out.panicked)
	}
	return out.err
}

// changeUnlessGivenUp is change in its own goroutine.
func (s *Source) changeUnlessGivenUp(ctx context.Context, w storeWrite, state *atomic.Int32) error {
	s.tagMu.Lock()
	defer s.tagMu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := w.may(); err != nil {
		return err
	}
	store, err := s.openReal()
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	img, err := store.Image(w.id)
	if err != nil {
		return writeError(err)
	}
	if err := w.still(img); err != nil {
		return err
	}
	if err := imgsrc.Commit(ctx); err != nil {
		return err
	}
	if !state.CompareAndSwap(writeWaits, writeMade) {
		return context.Cause(ctx)
	}
	return writeError(w.do(store))
}

// lockedSince says of a write that was given up for want of time what it was waiting for.
func lockedSince(began time.Time, cause error) error {
	if !errors.Is(cause, syscall.ETIMEDOUT) {
		return cause
	}
	return imgsrc.Of(imgsrc.ErrLocked, fmt.Errorf("the store has been locked by another program for %s: %w", time.Since(began).Round(time.Second), cause))
}
