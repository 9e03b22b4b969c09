package imgsrc

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// hangingSource lists at once until it is told to hang, and then when it is released.
type hangingSource struct {
	fakeSource
	hang chan struct{} // guarded by mu; nil: it does not hang
}

func (s *hangingSource) List(ctx context.Context) (*Listing, error) {
	list, err := s.fakeSource.List(ctx)
	s.mu.Lock()
	hang := s.hang
	s.mu.Unlock()
	if hang != nil {
		<-hang
	}
	return list, err
}

func (s *hangingSource) setHang(c chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hang = c
}

// watch has a catalog watched until the test ends.
func watch(t *testing.T, c *Catalog, changed func()) {
	t.Helper()
	var watching sync.WaitGroup
	watching.Go(func() { c.Watch(t.Context(), changed) })
	t.Cleanup(watching.Wait) // the context has ended then
}

// watchIdly is how a source is watched that never says that something has changed.
func watchIdly(ctx context.Context, _ func()) error {
	<-ctx.Done()
	return nil
}

// What changes in one source shows while another does not answer; what that one says shows when it says it.
func TestRefreshBesideAHungSource(t *testing.T) { synctest.Test(t, testRefreshBesideAHungSource) }

func testRefreshBesideAHungSource(t *testing.T) {
	store, far := &fakeSource{name: "store"}, &hangingSource{fakeSource: fakeSource{name: "far"}}
	store.set(nil, listed("a"))
	far.set(nil, listed("x"))
	c := NewCatalog(slog.New(slog.DiscardHandler), store, far)
	refresh(t, c)
	told := make(chan *Snapshot, 10)
	far.watch = watchIdly
	watch(t, c, func() { told <- c.Snapshot() })

	hang := make(chan struct{})
	far.setHang(hang)
	far.set(nil, listed("y"))
	store.set(nil, listed("b"))
	began := time.Now()
	if s := refresh(t, c); ids(s) != "bx" {
		t.Errorf("images %s, want b at once and x as it was", ids(s))
	}
	if waited := time.Since(began); waited > minPatience {
		t.Errorf("waited for %v", waited)
	}
	began = time.Now()
	for _, id := range []string{"c", "d", "e"} {
		store.set(nil, listed(id))
		if s := refresh(t, c); ids(s) != id+"x" {
			t.Errorf("images %s, want %s and x", ids(s), id)
		}
	}
	if waited := time.Since(began); waited != 0 {
		t.Errorf("waited once more, for %v", waited)
	}
	if far.count() != 2 {
		t.Errorf("the source that hangs was listed %d times, want 2", far.count())
	}
	close(hang)
	synctest.Wait()
	if len(told) != 1 || ids(<-told) != "ey" {
		t.Error("nobody was told of what came late")
	}
	far.setHang(nil)
	far.set(nil, listed("z"))
	if s := refresh(t, c); ids(s) != "ez" {
		t.Errorf("images %s once it answers again", ids(s))
	}
}

// Whoever comes while a source is being listed sees what had changed before he came, not only what that listing had seen.
func TestRefreshJoins(t *testing.T) { synctest.Test(t, testRefreshJoins) }

func testRefreshJoins(t *testing.T) {
	src := &hangingSource{fakeSource: fakeSource{name: "a"}}
	src.set(nil, listed("a"))
	c := NewCatalog(slog.New(slog.DiscardHandler), src)
	refresh(t, c)
	hang := make(chan struct{})
	src.setHang(hang)
	src.set(nil, listed("b"))
	var all sync.WaitGroup
	all.Go(func() { refresh(t, c) })
	synctest.Wait() // the listing has seen b
	src.setHang(nil)
	src.set(nil, listed("c"))
	for range 3 {
		all.Go(func() {
			if s := refresh(t, c); ids(s) != "c" {
				t.Errorf("images %s", ids(s))
			}
		})
	}
	synctest.Wait()
	close(hang)
	all.Wait()
	if src.count() > 4 {
		t.Errorf("listed %d times", src.count())
	}
}

// A source that lists slowly, as a large one does, is waited for; the first listings are, however long they take.
func TestRefreshWaits(t *testing.T) { synctest.Test(t, testRefreshWaits) }

func testRefreshWaits(t *testing.T) {
	fast, slow := &fakeSource{name: "fast"}, &hangingSource{fakeSource: fakeSource{name: "slow"}}
	fast.set(nil, listed("a"))
	slow.set(nil, listed("x"))
	c := NewCatalog(slog.New(slog.DiscardHandler), fast, slow)
	take := func(d time.Duration) {
		hang := make(chan struct{})
		slow.setHang(hang)
		time.AfterFunc(d, func() { close(hang) })
	}
	take(time.Minute)
	if s := refresh(t, c); ids(s) != "ax" || s.Generation != 1 {
		t.Errorf("generation %d: %s", s.Generation, ids(s))
	}
	for i, d := range []time.Duration{900 * time.Millisecond, 2 * time.Second, 3 * time.Second} {
		id := string(rune('y' - i))
		slow.set(nil, listed(id))
		take(d)
		if s := refresh(t, c); ids(s) != "a"+id {
			t.Errorf("after %v: %s, want %s", d, ids(s), id)
		}
	}
}

// The failure of a listing that nobody has waited for is told to the next who asks.
func TestRefreshTellsLate(t *testing.T) { synctest.Test(t, testRefreshTellsLate) }

func testRefreshTellsLate(t *testing.T) {
	src := &hangingSource{fakeSource: fakeSource{name: "a"}}
	src.set(nil, listed("a"))
	c := NewCatalog(slog.New(slog.DiscardHandler), src)
	refresh(t, c)
	hang := make(chan struct{})
	src.setHang(hang)
	src.set(errors.New("no route"))
	refresh(t, c)
	close(hang)
	synctest.Wait()
	if s, err := c.Refresh(t.Context()); err == nil || ids(s) != "a" {
		t.Errorf("%s, %v", ids(s), err)
	}
	refresh(t, c)
}

// A name that would be two lines is said once in the log, with its source.
func TestOddNamesAreLogged(t *testing.T) {
	var log bytes.Buffer
	src := &fakeSource{name: "oci:/srv"}
	src.set(nil, listed("a", "one\ntwo", "plain"))
	c := NewCatalog(slog.New(slog.NewTextHandler(&log, nil)), src)
	refresh(t, c)
	if text := log.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, `one\ntwo`) || !strings.Contains(text, "oci:/srv") {
		t.Errorf("log: %s", text)
	}
}

// hangingStamp is a source whose files are on a server that is away, until it is released.
type hangingStamp struct {
	hangingSource
}

func (s *hangingStamp) Files() []string { return []string{"/no/such/server"} }

func (s *hangingStamp) Stamp() Stamp {
	stamp := s.fakeSource.Stamp()
	s.mu.Lock()
	hang := s.hang
	s.mu.Unlock()
	if hang != nil {
		<-hang
	}
	return stamp
}

// What changes in one source shows while the files of another cannot be looked at; what changed there shows when they can be.
func TestRefreshBesideAHungStamp(t *testing.T) { synctest.Test(t, testRefreshBesideAHungStamp) }

func testRefreshBesideAHungStamp(t *testing.T) {
	far, store := &hangingStamp{hangingSource{fakeSource: fakeSource{name: "far"}}}, &fakeSource{name: "store"}
	store.set(nil, listed("a"))
	far.set(nil, listed("x"))
	c := NewCatalog(slog.New(slog.DiscardHandler), far, store)
	refresh(t, c)
	told := make(chan bool, 10)
	far.watch, store.watch = watchIdly, watchIdly
	watch(t, c, func() { told <- true })

	hang := make(chan struct{})
	far.setHang(hang)
	began := time.Now()
	for _, id := range []string{"b", "c", "d"} {
		store.set(nil, listed(id))
		if s := refresh(t, c); ids(s) != id+"x" {
			t.Errorf("images %s, want %s and x as it was", ids(s), id)
		}
	}
	if waited := time.Since(began); waited > minPatience {
		t.Errorf("waited for %v, more than once", waited)
	}
	left, cancel := context.WithCancel(t.Context())
	cancel()
	if s, err := c.Refresh(left); !errors.Is(err, context.Canceled) || ids(s) != "dx" {
		t.Errorf("who leaves gets %s, %v", ids(s), err)
	}
	far.set(nil, listed("y")) // after the stat
	far.setHang(nil)
	close(hang)
	synctest.Wait()
	if len(told) != 1 {
		t.Errorf("told %d times of files that can be looked at again", len(told))
	}
	if s := refresh(t, c); ids(s) != "dy" {
		t.Errorf("images %s once it answers again", ids(s))
	}
}

// Files on a local file system are near, and so is what has no files; those of a FUSE or a kernel's own are not.
func TestIsNear(t *testing.T) {
	for dir, near := range map[string]bool{t.TempDir(): true, "/proc": false, "/no/such/server": false} {
		if got := isNear(placedSource{Placed: nil, dirs: []string{dir}}); got != near {
			t.Errorf("%s: near is %t", dir, got)
		}
	}
	if !isNear(&fakeSource{}) {
		t.Error("a source without files is not near")
	}
}

type placedSource struct {
	Placed
	dirs []string
}

func (s placedSource) Files() []string { return s.dirs }

// Whoever leaves while files cannot be looked at does so at once, also before anything was listed.
func TestRefreshLeavesAHungStamp(t *testing.T) { synctest.Test(t, testRefreshLeavesAHungStamp) }

func testRefreshLeavesAHungStamp(t *testing.T) {
	far := &hangingStamp{hangingSource{fakeSource: fakeSource{name: "far"}}}
	far.set(nil, listed("x"))
	hang := make(chan struct{})
	far.setHang(hang)
	c := NewCatalog(slog.New(slog.DiscardHandler), far)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := c.Refresh(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	far.setHang(nil)
	close(hang)
	if s := refresh(t, c); ids(s) != "x" {
		t.Errorf("images %s once it answers", ids(s))
	}
}

// What ends at the moment at which it is not waited for any longer is seen by whoever waited, or somebody is told of it.
func TestLeftAtTheEnd(t *testing.T) { synctest.Test(t, testLeftAtTheEnd) }

func testLeftAtTheEnd(t *testing.T) {
	far := &hangingStamp{hangingSource{fakeSource: fakeSource{name: "far"}}}
	far.set(nil, listed("x"))
	c := NewCatalog(slog.New(slog.DiscardHandler), far)
	refresh(t, c)
	var told atomic.Int64
	tell := func() { told.Add(1) }
	c.late.Store(&tell)
	for range 5000 {
		told.Store(0)
		hang := make(chan struct{})
		far.setHang(hang)
		l := c.look(0)
		l.began = time.Time{} // long ago
		synctest.Wait()
		go close(hang)
		there, err := l.wait(t.Context(), false)
		synctest.Wait()
		if err != nil || !there && told.Load() == 0 {
			t.Fatalf("nobody sees what was found out: %v", err)
		}
	}
}

// Of each listing that is under way when somebody leaves others are told when it comes.
func TestRefreshLeavesAll(t *testing.T) { synctest.Test(t, testRefreshLeavesAll) }

func testRefreshLeavesAll(t *testing.T) {
	a, b := &hangingSource{fakeSource: fakeSource{name: "a"}}, &hangingSource{fakeSource: fakeSource{name: "b"}}
	a.set(nil, listed("a"))
	b.set(nil, listed("b"))
	c := NewCatalog(slog.New(slog.DiscardHandler), a, b)
	refresh(t, c)
	told := make(chan string, 10)
	tell := func() { told <- ids(c.Snapshot()) }
	c.late.Store(&tell)
	hangs := map[*hangingSource]chan struct{}{a: make(chan struct{}), b: make(chan struct{})}
	for src, hang := range hangs {
		src.setHang(hang)
	}
	a.set(nil, listed("x"))
	b.set(nil, listed("y"))
	ctx, cancel := context.WithTimeout(t.Context(), minPatience/2)
	defer cancel()
	if _, err := c.Refresh(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	for _, step := range []struct {
		src  *hangingSource
		want string
	}{{a, "bx"}, {b, "xy"}} {
		close(hangs[step.src])
		synctest.Wait()
		select {
		case got := <-told:
			if got != step.want {
				t.Errorf("told of %s, want %s", got, step.want)
			}
		default:
			t.Errorf("nobody was told of %s", step.want)
		}
	}
}
