package registry

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/layer"
)

// A listing, and all that is known without layers, moves no byte of one; a remount asks only what tags mean.
func TestListMovesNoLayer(t *testing.T) {
	srv := newServer(t)
	img := srv.image("web", "1", layer.Gzip, tarOf(t, "f", noise(1_000_000)), tarOf(t, "g", "x"))
	srv.image("web", "2", layer.Gzip, tarOf(t, "f", noise(100_000)))
	o := newSetup(t, srv.host+"/web")
	s := o.mustOpen(t)
	l := list(t, s)
	if n := len(srv.requests("GET /v2/web/blobs/")); n != 0 {
		t.Errorf("%d blobs were read for a listing", n)
	}
	for _, i := range l.Images {
		f, err := imgsrc.Load(t.Context(), i)
		if err != nil || f.ManifestErr != nil || f.ConfigErr != nil {
			t.Errorf("%v, %+v", err, f)
		}
		for n := range f.Layers {
			if i.Image.(*image).Local(n) {
				t.Errorf("layer %d is local", n)
			}
		}
	}
	m := named(t, s, srv.host+"/web:1")
	for _, bad := range []int{-1, 2} {
		if m.Local(bad) {
			t.Errorf("layer %d is local", bad)
		}
	}
	want := m.desc.Size + img.config.Size
	if got := m.Fetched(); got != want {
		t.Errorf("%d bytes were fetched, want %d", got, want)
	}
	// Of a layer that is not there, its root directory costs its beginning.
	files, err := m.Files(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer files.Close()
	if root, err := files.Root(t.Context()); err != nil || root == nil || root.Mode != 0o755 {
		t.Errorf("root: %+v, %v", root, err)
	}
	if got := m.Fetched() - want; got > 16<<10 {
		t.Errorf("the root directory cost %d bytes", got)
	}
	if m.Local(0) {
		t.Error("layer 0 is local")
	}
	if _, err := readDiff(t, m, 0); err != nil {
		t.Fatal(err)
	}
	if !m.Local(0) || m.Local(1) {
		t.Errorf("local: %v %v, want true and false", m.Local(0), m.Local(1))
	}
	if s.Fetched() < m.Fetched() || m.Fetched() < want+img.layers[0].Size {
		t.Errorf("fetched: %d in all, %d of the image", s.Fetched(), m.Fetched())
	}

	srv.requests("")
	s2 := o.mustOpen(t)
	m = named(t, s2, srv.host+"/web:1")
	if _, err := imgsrc.Load(t.Context(), m); err != nil {
		t.Error(err)
	}
	if !m.Local(0) {
		t.Error("layer 0 is not local any more")
	}
	for _, r := range srv.requests("") {
		if !strings.HasPrefix(r, "HEAD ") && !strings.HasSuffix(r, "/tags/list") && r != "GET /v2/" {
			t.Errorf("a remount asked %q", r)
		}
	}
	if n := s2.Fetched(); n != 0 {
		t.Errorf("a remount fetched %d bytes", n)
	}
}

// eventually waits for something to become true.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 1000 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("%s: not within ten seconds", what)
}

// Who leaves before a name is resolved takes nothing from those who wait for the same.
func TestResolveLeft(t *testing.T) {
	srv := newServer(t)
	srv.image("web", "1", layer.None, tarOf(t, "f", "1"))
	o := newSetup(t, srv.host)
	o.Asked = true
	s := o.mustOpen(t)
	asked, gate := make(chan struct{}, 100), make(chan struct{})
	srv.front(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		asked <- struct{}{}
		<-gate
		next.ServeHTTP(w, r)
	})
	ctx, cancel := context.WithCancel(t.Context())
	answers := make(chan error, 10)
	resolve := func(ctx context.Context) {
		_, err := s.Resolve(ctx, srv.host+"/web:1")
		answers <- err
	}
	go resolve(ctx)
	<-asked
	var ready sync.WaitGroup
	for range 9 {
		ready.Add(1)
		go func() {
			ready.Done()
			resolve(t.Context())
		}()
	}
	ready.Wait()
	cancel()
	if err := <-answers; !errors.Is(err, context.Canceled) {
		t.Errorf("who left: %v", err)
	}
	close(gate)
	for range 9 {
		if err := <-answers; err != nil {
			t.Errorf("who stayed: %v", err)
		}
	}
}

func TestMovedTag(t *testing.T) {
	srv := newServer(t)
	first := srv.image("web", "1", layer.None, tarOf(t, "f", "1"))
	o := newSetup(t, srv.host+"/web")
	o.test.every = 50 * time.Millisecond
	s := o.mustOpen(t)
	c := imgsrc.NewCatalog(o.Log, s)
	refresh := func() *imgsrc.Snapshot {
		snap, err := c.Refresh(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return snap
	}
	name := srv.host + "/web:1"
	if e := refresh().ByRemoteName(name); e == nil || e.First().Desc().Digest != first.Digest {
		t.Fatalf("%+v", e)
	}
	stamp := s.Stamp()
	time.Sleep(200 * time.Millisecond)
	if s.Stamp() != stamp {
		t.Error("the stamp has moved, and nothing else")
	}
	second := srv.image("web", "1", layer.None, tarOf(t, "f", "2"))
	eventually(t, "the tag moved", func() bool { return refresh().ByRemoteName(name).First().Desc().Digest == second.Digest })
	srv.image("web", "2", layer.None, tarOf(t, "f", "3"))
	eventually(t, "a tag is new", func() bool { return refresh().ByRemoteName(srv.host+"/web:2") != nil })
	srv.client().Ask(http.MethodDelete, "http://"+srv.host+"/v2/web/manifests/1", nil, nil, http.StatusAccepted)
	eventually(t, "a tag is gone", func() bool { return refresh().ByRemoteName(name) == nil })

	// A registry that is down changes nothing.
	stamp = s.Stamp()
	srv.front(func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		w.WriteHeader(http.StatusInternalServerError)
	})
	time.Sleep(100 * time.Millisecond)
	s.Stamp()
	time.Sleep(300 * time.Millisecond)
	if s.Stamp() != stamp || refresh().ByRemoteName(srv.host+"/web:2") == nil {
		t.Error("the listing has changed, because the registry is down")
	}
}

func TestWatch(t *testing.T) {
	srv := newServer(t)
	srv.image("web", "1", layer.None, tarOf(t, "f", "1"))
	o := newSetup(t, srv.host+"/web:1")
	o.test.every = 50 * time.Millisecond
	s := o.mustOpen(t)
	list(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	var calls atomic.Int32
	ended := make(chan error)
	go func() { ended <- s.Watch(ctx, func() { calls.Add(1) }) }()
	srv.requests("")
	time.Sleep(200 * time.Millisecond)
	if n := len(srv.requests("")); n != 0 {
		t.Errorf("%d requests, although nobody looks", n)
	}
	s.Stamp()
	srv.image("web", "1", layer.None, tarOf(t, "f", "2"))
	eventually(t, "the watch calls", func() bool { return calls.Load() > 0 })
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("the watch ended with %v", err)
	}
	if n := calls.Load(); n != 1 {
		t.Errorf("%d calls for one change", n)
	}
}

// Tags are asked about no more than once in the time that is set, however often anybody looks.
func TestAskedSeldom(t *testing.T) {
	srv := newServer(t)
	srv.image("web", "1", layer.None, tarOf(t))
	o := newSetup(t, srv.host+"/web:1")
	s := o.mustOpen(t)
	list(t, s)
	srv.requests("")
	for range 100 {
		s.Stamp()
		list(t, s)
	}
	if again := srv.requests(""); len(again) != 0 {
		t.Errorf("asked: %q", again)
	}
}
