package ops

import (
	"cmp"
	"context"
	"sync/atomic"
	"syscall"
	"time"
)

// A watchdog cancels a push whose other end has fallen silent. The library's HTTP client has a limit for connecting, and
// none for an answer that does not come.
type watchdog struct {
	limit time.Duration
	bite  context.CancelCauseFunc
	alive func(context.Context) bool // asked after a silence whether it goes on; nil: it does not
	who   string                     // the other end, for the text; empty: the registry

	begun   time.Time
	last    atomic.Int64 // when something moved, in nanoseconds after begun
	reached atomic.Bool  // the other end has answered
	busy    atomic.Int64 // how many reads from the image's own source are being waited for
}

// watch watches until ctx ends or the watchdog has bitten.
func (w *watchdog) watch(ctx context.Context) {
	timer := time.NewTimer(w.limit)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		left := w.limit
		if w.busy.Load() == 0 { // before last, which is set before busy is counted down
			left = time.Duration(w.last.Load()) + w.limit - time.Since(w.begun)
		}
		if left <= 0 && w.goesOn(ctx) {
			w.touch()
			left = w.limit
		}
		if left <= 0 {
			w.bite(fail(syscall.ETIMEDOUT, "%s kept silent for %s", cmp.Or(w.who, "the registry"), w.limit))
			return
		}
		timer.Reset(left)
	}
}

// goesOn says whether the other end answers, though it has been silent.
func (w *watchdog) goesOn(ctx context.Context) bool {
	if w.alive == nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, min(w.limit, engineTimeout))
	defer cancel()
	return w.alive(ctx)
}

// touch says that something has moved.
func (w *watchdog) touch() { w.last.Store(int64(time.Since(w.begun))) }

// pause keeps the watchdog quiet until the function that it returns is called.
func (w *watchdog) pause() func() {
	w.busy.Add(1)
	return func() {
		w.touch()
		w.busy.Add(-1)
	}
}
