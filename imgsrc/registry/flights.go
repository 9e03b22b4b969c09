package registry

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"runtime/debug"
	"sync"

	"github.com/opencontainers/go-digest"
)

// flights runs work that several readers may want at once. Work with one key runs once, in a context of its own: a
// reader that leaves does not end it, because the next one wants it too.
type flights struct {
	log    *slog.Logger
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu     sync.Mutex
	closed bool
	flying map[any]*flight
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

// A flightKey is work of one kind, on one thing: what is one flight has one type.
type flightKey struct {
	work string
	on   digest.Digest
}

// start begins work, or joins work with the same key that is under way. It returns nil after close.
func (f *flights) start(key any, work func(context.Context) (any, error)) *flight {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil
	}
	fl := f.flying[key]
	if fl != nil {
		return fl
	}
	fl = &flight{done: make(chan struct{})}
	f.flying[key] = fl
	f.wg.Go(func() {
		defer func() {
			if p := recover(); p != nil {
				fl.err = fmt.Errorf("panic: %v", p)
				f.log.Error("asking a registry", "error", fl.err, "stack", string(debug.Stack()))
			}
			f.mu.Lock()
			delete(f.flying, key)
			f.mu.Unlock()
			close(fl.done)
		}()
		fl.val, fl.err = work(f.ctx)
	})
	return fl
}

// fly returns what work returns, joining work with the same key that is under way. It returns ctx's error as soon as ctx
// ends; the work goes on.
func fly[T any](ctx context.Context, f *flights, key any, work func(context.Context) (T, error)) (T, error) {
	var zero T
	if err := ctx.Err(); err != nil {
		return zero, err
	}
	fl := f.start(key, func(ctx context.Context) (any, error) { return work(ctx) })
	if fl == nil {
		return zero, fmt.Errorf("registry: %w", fs.ErrClosed)
	}
	select {
	case <-ctx.Done():
		return zero, ctx.Err()
	case <-fl.done:
	}
	if fl.err != nil {
		if f.ctx.Err() != nil { // never context.Canceled: the reader's own context has not ended
			return zero, fmt.Errorf("registry: %w", fs.ErrClosed)
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
