package imgsrc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// fakeSource is a source made of a listing and a stamp that tests set.
type fakeSource struct {
	name  string
	watch func(ctx context.Context, changed func()) error

	mu    sync.Mutex
	list  Listing
	err   error
	stamp Stamp
	lists int // how often List was called
}

func (s *fakeSource) Name() string { return s.name }
func (s *fakeSource) Close() error { return nil }

func (s *fakeSource) List(ctx context.Context) (*Listing, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lists++
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if s.err != nil {
		return nil, fmt.Errorf("listing %s: %w", s.name, s.err)
	}
	list := s.list
	return &list, nil
}

func (s *fakeSource) Stamp() Stamp {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stamp
}

func (s *fakeSource) Watch(ctx context.Context, changed func()) error {
	if s.watch == nil {
		return fmt.Errorf("watching %s: %w", s.name, ErrUnsupported)
	}
	return s.watch(ctx, changed)
}

// set changes what the source has, and its stamp.
func (s *fakeSource) set(err error, images ...Listed) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.list.Images, s.err = images, err
	s.stamp += "."
}

func (s *fakeSource) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lists
}

// listed is an image whose id is c, 64 times.
func listed(c string, names ...string) Listed {
	return Listed{Image: &fakeImage{desc: Desc{ID: strings.Repeat(c, 64)}}, Names: names}
}

func ids(s *Snapshot) string {
	var b strings.Builder
	for _, e := range s.Entries {
		b.WriteString(e.ID[:1])
	}
	return b.String()
}

func refresh(t *testing.T, c *Catalog) *Snapshot {
	t.Helper()
	s, err := c.Refresh(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestCatalogMerge(t *testing.T) {
	now := time.Date(2024, 2, 29, 0, 0, 0, 0, time.UTC)
	first := &fakeSource{name: "first", list: Listing{ModTime: now}}
	second := &fakeSource{name: "second", list: Listing{ModTime: now.Add(time.Hour)}}
	first.set(nil, listed("c", "h.io/c:1", "both"), listed("a"), listed("c", "again", "h.io/c:1"))
	second.set(nil, listed("b", "both", "h.io/b:1"), listed("c", "elsewhere"))
	c := NewCatalog(slog.New(slog.DiscardHandler), first, second)
	if s := c.Snapshot(); s.Generation != 0 || len(s.Entries) != 0 || s.ByID("x") != nil || s.ByName("x") != nil || s.ByPrefix("a") != nil {
		t.Errorf("before the first Refresh: %+v", s)
	}
	s := refresh(t, c)
	if s != c.Snapshot() || s.Generation != 1 || ids(s) != "abc" {
		t.Errorf("generation %d, images %s", s.Generation, ids(s))
	}
	if !s.ModTime.Equal(now.Add(time.Hour)) {
		t.Errorf("ModTime = %v", s.ModTime)
	}
	e := s.ByID(strings.Repeat("c", 64))
	if e == nil || len(e.Held) != 3 || e.First().Source != Source(first) || e.Held[2].Source != Source(second) {
		t.Fatalf("c is held as %+v", e)
	}
	if want := []string{"h.io/c:1", "both", "again", "elsewhere"}; !slices.Equal(e.Names, want) {
		t.Errorf("names of c: %q, want %q", e.Names, want)
	}
	if b := s.ByName("h.io/b:1"); b == nil || b.ID[0] != 'b' || slices.Contains(b.Names, "both") {
		t.Errorf("b = %+v", b)
	}
	if s.ByName("both") != e {
		t.Error("a name that two images claim belongs to the first")
	}
	if s.ByName("none") != nil || s.ByID("none") != nil {
		t.Error("found what is not there")
	}
	var names []string
	s.EachName(func(name string, e *Entry) { names = append(names, name+"="+e.ID[:1]) })
	slices.Sort(names)
	if want := []string{"again=c", "both=c", "elsewhere=c", "h.io/b:1=b", "h.io/c:1=c"}; !slices.Equal(names, want) {
		t.Errorf("EachName: %q", names)
	}
}

func TestCatalogByPrefix(t *testing.T) {
	src := &fakeSource{name: "src"}
	img := func(id string) Listed {
		return Listed{Image: &fakeImage{desc: Desc{ID: id + strings.Repeat("0", 64-len(id))}}}
	}
	src.set(nil, img("abc1"), img("abc2"), img("b"), img("ff"))
	c := NewCatalog(slog.New(slog.DiscardHandler), src)
	s := refresh(t, c)
	for prefix, want := range map[string]string{
		"abc1": "abc1", "abc2": "abc2", "abc": "", "a": "", "b": "b", "b0": "b", "b1": "", "f": "ff", "fff": "", "0": "", "g": "", "": "",
		"ff" + strings.Repeat("0", 62): "ff", "ff" + strings.Repeat("0", 63): "",
	} {
		e := s.ByPrefix(prefix)
		if (e == nil) != (want == "") || e != nil && !strings.HasPrefix(e.ID, want) {
			t.Errorf("ByPrefix(%q) = %+v, want %q", prefix, e, want)
		}
	}
}

func TestCatalogRefresh(t *testing.T) {
	var log bytes.Buffer
	still, moving := &fakeSource{name: "still"}, &fakeSource{name: "moving"}
	still.set(nil, listed("a"))
	moving.set(nil, listed("b"))
	c := NewCatalog(slog.New(slog.NewTextHandler(&log, nil)), still, moving)
	s1 := refresh(t, c)
	if s2 := refresh(t, c); s2 != s1 {
		t.Error("a new snapshot, though nothing has changed")
	}
	moving.set(nil, listed("c"))
	s3 := refresh(t, c)
	if s3.Generation != s1.Generation+1 || ids(s3) != "ac" {
		t.Errorf("generation %d: %s", s3.Generation, ids(s3))
	}
	if ids(s1) != "ab" {
		t.Error("the earlier snapshot has changed")
	}
	if still.count() != 1 || moving.count() != 2 {
		t.Errorf("listed %d and %d times", still.count(), moving.count())
	}

	// A source that cannot be listed keeps what it had, and says so once.
	moving.set(fmt.Errorf("reading index.json: %w", ErrDamaged))
	still.set(nil, listed("a"), listed("d"))
	s4, err := c.Refresh(t.Context())
	if !errors.Is(err, ErrDamaged) || strings.Count(err.Error(), "listing moving") != 1 {
		t.Errorf("Refresh: %v", err)
	}
	if ids(s4) != "acd" {
		t.Errorf("images %s", ids(s4))
	}
	if s5 := refresh(t, c); s5 != s4 {
		t.Error("a new snapshot for the same failure")
	}
	moving.set(nil, listed("e"))
	if s := refresh(t, c); ids(s) != "ade" {
		t.Errorf("after the source came back: %s", ids(s))
	}

	// Entries that are no images are logged, with their source.
	moving.mu.Lock()
	moving.list.Problems = []error{errors.New("entry 7 has no digest")}
	moving.mu.Unlock()
	moving.set(nil)
	refresh(t, c)
	if !strings.Contains(log.String(), "entry 7 has no digest") || !strings.Contains(log.String(), "moving") {
		t.Errorf("log: %s", log.String())
	}
}

// TestCatalogRefreshCancelled: a reader that leaves must not make the change it would have seen invisible.
func TestCatalogRefreshCancelled(t *testing.T) {
	src := &fakeSource{name: "src"}
	src.set(nil, listed("a"))
	c := NewCatalog(slog.New(slog.DiscardHandler), src)
	refresh(t, c)
	src.set(nil, listed("b"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if s, err := c.Refresh(ctx); !errors.Is(err, context.Canceled) || ids(s) != "a" {
		t.Errorf("Refresh = %s, %v", ids(s), err)
	}
	if s := refresh(t, c); ids(s) != "b" {
		t.Errorf("images %s", ids(s))
	}
}

func TestCatalogConcurrent(t *testing.T) {
	src := &fakeSource{name: "src"}
	src.set(nil, listed("a", "n"))
	c := NewCatalog(slog.New(slog.DiscardHandler), src)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				s, err := c.Refresh(t.Context())
				if err != nil || s.ByName("n") == nil || s.ByPrefix("a") == nil {
					t.Errorf("Refresh = %+v, %v", s, err)
					return
				}
				src.set(nil, listed("a", "n"))
			}
		})
	}
	wg.Wait()
}

// lineWriter passes on each line of a log.
type lineWriter chan string

func (w lineWriter) Write(p []byte) (int, error) {
	w <- string(p)
	return len(p), nil
}

func TestCatalogWatch(t *testing.T) {
	log := make(lineWriter, 10)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	watched := &fakeSource{name: "watched", watch: func(ctx context.Context, changed func()) error {
		changed()
		<-ctx.Done()
		return nil
	}}
	c := NewCatalog(slog.New(slog.NewTextHandler(log, nil)), &fakeSource{name: "other"}, watched)
	changed := make(chan struct{}, 1)
	var wg sync.WaitGroup
	wg.Go(func() { c.Watch(ctx, func() { changed <- struct{}{} }) })
	<-changed
	if line := <-log; !strings.Contains(line, "source=other") || !strings.Contains(line, "not supported") {
		t.Errorf("log: %s", line)
	}
	cancel()
	wg.Wait() // Watch returns when ctx ends
	if len(log) != 0 {
		t.Errorf("log: %s", <-log)
	}
}

// A source that cannot tell by its stamp relies on its watch.
func TestCatalogWatchWithoutStamp(t *testing.T) {
	src := &fakeSource{name: "a", list: Listing{Images: []Listed{listed("a")}}}
	seen := make(chan struct{})
	src.watch = func(ctx context.Context, changed func()) error {
		src.mu.Lock()
		src.list.Images = []Listed{listed("b")}
		src.mu.Unlock()
		changed()
		<-ctx.Done()
		return nil
	}
	c := NewCatalog(slog.New(slog.DiscardHandler), src)
	if _, err := c.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	go c.Watch(t.Context(), func() { close(seen) })
	<-seen
	s, err := c.Refresh(t.Context())
	if err != nil || ids(s) != "b" {
		t.Errorf("%s, %v", ids(s), err)
	}
}

// Each source's failure is told once for each stamp, and a listing that fails is tried again.
func TestCatalogFailures(t *testing.T) {
	a, b := &fakeSource{name: "a", err: errors.New("a is broken")}, &fakeSource{name: "b", list: Listing{Images: []Listed{listed("b")}}}
	c := NewCatalog(slog.New(slog.DiscardHandler), a, b)
	refresh := func(want string, told ...string) {
		t.Helper()
		s, err := c.Refresh(t.Context())
		text := fmt.Sprint(err)
		if ids(s) != want || (err != nil) != (len(told) > 0) {
			t.Errorf("%q, %v; want %q, %q", ids(s), err, want, told)
		}
		for _, one := range told {
			if strings.Count(text, one) != 1 {
				t.Errorf("%q does not tell %q once", text, one)
			}
		}
	}
	refresh("b", "a is broken")
	refresh("b")
	b.set(errors.New("b is broken"))
	a.set(errors.New("a is broken again"))
	refresh("b", "a is broken again", "b is broken")
	refresh("b")
	a.mu.Lock()
	a.err, a.list.Images = nil, []Listed{listed("a")} // what was wrong passes, and no stamp moves
	a.mu.Unlock()
	refresh("ab")
}

// A reader that leaves neither waits for a listing nor ends it for the others.
func TestCatalogListingOutlivesItsReader(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	src := &slowSource{fakeSource: fakeSource{name: "a", list: Listing{Images: []Listed{listed("a")}}}, entered: entered, release: release}
	c := NewCatalog(slog.New(slog.DiscardHandler), src)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		_, err := c.Refresh(ctx)
		done <- err
	}()
	<-entered
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("the reader that left: %v", err)
	}
	close(release)
	s, err := c.Refresh(t.Context())
	if err != nil || ids(s) != "a" || src.count() != 1 {
		t.Errorf("%q, %v, listed %d times", ids(s), err, src.count())
	}
}

// slowSource lists when it is released.
type slowSource struct {
	fakeSource
	entered, release chan struct{}
}

func (s *slowSource) List(ctx context.Context) (*Listing, error) {
	close(s.entered)
	<-s.release
	return s.fakeSource.List(ctx)
}

// panicking is a source that cannot list without a panic.
type panicking struct{ Source }

func (panicking) Name() string                           { return "panicking:" }
func (panicking) Stamp() Stamp                           { return "" }
func (panicking) List(context.Context) (*Listing, error) { panic("nil map") }

// Each of these sources lists when the other one has begun to.
func TestCatalogListsTogether(t *testing.T) {
	var begun sync.WaitGroup
	begun.Add(2)
	c := NewCatalog(slog.New(slog.DiscardHandler), &meetingSource{fakeSource: fakeSource{name: "a"}, begun: &begun}, &meetingSource{fakeSource: fakeSource{name: "b"}, begun: &begun})
	if _, err := c.Refresh(t.Context()); err != nil {
		t.Error(err)
	}
}

type meetingSource struct {
	fakeSource
	begun *sync.WaitGroup
}

func (s *meetingSource) List(ctx context.Context) (*Listing, error) {
	s.begun.Done()
	s.begun.Wait()
	return s.fakeSource.List(ctx)
}

func TestListPanic(t *testing.T) {
	c := NewCatalog(slog.New(slog.DiscardHandler), panicking{})
	if s, err := c.Refresh(t.Context()); err == nil || !strings.Contains(err.Error(), "nil map") || len(s.Entries) != 0 {
		t.Errorf("%v, %v", s.Entries, err)
	}
}
