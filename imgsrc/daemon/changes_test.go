package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/imgfs/imgfs/imgsrc"
)

func TestTagIsUndone(t *testing.T) {
	f := newFake(t, three(t)...)
	s := openSource(t, Options{Host: f.host})
	before := s.names(t)
	f.fail["DELETE name"] = http.StatusConflict
	a := find(t, s, "docker.io/library/a:1").Desc()
	err := s.Tag(t.Context(), a, []string{"docker.io/library/b:1"}, []string{"quay.io/a/a:2"})
	if !errors.Is(err, imgsrc.ErrInUse) {
		t.Error(err)
	}
	if after := s.names(t); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("%v, want %v", after, before)
	}
	for _, names := range [][]string{{"docker.io/library/a:1", "quay.io/a/a:2"}, {"quay.io/a/a:2", "docker.io/library/a:1", "quay.io/a/a:2"}} {
		if err := s.Tag(t.Context(), a, nil, names); !errors.Is(err, imgsrc.ErrUnsupported) {
			t.Errorf("removing all names: %v", err)
		}
	}
	if err := s.Tag(t.Context(), a, []string{"web"}, nil); !errors.Is(err, imgsrc.ErrInvalid) {
		t.Errorf("a name that is not in full: %v", err)
	}
}

// names are all names, by id.
func (s *Source) names(t testing.TB) map[string][]string {
	t.Helper()
	l, err := s.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	names := map[string][]string{}
	for _, img := range l.Images {
		names[img.Desc().ID] = slices.Sorted(slices.Values(img.Names))
	}
	return names
}

func TestWatch(t *testing.T) {
	f := newFake(t, three(t)...)
	s := openSource(t, Options{Host: f.host})
	var fired atomic.Int32
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	var stampThen atomic.Int64
	go func() { ended <- s.Watch(ctx, func() { stampThen.Store(s.stamp.Load()); fired.Add(1) }) }()
	wait := func(what string, want int32) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); fired.Load() < want; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s: %d calls, want %d", what, fired.Load(), want)
			}
		}
		time.Sleep(3 * settle)
		if got := fired.Load(); got != want {
			t.Fatalf("%s: %d calls, want %d", what, got, want)
		}
	}
	wait("the beginning", 1)
	stamp := s.stamp.Load()
	for range 20 {
		f.tell("image", "tag")
	}
	wait("a burst", 2)
	if moved := stampThen.Load() - stamp; moved < 2 {
		t.Errorf("the stamp has moved %d times: not with an event, or not when they had settled", moved)
	}
	f.tell("image", "save")
	f.tell("container", "start")
	wait("what is in no listing", 2)
	f.tell("container", "destroy")
	wait("a container", 3)
	f.server.CloseClientConnections() // once for the end, once for the new beginning
	wait("a connection that ends", 5)
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// However long an engine was away, its return is seen within a second or two, and its absence told once.
func TestPatience(t *testing.T) {
	var p patience
	told := 0
	for range 100 { // an hour's outage: one that refuses, and one that takes the question and says nothing
		for _, followed := range []time.Duration{0, 10 * time.Second} {
			wait, first := p.after(followed)
			if wait <= 0 || wait > 2*time.Second {
				t.Fatalf("%v until it is asked again", wait)
			}
			if first {
				told++
			}
		}
	}
	if told != 1 {
		t.Errorf("told %d times", told)
	}
	if wait, first := p.after(time.Hour); wait != firstRetry || !first {
		t.Errorf("after an hour with the engine: %v, first %v", wait, first)
	}
}
