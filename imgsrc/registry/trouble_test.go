package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/flight"
	"github.com/imgfs/imgfs/imgsrc/layer"
)

func TestTrouble(t *testing.T) { synctest.Test(t, testTrouble) }

func testTrouble(t *testing.T) {
	var r trouble
	const limit = time.Second
	want := func(when string, once bool, wait time.Duration, fails bool) {
		t.Helper()
		if o, got, err := r.begin(limit); o != once || got != wait || (err != nil) != fails || fails && !errors.Is(err, syscall.ETIMEDOUT) {
			t.Errorf("%s: %v, %s, %v", when, o, got, err)
		}
	}
	late := &failure{text: "late", condition: syscall.ETIMEDOUT}
	ill := &failure{text: "ill", status: http.StatusBadGateway, temporary: true}
	want("at first", false, 0, false)
	r.end(ill, time.Now())
	want("after an answer of trouble", true, 0, false)
	r.end(ill, time.Now())
	r.end(ill, time.Now())
	want("after three", true, 0, false)
	r.end(&failure{status: http.StatusNotFound, condition: imgsrc.ErrNotFound}, time.Now())
	want("after an answer", false, 0, false)
	for range maxSilent - 1 {
		r.end(late, time.Now().Add(-5*time.Second))
		want("after one without", true, limit, false)
	}
	r.end(late, time.Now())
	want("after three without", false, 0, true)
	time.Sleep(5*time.Second + time.Nanosecond)
	want("as long after as it took", false, 0, false)
	r.end(late, time.Now())
	want("after another one", true, limit, false)
	r.end(context.Canceled, time.Now())
	want("after one that nobody waited for", true, limit, false)
	r.end(late, time.Now())
	r.end(&failure{text: "cut", temporary: true}, time.Now())
	want("after a connection that broke", true, limit, false)
	r.end(ill, time.Now())
	want("after an answer of trouble in between", true, 0, false)
	r.end(late, time.Now())
	want("after one more without", true, limit, false)
	r.end(nil, time.Now())
	want("when it is well", false, 0, false)
}

// What somebody waits for is not waited for longer than a document may take, whatever the registry asks for; who copies has more time.
func TestAskedToWait(t *testing.T) {
	srv := newServer(t)
	big(t, srv)
	srv.front(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.Contains(r.URL.Path, "/manifests/") {
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		next.ServeHTTP(w, r)
	})
	o := newSetup(t, srv.host)
	o.test.limits.document, o.test.limits.attempts = 500*time.Millisecond, 2
	o.configure(t)
	for patient, want := range map[bool]int{false: 1, true: 2} {
		c := newClient(srv.host, o.Options, nil)
		c.patient = patient
		srv.requests("")
		if _, err := c.Head(t.Context(), "big", "1"); err == nil || !strings.Contains(err.Error(), "503") {
			t.Error(err)
		}
		if n := len(srv.requests("HEAD")); n != want {
			t.Errorf("patient %v: it was asked %d times, want %d", patient, n, want)
		}
		c.Close()
	}
}

// A config that comes slowly is waited for, unless it stops coming.
func TestSlowConfig(t *testing.T) {
	for name, stops := range map[string]bool{"comes": false, "stops": true} {
		t.Run(name, func(t *testing.T) {
			srv := newServer(t)
			big(t, srv)
			o := newSetup(t, srv.host+"/big:1")
			o.test.limits.document = time.Second
			m := named(t, o.mustOpen(t), o.Ref)
			srv.front(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if !strings.Contains(r.URL.Path, "/blobs/") {
					next.ServeHTTP(w, r)
					return
				}
				answer := httptest.NewRecorder()
				next.ServeHTTP(answer, r)
				for n, b := range bytes.SplitAfter(answer.Body.Bytes(), []byte(",")) {
					if stops && n == 4 {
						<-r.Context().Done()
						return
					}
					_, _ = w.Write(b)
					w.(http.Flusher).Flush()
					select {
					case <-r.Context().Done():
						return
					case <-time.After(o.test.limits.document / 4):
					}
				}
			})
			b, err := m.Config(t.Context())
			if stops && !errors.Is(err, syscall.ETIMEDOUT) || !stops && (err != nil || digest.FromBytes(b) != m.desc.Config) {
				t.Errorf("%d bytes, %v", len(b), err)
			}
		})
	}
}

// A config of which the registry says nothing is waited for once, by all; and asked for anew when that is a moment ago.
func TestSilentConfig(t *testing.T) {
	srv := newServer(t)
	img := big(t, srv)
	_, m, _ := openBig(t, srv)
	srv.front(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.Contains(r.URL.Path, "/blobs/") {
			<-r.Context().Done()
			return
		}
		next.ServeHTTP(w, r)
	})
	config := fmt.Sprintf("GET /v2/big/blobs/%s", m.desc.Config)
	var readers sync.WaitGroup
	for range 5 {
		readers.Go(func() {
			if _, err := m.Config(t.Context()); !errors.Is(err, syscall.ETIMEDOUT) {
				t.Error(err)
			}
			if _, err := m.Files(t.Context(), 0); !errors.Is(err, syscall.ETIMEDOUT) {
				t.Error(err)
			}
		})
	}
	readers.Wait()
	if n := len(srv.requests(config)); n != 1 {
		t.Errorf("it was asked for %d times", n)
	}
	if _, err := m.Manifest(t.Context()); err != nil {
		t.Error(err)
	}
	srv.front(nil)
	forget(m)
	if b, err := m.Config(t.Context()); err != nil || digest.FromBytes(b) != m.desc.Config {
		t.Error(err)
	}
	wantBlob(t, m, img)
}

// A registry that has lost its blobs is not asked for each as often as for the first.
func TestLostBlobs(t *testing.T) {
	srv := newServer(t)
	var tars [][]byte
	for n := range 20 {
		tars = append(tars, tarOf(t, "f", fmt.Sprint(n)))
	}
	img := srv.image("many", "1", layer.Gzip, tars...)
	o := newSetup(t, srv.host+"/many:1")
	m := named(t, o.mustOpen(t), srv.host+"/many:1")
	srv.front(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.Contains(r.URL.Path, "/blobs/") {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		next.ServeHTTP(w, r)
	})
	srv.requests("")
	for _, l := range img.layers {
		if _, err := readBlob(t, m, l.Digest); err == nil {
			t.Error("a blob was read")
		}
	}
	if n := len(srv.requests("GET /v2/many/blobs/")); n != quick.attempts+len(img.layers)-1 {
		t.Errorf("%d requests", n)
	}
	srv.front(nil)
	for n := range img.layers { // at once
		if _, err := readBlob(t, m, img.layers[n].Digest); err != nil {
			t.Error(err)
		}
	}
}

// A registry that answers slowly gives out its layers also when it has just answered that it cannot for one of them.
func TestSlowBesideIll(t *testing.T) {
	srv := newServer(t)
	img := srv.image("slow", "1", layer.Gzip, tarOf(t, "f", "lost"), tarOf(t, "f", "a"), tarOf(t, "f", "b"))
	o := newSetup(t, srv.host+"/slow:1")
	o.test.limits.stall = time.Minute
	m := named(t, o.mustOpen(t), srv.host+"/slow:1")
	srv.front(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		switch {
		case strings.HasSuffix(r.URL.Path, img.layers[0].Digest.String()):
			w.WriteHeader(http.StatusInternalServerError)
			return
		case strings.Contains(r.URL.Path, "/blobs/"):
			select {
			case <-r.Context().Done(): // given up
			case <-time.After(quick.document/brief + 100*time.Millisecond):
			}
		}
		next.ServeHTTP(w, r)
	})
	for i := range img.layers {
		b, err := readBlob(t, m, img.layers[i].Digest)
		if i > 0 && (err != nil || !bytes.Equal(b, img.blobs[i])) {
			t.Errorf("layer %d: %d bytes, %v", i, len(b), err)
		}
	}
}

// A name of which the registry says nothing fails for a moment without being asked for; that somebody leaves says nothing of it.
func TestSilentName(t *testing.T) {
	srv := newServer(t)
	srv.image("lib/a", "1", layer.Gzip, tarOf(t, "f", "a"))
	f := newFollowed(t)
	srv.front(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.Contains(r.URL.Path, "/manifests/") {
			<-r.Context().Done()
			return
		}
		next.ServeHTTP(w, r)
	})
	left, leave := context.WithCancel(t.Context())
	leave()
	if _, err := f.Follow(left, srv.host+"/lib/a:1"); !errors.Is(err, context.Canceled) {
		t.Errorf("who leaves: %v", err)
	}
	for range 3 {
		if _, err := f.Follow(t.Context(), srv.host+"/lib/a:1"); !errors.Is(err, syscall.ETIMEDOUT) {
			t.Errorf("who stays: %v", err)
		}
	}
	if n := len(srv.requests("HEAD /v2/lib/a/manifests/1")); n != 1 {
		t.Errorf("it was asked for %d times", n)
	}
	srv.front(nil)
	for _, s := range f.sources() {
		s.failures = flight.Failures[any]{}
	}
	if _, err := f.Follow(t.Context(), srv.host+"/lib/a:1"); err != nil {
		t.Error(err)
	}
}

// forget ends the moment for which a failure to read a config is the answer, and in which the server is in trouble.
func forget(m *image) {
	m.source.failures.Put(m.configKey(), nil, time.Now())
	c := m.source.client
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.endpoints {
		e.blobs.end(nil, time.Now())
	}
}
