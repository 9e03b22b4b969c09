package registry

import (
	"context"
	"sync"
	"time"
)

// comingTime is how long a document may take of which something comes again and again: 4 MiB at 120 kbit/s.
const comingTime = 5 * time.Minute

// A coming is the context of work that ends when nothing has come for a while. It says so as its deadline, too.
type coming struct {
	context.Context
	limit time.Duration
	last  time.Time // however much comes

	mu    sync.Mutex
	until time.Time
	timer *time.Timer
}

type comingKey struct{}

// newComing returns a context that ends with ctx, or for errLate after limit. Each call of came gives it as much time again. The
// caller calls stop.
func newComing(ctx context.Context, limit time.Duration) (c *coming, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	now := time.Now()
	c = &coming{limit: limit, last: now.Add(max(limit, comingTime)), until: now.Add(limit)}
	c.Context = context.WithValue(ctx, comingKey{}, c)
	c.timer = time.AfterFunc(limit, func() { cancel(errLate) })
	return c, func() {
		c.timer.Stop()
		cancel(nil)
	}
}

// Deadline implements [context.Context].
func (c *coming) Deadline() (time.Time, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.until, true
}

func (c *coming) came() {
	c.mu.Lock()
	defer c.mu.Unlock()
	left := min(c.limit, time.Until(c.last))
	if c.timer.Stop() { // it has not ended
		c.until = time.Now().Add(left)
		c.timer.Reset(left)
	}
}

// cameIn returns what is to be called when something has come for work in ctx; nil if that is of no interest.
func cameIn(ctx context.Context) func() {
	if c, ok := ctx.Value(comingKey{}).(*coming); ok {
		return c.came
	}
	return nil
}
