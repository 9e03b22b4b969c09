package registry

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/layer"
)

// isLayer says whether a request is for a blob that is no config, which are short.
func isLayer(r *http.Request, img made) bool {
	return r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, "/blobs/"+img.layers[0].Digest.String())
}

// big is an image with one layer of some MiB.
func big(t *testing.T, srv *server) made {
	return srv.image("big", "1", layer.Gzip, tarOf(t, "f", noise(3_000_000)))
}

// openBig opens the source of big, and returns its image.
func openBig(t *testing.T, srv *server) (*Source, *image, *setup) {
	t.Helper()
	o := newSetup(t, srv.host+"/big:1")
	s := o.mustOpen(t)
	return s, named(t, s, srv.host+"/big:1"), o
}

func wantBlob(t *testing.T, m *image, img made) {
	t.Helper()
	b, err := readBlob(t, m, img.layers[0].Digest)
	if err != nil || !bytes.Equal(b, img.blobs[0]) {
		t.Errorf("%d bytes of %d, %v", len(b), len(img.blobs[0]), err)
	}
}

func wantDiff(t *testing.T, m *image, img made) {
	t.Helper()
	b, err := readDiff(t, m, 0)
	if err != nil || !bytes.Equal(b, img.tars[0]) {
		t.Errorf("%d bytes of %d, %v", len(b), len(img.tars[0]), err)
	}
}

func TestTooManyRequests(t *testing.T) {
	srv := newServer(t)
	img := big(t, srv)
	var left atomic.Int32
	var answer func(w http.ResponseWriter)
	srv.front(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.URL.Path != "/v2/" && left.Add(-1) >= 0 {
			answer(w)
			return
		}
		next.ServeHTTP(w, r)
	})
	for name, test := range map[string]struct {
		times  int32
		answer func(w http.ResponseWriter)
		ok     bool
		least  time.Duration
	}{
		"429": {3, func(w http.ResponseWriter) { w.WriteHeader(http.StatusTooManyRequests) }, true, 0},
		"retry after": {1, func(w http.ResponseWriter) {
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusTooManyRequests)
		}, true, 900 * time.Millisecond},
		"503":        {2, func(w http.ResponseWriter) { w.WriteHeader(http.StatusServiceUnavailable) }, true, 0},
		"cut":        {2, func(http.ResponseWriter) { panic(http.ErrAbortHandler) }, true, 0},
		"always 500": {1000, func(w http.ResponseWriter) { w.WriteHeader(http.StatusInternalServerError) }, false, 0},
		"always 429": {1000, func(w http.ResponseWriter) { w.WriteHeader(http.StatusTooManyRequests) }, false, 0},
		"come back later": {1000, func(w http.ResponseWriter) {
			w.Header().Set("Retry-After", "3600")
			w.WriteHeader(http.StatusTooManyRequests)
		}, false, 0},
	} {
		t.Run(name, func(t *testing.T) {
			left.Store(0)
			_, m, _ := openBig(t, srv)
			answer = test.answer
			for what, read := range map[string]func() error{
				"head": func() error { _, err := m.source.client.Head(t.Context(), "big", "1"); return err },
				"blob": func() error { _, err := readBlob(t, m, img.layers[0].Digest); return err },
			} {
				left.Store(test.times)
				began := time.Now()
				err := read()
				took := time.Since(began)
				if (err == nil) != test.ok {
					t.Errorf("%s: %v", what, err)
				}
				if took < test.least || took > 5*time.Second {
					t.Errorf("%s: it took %s", what, took)
				}
			}
		})
	}
}

// broken sends a layer's bytes so that each connection breaks after n of them, by ending it or by falling silent.
func broken(img made, n int64, ranges bool, end func(r *http.Request)) func(http.ResponseWriter, *http.Request, http.Handler) {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if !isLayer(r, img) {
			next.ServeHTTP(w, r)
			return
		}
		if !ranges {
			r.Header.Del("Range")
		}
		out := &shortWriter{ResponseWriter: w, left: n}
		next.ServeHTTP(out, r)
		if out.left <= 0 {
			w.(http.Flusher).Flush()
			end(r)
		}
	}
}

// shortWriter drops what comes after some bytes.
type shortWriter struct {
	http.ResponseWriter
	left int64
}

func (w *shortWriter) Write(p []byte) (int, error) {
	n := min(int64(len(p)), w.left)
	w.left -= n
	if _, err := w.ResponseWriter.Write(p[:n]); err != nil {
		return 0, err
	}
	return len(p), nil
}

func abort(*http.Request) { panic(http.ErrAbortHandler) }

func silence(r *http.Request) { <-r.Context().Done() }

func TestConnectionsBreak(t *testing.T) {
	srv := newServer(t)
	img := big(t, srv)
	size := img.layers[0].Size
	for name, test := range map[string]struct {
		n      int64
		ranges bool
		end    func(*http.Request)
		ok     bool
	}{
		"cut, resumed":          {1_200_000, true, abort, true},
		"cut, no ranges":        {0, false, abort, false},
		"cut late, no ranges":   {size - 10, false, abort, false},
		"stalled, resumed":      {1_200_000, true, silence, true},
		"silent from the start": {0, true, silence, false},
		"a few bytes each":      {1000, true, abort, false},
	} {
		t.Run(name, func(t *testing.T) {
			_, m, _ := openBig(t, srv)
			srv.front(broken(img, test.n, test.ranges, test.end))
			defer srv.front(nil)
			srv.requests("")
			b, err := readBlob(t, m, img.layers[0].Digest)
			if test.ok {
				if err != nil || !bytes.Equal(b, img.blobs[0]) {
					t.Fatalf("%d bytes of %d, %v", len(b), size, err)
				}
				if again := srv.requests("GET /v2/big/blobs/" + img.layers[0].Digest.String()); len(again) != 3 || !strings.Contains(again[1], "bytes=") {
					t.Errorf("requests: %q", again)
				}
				if got := m.Fetched() - m.source.fetchedOf(m.desc.Digest) - m.source.fetchedOf(m.desc.Config); got < size || got > size+size/10 {
					t.Errorf("%d bytes were fetched of a blob of %d", got, size)
				}
				return
			}
			if err == nil || len(b) > 0 {
				t.Fatalf("%d bytes, %v", len(b), err)
			}
			if strings.HasPrefix(name, "silent") && !errors.Is(err, syscall.ETIMEDOUT) {
				t.Errorf("%v, want ETIMEDOUT", err)
			}
			// What did come is used when the registry is well again.
			srv.front(nil)
			srv.requests("")
			wantBlob(t, m, img)
			if again := srv.requests("GET /v2/big/blobs/" + img.layers[0].Digest.String()); test.n > 0 && (len(again) != 1 || !strings.Contains(again[0], "bytes=")) {
				t.Errorf("requests: %q", again)
			}
		})
	}
}

// A layer is read through to its end although connections break, and from one fetch.
func TestDiffWhileConnectionsBreak(t *testing.T) {
	srv := newServer(t)
	img := big(t, srv)
	_, m, _ := openBig(t, srv)
	srv.front(broken(img, 1_200_000, true, abort))
	wantDiff(t, m, img)
	srv.front(nil)
	srv.requests("")
	wantBlob(t, m, img)
	if again := srv.requests("GET"); len(again) != 0 {
		t.Errorf("the blob was fetched again: %q", again)
	}
}

func TestWrongBytes(t *testing.T) {
	srv := newServer(t)
	img := big(t, srv)
	for name, change := range map[string]func(b []byte) []byte{
		"other": func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
		"more":  func(b []byte) []byte { return append(b, 0) },
		"fewer": func(b []byte) []byte { return append([]byte("{"), b[:len(b)-2]...) },
		"none":  func([]byte) []byte { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			bad := func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				rec := httptest.NewRecorder()
				next.ServeHTTP(rec, r)
				if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/big/") && rec.Code == 200 {
					_, _ = w.Write(change(rec.Body.Bytes()))
					return
				}
				for k, v := range rec.Header() {
					w.Header()[k] = v
				}
				w.WriteHeader(rec.Code)
				_, _ = rec.Body.WriteTo(w)
			}
			_, m, o := openBig(t, srv)
			srv.front(bad)
			defer srv.front(nil)
			if b, err := readBlob(t, m, img.layers[0].Digest); !errors.Is(err, imgsrc.ErrDamaged) || len(b) > 0 {
				t.Errorf("blob: %d bytes, %v", len(b), err)
			}
			if b, err := readDiff(t, m, 0); !errors.Is(err, imgsrc.ErrDamaged) || len(b) > 0 {
				t.Errorf("diff: %d bytes, %v", len(b), err)
			}
			if b, err := m.Config(t.Context()); err == nil && digest.FromBytes(b) != img.config.Digest {
				t.Errorf("config: %s, %v", b, err)
			}
			if parts, _ := filepath.Glob(o.CacheDir + "/v1/*/fetched*"); len(parts) > 0 {
				t.Errorf("kept: %q", parts)
			}
			again := newSetup(t, srv.host+"/big:1")
			s := again.mustOpen(t)
			l := list(t, s)
			if d := l.Images[0].Desc(); !errors.Is(d.Damaged, imgsrc.ErrDamaged) || d.Digest != img.Digest {
				t.Errorf("listed: %+v", d)
			}
			srv.front(nil)
			forgetSpoilt(m.source, img)
			wantBlob(t, m, img)
		})
	}
}

func TestManifestTooLong(t *testing.T) {
	srv := newServer(t)
	srv.front(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if !strings.Contains(r.URL.Path, "/manifests/") || r.Method == http.MethodHead {
			next.ServeHTTP(w, r)
			return
		}
		for range 100 {
			_, _ = w.Write(make([]byte, 1<<20))
		}
	})
	srv.image("web", "1", layer.None, tarOf(t))
	o := newSetup(t, srv.host+"/web:1")
	s := o.mustOpen(t)
	if _, err := s.client.Manifest(t.Context(), "web", "1"); !errors.Is(err, imgsrc.ErrDamaged) {
		t.Errorf("%v", err)
	}
}

// A registry that accepts and says nothing costs its time once, and not for each tag.
func TestSilence(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	o := newSetup(t, l.Addr().String()+"/web:1")
	o.test.limits.document = 200 * time.Millisecond
	began := time.Now()
	if _, err := o.open(t); !errors.Is(err, syscall.ETIMEDOUT) {
		t.Errorf("%v, want ETIMEDOUT", err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %s", took)
	}

	srv := newServer(t)
	for i := range 40 {
		srv.image("web", fmt.Sprint(i), layer.None, tarOf(t))
	}
	o = newSetup(t, srv.host+"/web")
	o.test.limits.document = 200 * time.Millisecond
	s := o.mustOpen(t)
	srv.front(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method == http.MethodHead {
			<-r.Context().Done()
			return
		}
		next.ServeHTTP(w, r)
	})
	began = time.Now()
	if _, err := s.List(t.Context()); !errors.Is(err, syscall.ETIMEDOUT) {
		t.Errorf("%v, want ETIMEDOUT", err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %s", took)
	}
	began = time.Now()
	if _, err := s.List(t.Context()); !errors.Is(err, syscall.ETIMEDOUT) || time.Since(began) > 100*time.Millisecond {
		t.Errorf("again: %v after %s", err, time.Since(began))
	}
}

// Many readers of several images, while the registry does what it can to confuse them: whatever is read is right, and in
// the end all of it is read.
func TestFlaky(t *testing.T) {
	srv := newServer(t)
	var images []made
	for i := range 4 {
		images = append(images, srv.image("web", fmt.Sprint(i), layer.Gzip, tarOf(t, "f", noise(1_000_000+i)), tarOf(t, "g", noise(300_000))))
	}
	o := newSetup(t, srv.host+"/web")
	o.test.every = 20 * time.Millisecond
	o.test.limits.stall = 100 * time.Millisecond
	s := o.mustOpen(t)
	var listed []*image // before the faults begin, of which a listing may fail
	for i := range images {
		listed = append(listed, named(t, s, fmt.Sprintf("%s/web:%d", srv.host, i)))
	}
	var bad atomic.Bool
	bad.Store(true)
	srv.front(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if !bad.Load() {
			next.ServeHTTP(w, r)
			return
		}
		switch rand.IntN(8) {
		case 0:
			w.WriteHeader(http.StatusServiceUnavailable)
		case 1:
			w.WriteHeader(http.StatusTooManyRequests)
		case 2:
			panic(http.ErrAbortHandler)
		case 3:
			<-r.Context().Done()
		case 4, 5:
			next.ServeHTTP(&shortWriter{w, int64(rand.IntN(500_000))}, r)
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		default:
			next.ServeHTTP(w, r)
		}
	})
	var wg sync.WaitGroup
	for i, img := range images {
		name, m := fmt.Sprintf("%s/web:%d", srv.host, i), listed[i]
		for _, read := range []func() ([]byte, []byte, error){
			func() ([]byte, []byte, error) {
				b, err := readBlob(t, m, img.layers[0].Digest)
				return b, img.blobs[0], err
			},
			func() ([]byte, []byte, error) { b, err := readDiff(t, m, 0); return b, img.tars[0], err },
			func() ([]byte, []byte, error) { b, err := readDiff(t, m, 1); return b, img.tars[1], err },
			func() ([]byte, []byte, error) {
				s.Stamp()
				b, err := m.Config(t.Context())
				return b, b, err
			},
		} {
			wg.Go(func() {
				for attempt := 0; ; attempt++ {
					if attempt == 20 {
						bad.Store(false)
					}
					got, want, err := read()
					if !bytes.HasPrefix(want, got) || errors.Is(err, imgsrc.ErrDamaged) || attempt > 25 {
						t.Errorf("%s: %d bytes of %d, %v", name, len(got), len(want), err)
						return
					}
					if err == nil && len(got) == len(want) {
						return
					}
					forget(m)
				}
			})
		}
	}
	wg.Wait()
}

// FuzzNewDocument: whatever a registry sends, what is kept as a manifest has the digest that it is kept under.
func FuzzNewDocument(f *testing.F) {
	f.Add("1", "", []byte("{}"))
	f.Add("1", "sha256:"+strings.Repeat("0", 64), []byte(`{"signatures":[{"protected":"eyJmb3JtYXRMZW5ndGgiOjEsImZvcm1hdFRhaWwiOiJmUSJ9"}]}`))
	f.Fuzz(func(t *testing.T, ref, said string, body []byte) {
		doc, err := newDocument("x", ref, http.Header{"Docker-Content-Digest": {said}}, body)
		if err == nil && doc.Digest.Algorithm().FromBytes(doc.Bytes) != doc.Digest {
			t.Errorf("%s is kept as %s", doc.Bytes, doc.Digest)
		}
		signedPayload(body)
	})
}
