package daemon

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/client"
)

const (
	// recheck is how often a watch asks for itself: not every engine tells of every new image, and a connection can be
	// dead without ending.
	recheck = time.Minute
	// settle is how long to wait for more after an event before those hear of it who do not look: a build has many.
	settle = 50 * time.Millisecond
	// firstRetry and lastRetry are how long an engine that has gone is left alone: one that was restarted has changed, and that
	// is to be seen within a second or two. To ask whether it is there costs one connection.
	firstRetry, lastRetry = time.Second, 2 * time.Second
	// steady is how long events must have come for their end to be a new one, and not of the row before.
	steady = 30 * time.Second
)

// A patience says when to follow the events anew.
type patience struct{ retry time.Duration }

// after is told how long they were followed, and returns how long to wait, and whether this is the first end of a row.
func (p *patience) after(followed time.Duration) (wait time.Duration, first bool) {
	if followed > steady || p.retry == 0 {
		p.retry, first = firstRetry, true
	}
	wait = p.retry
	p.retry = min(2*p.retry, lastRetry)
	return wait, first
}

// Watch follows the engine's events, and follows them again when the engine comes back. It calls changed once when it is
// ready, for what has happened before, and when the engine has gone.
func (s *Source) Watch(ctx context.Context, changed func()) error {
	notify := func() {
		s.stamp.Add(1)
		changed()
	}
	var p patience
	for ctx.Err() == nil {
		began := time.Now()
		why := s.follow(ctx, notify)
		wait, first := p.after(time.Since(began))
		if first && ctx.Err() == nil {
			s.log.Warn("watching source", "source", s.Name(), "error", why)
			notify()
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
	}
	return nil
}

// errEventsEnded: the engine has closed the connection.
var errEventsEnded = errors.New("the engine's events have ended")

// Changed says that somebody has changed what the engine has: the next listing asks it, whether or not its events have come.
func (s *Source) Changed() { s.stamp.Add(1) }

// follow reads events until they end, and says why.
func (s *Source) follow(ctx context.Context, notify func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	slow := time.AfterFunc(s.engine.answer, cancel) // an engine that takes the question and says nothing
	stream := s.engine.api.Events(ctx, client.EventsListOptions{
		Filters: client.Filters{}.Add("type", string(events.ImageEventType), string(events.ContainerEventType)),
	})
	slow.Stop()
	select {
	case err := <-stream.Err:
		return s.ended(ctx, err)
	default:
	}
	notify()
	tick := time.NewTicker(recheck)
	defer tick.Stop()
	var settled <-chan time.Time // nil: nothing has happened
	for {
		select {
		case err := <-stream.Err:
			return s.ended(ctx, err)
		case e := <-stream.Messages:
			if !concerns(e) {
				continue
			}
			s.stamp.Add(1) // who looks before the events have settled sees what has happened so far
			if settled == nil {
				settled = time.After(settle)
			}
		case <-settled:
			settled = nil
			notify()
		case <-tick.C:
			moved, err := s.moved(ctx)
			if err != nil {
				return err
			}
			if moved {
				notify()
			}
		}
	}
}

func (s *Source) ended(ctx context.Context, err error) error {
	if err == nil {
		err = errEventsEnded
	}
	return fmt.Errorf("following events: %w", s.engine.explain(ctx, err))
}

// concerns says whether something that happened may be seen in a listing.
func concerns(e events.Message) bool {
	switch e.Type {
	case events.ImageEventType:
		return e.Action != events.ActionSave && e.Action != events.ActionPush
	case events.ContainerEventType:
		switch e.Action {
		case events.ActionCreate, events.ActionDestroy, events.ActionCommit, events.ActionPrune:
			return true
		}
	}
	return false
}

// moved says whether the engine lists something else than it did when this source was last listed.
func (s *Source) moved(ctx context.Context) (bool, error) {
	st, err := s.ask(ctx)
	if err != nil {
		return false, err
	}
	was := s.listedAs.Load()
	return was == nil || *was != st.print(), nil
}
