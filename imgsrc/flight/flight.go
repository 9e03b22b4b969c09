// Package flight runs work that several readers may want at once. Work with one key runs once, on a context of its own: a
// reader who leaves does not end it, because the next one wants it too. A panic in it is its error.
package flight

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync"
	"time"
)

// A Group is the work of one source.
type Group struct {
	name   string
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

// New returns a group. Its name begins the errors after Close, and says in the log where a panic was.
func New(name string, log *slog.Logger) *Group {
	g := &Group{name: name, log: log, flying: map[any]*flight{}}
	g.ctx, g.cancel = context.WithCancel(context.Background())
	return g
}

// Start begins work that nobody need wait for, unless work with the same key is under way; what has one key has one type.
// Not ok after Close.
func (g *Group) Start(key any, work func(context.Context) (any, error)) (ok bool) {
	return g.start(key, work) != nil
}

func (g *Group) start(key any, work func(context.Context) (any, error)) *flight {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil
	}
	f := g.flying[key]
	if f != nil {
		return f
	}
	f = &flight{done: make(chan struct{})}
	g.flying[key] = f
	g.wg.Go(func() {
		defer func() {
			if p := recover(); p != nil {
				f.err = fmt.Errorf("panic: %v", p)
				g.log.Error("panic", "source", g.name, "error", f.err, "stack", string(debug.Stack()))
			}
			g.mu.Lock()
			delete(g.flying, key)
			g.mu.Unlock()
			close(f.done)
		}()
		f.val, f.err = work(g.ctx)
	})
	return f
}

// Do returns what work returns, joining work with the same key that is under way; what has one key has one type. It
// returns ctx's error as soon as ctx ends; the work goes on. Error: fs.ErrClosed after Close.
func Do[T any](ctx context.Context, g *Group, key any, work func(context.Context) (T, error)) (T, error) {
	var zero T
	f := g.start(key, func(ctx context.Context) (any, error) { return work(ctx) })
	if f == nil {
		return zero, g.errClosed()
	}
	select {
	case <-ctx.Done():
		return zero, ctx.Err()
	case <-f.done:
	}
	switch {
	case ctx.Err() != nil:
		return zero, ctx.Err()
	case f.err == nil:
		return f.val.(T), nil
	case g.ctx.Err() != nil: // never context.Canceled: the reader's own context has not ended
		return zero, g.errClosed()
	}
	return zero, f.err
}

func (g *Group) errClosed() error { return fmt.Errorf("%s: %w", g.name, fs.ErrClosed) }

// Busy says whether work is under way.
func (g *Group) Busy() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.flying) > 0
}

// Done is closed by Close.
func (g *Group) Done() <-chan struct{} { return g.ctx.Done() }

// Close ends all work and waits for it.
func (g *Group) Close() {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.cancel()
	late := time.AfterFunc(lateTime, func() { g.log.Warn("waiting for work that does not end", "source", g.name, "work", g.underWay()) })
	defer late.Stop()
	g.wg.Wait()
}

// lateTime is after what time Close logs what it waits for.
const lateTime = 5 * time.Second

// underWay are the keys of the work that is.
func (g *Group) underWay() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	var keys []string
	for key := range g.flying {
		keys = append(keys, fmt.Sprint(key))
	}
	slices.Sort(keys)
	return keys
}
