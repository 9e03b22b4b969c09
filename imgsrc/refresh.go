package imgsrc

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Sources are listed side by side, and what one says is in the catalog as soon as it has said it: a registry or an engine that
// does not answer must not hide what changes in a store.

// Refresh waits for a source's listing three times as long as the last one took, but within these bounds. What comes later
// is in the catalog when it comes.
const (
	minPatience = time.Second
	maxPatience = 4 * time.Second
)

// A listing is one that is under way.
type listing struct {
	source int
	stamp  Stamp // taken before it: a change in between is seen at the next Refresh
	began  time.Time
	done   chan struct{} // closed when what it says is in the catalog
	left   atomic.Bool   // somebody has not waited for it
}

// Refresh looks at the sources' stamps, lists those that have moved, and returns the current snapshot: the one that
// there was if nothing changed. It waits until each source has been listed for the first time, and for later listings as
// long as they usually take: the one of a source that does not answer is in a later snapshot. When ctx ends first it returns
// the current snapshot with ctx's error; the listing goes on for the next who asks. A source that cannot be listed keeps
// its last listing, and is asked again at the next Refresh; its error is returned beside the snapshot, once for each stamp.
func (c *Catalog) Refresh(ctx context.Context) (*Snapshot, error) {
	if err := c.take(ctx); err != nil {
		return c.current.Load(), err
	}
	var waits, joined []*listing
	c.startLooks()
	for i, l := range c.listings {
		if l != nil {
			waits, joined = append(waits, l), append(joined, l)
			continue
		}
		stamp, yes, err := c.moved(ctx, i)
		if err != nil {
			c.release()
			return c.leave(waits, err)
		}
		if yes {
			waits = append(waits, c.list(ctx, i, stamp))
		}
	}
	if len(waits) == 0 {
		defer c.release()
		return c.current.Load(), c.errors()
	}
	patience := slices.Clone(c.took)
	for i, list := range c.lists {
		if patience[i] = min(max(3*patience[i], minPatience), maxPatience); list == nil && c.failed[i] == nil {
			patience[i] = -1
		}
	}
	c.release()
	for _, l := range waits {
		if err := l.wait(ctx, patience[l.source]); err != nil {
			return c.leave(waits, err)
		}
	}
	if err := c.take(ctx); err != nil {
		return c.current.Load(), err
	}
	// What changed before this call may not be in a listing that had begun before it.
	waits = nil
	if len(joined) > 0 {
		c.startLooks()
	}
	for _, l := range joined {
		i := l.source
		switch next := c.listings[i]; {
		case next == l: // not waited for
		case next != nil:
			waits = append(waits, next)
		case c.failed[i] == nil:
			stamp, yes, err := c.moved(ctx, i)
			if err != nil {
				c.release()
				return c.leave(waits, err)
			}
			if yes {
				waits = append(waits, c.list(ctx, i, stamp))
			}
		}
	}
	c.release()
	for _, l := range waits {
		if err := l.wait(ctx, max(patience[l.source], minPatience)); err != nil {
			return c.leave(waits, err)
		}
	}
	if err := c.take(ctx); err != nil {
		return c.current.Load(), err
	}
	defer c.release()
	return c.current.Load(), c.errors()
}

func (c *Catalog) take(ctx context.Context) error {
	select {
	case c.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *Catalog) release() { <-c.turn }

// errors are what nobody has been told yet. It is called in a turn, as list and publish are.
func (c *Catalog) errors() error {
	errs := c.errs
	c.errs = nil
	return errors.Join(errs...)
}

// wait returns when a listing has ended or is not to be waited for any longer; without bounds if patience is negative.
func (l *listing) wait(ctx context.Context, patience time.Duration) error {
	var late <-chan time.Time
	if patience >= 0 {
		timer := time.NewTimer(time.Until(l.began.Add(patience)))
		defer timer.Stop()
		late = timer.C
	}
	select {
	case <-l.done:
		return nil
	case <-late:
	case <-ctx.Done():
	}
	l.left.Store(true)
	select {
	case <-l.done: // before anybody could know that he has to be told
		return nil
	default:
		return ctx.Err()
	}
}

// leave returns the current snapshot, with an error, to somebody who waits for no listing any longer. What those say is in it, or
// somebody is told of it.
func (c *Catalog) leave(waits []*listing, err error) (*Snapshot, error) {
	for _, l := range waits {
		l.left.Store(true)
	}
	return c.current.Load(), err
}

// list begins to list a source.
func (c *Catalog) list(ctx context.Context, i int, stamp Stamp) *listing {
	l := &listing{source: i, stamp: stamp, began: time.Now(), done: make(chan struct{})}
	c.listings[i] = l
	go func() {
		list, err := listOf(context.WithoutCancel(ctx), c.sources[i])
		c.turn <- struct{}{}
		news := c.ended(l, list, err)
		c.release()
		close(l.done)
		if late := c.late.Load(); news && l.left.Load() && late != nil {
			(*late)()
		}
	}()
	return l
}

// ended takes the result of a listing, and says whether there is a new snapshot.
func (c *Catalog) ended(l *listing, list *Listing, err error) (news bool) {
	i, src := l.source, c.sources[l.source]
	c.listings[i] = nil
	if err != nil {
		if c.failed[i] == nil || *c.failed[i] != l.stamp {
			c.errs = append(c.errs, err)
		}
		c.failed[i] = &l.stamp
		return c.current.Load().Generation == 0 && c.publish()
	}
	for _, p := range list.Problems {
		c.log.Warn("listing image", "source", src.Name(), "error", p)
	}
	for _, img := range list.Images {
		for _, name := range slices.Concat(img.Names, img.RemoteNames) {
			if !IsPrintable(name) {
				c.log.Warn("listing image: a name with control characters is in no list of names", "source", src.Name(), "image", img.Desc().ID, "name", name)
			}
		}
	}
	c.stamps[i], c.lists[i], c.failed[i], c.took[i] = l.stamp, list, nil, time.Since(l.began)
	return c.publish()
}

// publish makes the new snapshot. The first one is not made before each source has been asked.
func (c *Catalog) publish() bool {
	any := false
	for i, list := range c.lists {
		if list == nil && c.failed[i] == nil {
			return false
		}
		any = any || list != nil
	}
	if !any {
		return false
	}
	s := c.merge()
	if c.changed != nil {
		c.changed(s)
	}
	c.current.Store(s)
	return true
}

// listOf lists a source. A panic there costs this listing and not the program, as nobody above could catch it.
func listOf(ctx context.Context, src Source) (list *Listing, err error) {
	defer func() {
		if r := recover(); r != nil {
			list, err = nil, fmt.Errorf("listing %s: panic: %v", src.Name(), r)
		}
	}()
	return src.List(ctx)
}

// Watch watches all the sources and calls changed after each change, until ctx ends; also when a source has been listed for
// which Refresh has not waited. Sources that cannot be watched are logged and left to Refresh.
func (c *Catalog) Watch(ctx context.Context, changed func()) {
	var wg sync.WaitGroup
	c.late.Store(&changed)
	defer c.late.CompareAndSwap(&changed, nil)
	for i, src := range c.sources {
		told := func() {
			c.told[i].Store(true)
			changed()
		}
		wg.Go(func() {
			if err := src.Watch(ctx, told); err != nil && ctx.Err() == nil {
				c.log.Warn("watching source", "source", src.Name(), "error", err)
			}
		})
	}
	wg.Wait()
}
