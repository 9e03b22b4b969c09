package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
)

// flights is work that several readers may want at once. Work with one key runs once, on a context of its own: a reader
// who leaves does not stop it.
type flights struct {
	log    *slog.Logger
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu     sync.Mutex
	closed bool
	flying map[string]*flight
}

type flight struct {
	done chan struct{} // closed when the rest is set
	doc  *document
	err  error
}

func newFlights(log *slog.Logger) *flights {
	f := &flights{log: log, flying: map[string]*flight{}}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	return f
}

// fly returns what work returns, joining the work with the same key that is under way. It returns ctx's error as soon as
// ctx ends; the work goes on.
func (f *flights) fly(ctx context.Context, key string, work func(context.Context) (*document, error)) (*document, error) {
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		return nil, errClosed
	}
	fl := f.flying[key]
	if fl == nil {
		fl = &flight{done: make(chan struct{})}
		f.flying[key] = fl
		f.wg.Go(func() {
			defer close(fl.done)
			fl.doc, fl.err = f.guard(work)
			f.mu.Lock()
			defer f.mu.Unlock()
			delete(f.flying, key)
		})
	}
	f.mu.Unlock()
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-fl.done:
	}
	if fl.err != nil && f.ctx.Err() != nil { // never context.Canceled: the reader's own context has not ended
		return nil, errClosed
	}
	return fl.doc, fl.err
}

// guard makes an error of a panic: the work meets bytes from outside.
func (f *flights) guard(work func(context.Context) (*document, error)) (doc *document, err error) {
	defer func() {
		if p := recover(); p != nil {
			doc, err = nil, fmt.Errorf("panic: %v", p)
			f.log.Error("saving image", "error", err, "stack", string(debug.Stack()))
		}
	}()
	return work(f.ctx)
}

// start runs work that nobody waits for but close, unless that has been called.
func (f *flights) start(work func(context.Context)) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return false
	}
	f.wg.Go(func() { work(f.ctx) })
	return true
}

// close ends all work and waits for it.
func (f *flights) close() {
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	f.cancel()
	f.wg.Wait()
}
