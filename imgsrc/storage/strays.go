package storage

import (
	"context"
	"errors"
	"slices"
	"syscall"
	"time"

	cs "go.podman.io/storage"
)

// strayAge is how long the layers of an image that did not come are kept.
const strayAge = 10 * time.Minute

// closeStrays is how long Close waits for a store that another process has locked.
const closeStrays = 5 * time.Second

// Strays are the layers that were made for images which then did not come. They are not removed at once: another process
// that is pulling the same layers may have seen them, and count on them (a store does not tell what others are about to
// use; podman's pull fails if a layer goes that it found), and the next try has them already. They go after strayAge,
// when the source is closed, and at once where the disk is full; those that an image or a container has by then stay.
type strays struct {
	age    time.Duration
	remove func(ids []string)

	turn      chan struct{} // holds one element while somebody uses what follows, or removes
	receiving int           // how many images are being received: they may build on the layers
	layers    []stray       // a parent before its children
	timer     *time.Timer
}

type stray struct {
	id    string
	until time.Time
}

func newStrays(age time.Duration, remove func(ids []string)) *strays {
	return &strays{age: age, remove: remove, turn: make(chan struct{}, 1)}
}

// begin says that an image is going to be received. It waits while layers are removed, which another process may hold up
// that has the store locked.
func (s *strays) begin(ctx context.Context) error {
	select {
	case s.turn <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	s.receiving++
	<-s.turn
	return nil
}

// end says that it came, or that it did not and what was made for it.
func (s *strays) end(made []string, err error) {
	s.turn <- struct{}{}
	defer func() { <-s.turn }()
	s.receiving--
	now := time.Now()
	if err != nil {
		for _, id := range made {
			s.layers = append(s.layers, stray{id, now.Add(s.age)})
		}
	}
	if errors.Is(err, syscall.ENOSPC) {
		for i := range s.layers {
			s.layers[i].until = now
		}
	}
	s.sweep(now)
}

// sweep removes the layers whose time is over, unless images are being received. It has the turn, so that none begins
// meanwhile.
func (s *strays) sweep(now time.Time) {
	if s.timer != nil {
		s.timer.Stop()
		s.timer = nil
	}
	if s.receiving > 0 || len(s.layers) == 0 {
		return
	}
	var over []string
	s.layers = slices.DeleteFunc(s.layers, func(l stray) bool {
		if l.until.After(now) {
			return false
		}
		over = append(over, l.id)
		return true
	})
	if len(over) > 0 {
		s.remove(over)
	}
	if len(s.layers) > 0 {
		s.timer = time.AfterFunc(s.layers[0].until.Sub(now), func() {
			s.turn <- struct{}{}
			defer func() { <-s.turn }()
			s.sweep(time.Now())
		})
	}
}

// close removes them all, and waits for it, but not for ever.
func (s *strays) close() {
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.turn <- struct{}{}
		defer func() { <-s.turn }()
		for i := range s.layers {
			s.layers[i].until = time.Time{}
		}
		s.sweep(time.Now())
	}()
	select {
	case <-done:
	case <-time.After(closeStrays):
	}
}

// removeStrays removes layers that no image and no container has; the library refuses for the others.
func (s *Source) removeStrays(ids []string) {
	if s.writer != nil {
		ctx, cancel := context.WithTimeout(context.Background(), closeStrays)
		defer cancel()
		if err := s.writer.call(ctx, methodRemoveLayers, ids, nil); err != nil {
			s.log.Warn("removing layers of images that did not come", "source", s.Name(), "error", err)
		}
		return
	}
	store, err := s.openReal()
	if err != nil {
		s.log.Warn("removing layers of images that did not come", "source", s.Name(), "error", err)
		return
	}
	removeLayers(store, ids)
}

// removeLayers removes layers. Parents come before their children.
func removeLayers(store cs.Store, ids []string) {
	for _, id := range slices.Backward(ids) {
		_ = store.DeleteLayer(id)
	}
}
