package imgsrc

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"
)

// A look is a source that is asked for its stamp. Where its files are on a server that is away, a stat does not return, and
// must not hide what changes in other sources.
type look struct {
	round uint64 // for which it was begun
	began time.Time
	done  chan struct{} // closed when stamp is there
	stamp Stamp
	left  atomic.Bool // somebody has not waited for it
}

// startLooks begins a round, in which all sources are asked for their stamps that are not being asked and not being listed. It is
// called in a turn.
func (c *Catalog) startLooks() {
	c.round++
	for i := range c.sources {
		if c.looks[i] == nil && c.listings[i] == nil {
			c.looks[i] = c.look(i)
		}
	}
}

func (c *Catalog) look(i int) *look {
	l := &look{round: c.round, began: time.Now(), done: make(chan struct{})}
	if c.near[i] { // a goroutine costs more than the stamp
		l.stamp = stampOf(c.sources[i])
		close(l.done)
		return l
	}
	go func() {
		l.stamp = stampOf(c.sources[i])
		close(l.done)
		if late := c.late.Load(); l.left.Load() && late != nil {
			(*late)()
		}
	}()
	return l
}

// stampOf asks a source for its stamp. After a panic it is another than before, and listing the source says more.
func stampOf(src Source) (s Stamp) {
	defer func() {
		if r := recover(); r != nil {
			s = Stamp(fmt.Sprintf("panic: %v", r))
		}
	}()
	return src.Stamp()
}

// moved says whether a source is to be listed, at the stamp that it has. It is called in a turn, after startLooks. A source that
// does not answer is not: it is waited for once, and without bounds if it was never listed. Error: ctx's.
func (c *Catalog) moved(ctx context.Context, i int) (stamp Stamp, yes bool, err error) {
	for {
		l := c.looks[i]
		if there, err := l.wait(ctx, c.lists[i] == nil && c.failed[i] == nil); !there {
			return "", false, err
		}
		if c.looks[i] = nil; l.round == c.round {
			told := c.told[i].Swap(false)
			return l.stamp, c.lists[i] == nil || c.failed[i] != nil || c.stamps[i] != l.stamp || told, nil
		}
		c.looks[i] = c.look(i) // what changed since then is not in it
	}
}

// wait returns when the stamp is there, or is not to be waited for any longer.
func (l *look) wait(ctx context.Context, patient bool) (there bool, err error) {
	select {
	case <-l.done:
		return true, nil
	default:
	}
	var late <-chan time.Time
	if !patient {
		timer := time.NewTimer(time.Until(l.began.Add(minPatience)))
		defer timer.Stop()
		late = timer.C
	}
	select {
	case <-l.done:
		return true, nil
	case <-late:
	case <-ctx.Done():
	}
	l.left.Store(true)
	select {
	case <-l.done: // before anybody could know that he has to be told
		return true, nil
	default:
		return false, ctx.Err()
	}
}
