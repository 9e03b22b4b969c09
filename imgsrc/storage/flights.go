package storage

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"runtime/debug"
	"sync"
)

// flights runs work that several readers may want at once. Work with one key runs once, in a context of its own: a
// reader that leaves does not end it, because the next one wants it too.
type flights struct {
	log    *slog.Logger
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu     sync.Mutex
	closed bool            // guarded by mu
	flying map[any]*flight // guarded by mu
}

type flight struct {
	done chan struct{} // closed when val and err are set
	val  any
	err  error
}

func newFlights(log *slog.Logger) *flights {
	f := &flights{log: log, flying: map[any]*flight{}}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	return f
}

// fly returns what work returns, joining work with the same key that is under way. It returns ctx's error as soon as ctx
// ends; the work goes on.
func fly[T any](ctx context.Context, f *flights, key any, work func(context.Context) (T, error)) (T, error) {
	var zero T
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		return zero, fs.ErrClosed
	}
	fl := f.flying[key]
	if fl == nil {
		fl = &flight{done: make(chan struct{})}
		f.flying[key] = fl
		f.wg.Go(func() {
			defer func() {
				if p := recover(); p != nil {
					fl.err = fmt.Errorf("panic: %v", p)
					f.log.Error("reading the store", "error", fl.err, "stack", string(debug.Stack()))
				}
				f.mu.Lock()
				delete(f.flying, key)
				f.mu.Unlock()
				close(fl.done)
			}()
			fl.val, fl.err = work(f.ctx)
		})
	}
	f.mu.Unlock()
	select {
	case <-ctx.Done():
		return zero, ctx.Err()
	case <-fl.done:
	}
	if fl.err != nil {
		if f.ctx.Err() != nil {
			return zero, fs.ErrClosed
		}
		return zero, fl.err
	}
	return fl.val.(T), nil
}

// close ends all work and waits for it.
func (f *flights) close() {
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	f.cancel()
	f.wg.Wait()
}
