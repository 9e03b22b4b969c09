package registry

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/layer"
)

// forgetSpoilt has the moment pass in which a layer that was wrong is not fetched again.
func forgetSpoilt(s *Source, img made) {
	is := s.spoiltOf(img.layers[0].Digest)
	is.until = time.Time{}
	s.spoilt.Store(img.layers[0].Digest, is)
}

// lying answers each request for an image's layer with other bytes.
func lying(img made) func(http.ResponseWriter, *http.Request, http.Handler) {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if !isLayer(r, img) {
			next.ServeHTTP(w, r)
			return
		}
		b := append([]byte(nil), img.blobs[0]...)
		b[len(b)/2] ^= 1
		_, _ = w.Write(b)
	}
}

// expectSpoilt reads a layer in the ways that there are, one after the other, all of which fail.
func expectSpoilt(t *testing.T, m *image, img made) {
	t.Helper()
	for range 2 {
		if _, err := readBlob(t, m, img.layers[0].Digest); !errors.Is(err, imgsrc.ErrDamaged) {
			t.Errorf("blob: %v", err)
		}
		if _, err := readDiff(t, m, 0); !errors.Is(err, imgsrc.ErrDamaged) {
			t.Errorf("diff: %v", err)
		}
		files, err := m.Files(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := files.Entries(t.Context(), func(*imgsrc.File) error { return nil }); !errors.Is(err, imgsrc.ErrDamaged) {
			t.Errorf("files: %v", err)
		}
		files.Close()
	}
}

// A layer that is wrong in the registry is fetched once for all who come in a moment, and said once.
func TestSpoiltOnce(t *testing.T) {
	srv := newServer(t)
	for name, kind := range map[string]layer.Compression{"gzip": layer.Gzip, "zstd": layer.Zstd, "none": layer.None} {
		t.Run(name, func(t *testing.T) {
			img := srv.image("big", name, kind, tarOf(t, "f", noise(3<<20)))
			srv.front(lying(img))
			defer srv.front(nil)
			o := newSetup(t, srv.host+"/big:"+name)
			m := named(t, o.mustOpen(t), srv.host+"/big:"+name)
			fetch := "GET /v2/big/blobs/" + img.layers[0].Digest.String()
			wantAsked := func(n int) {
				t.Helper()
				if asked := srv.requests(fetch); len(asked) != n {
					t.Errorf("it was asked for %q, want it %d times", asked, n)
				}
				if n := strings.Count(o.logged.String(), "msg=\"fetching blob\""); n != 1 {
					t.Errorf("it was said %d times:\n%s", n, o.logged.String())
				}
			}
			srv.requests("")
			expectSpoilt(t, m, img)
			wantAsked(1)
			forgetSpoilt(m.source, img)
			expectSpoilt(t, m, img)
			wantAsked(1)
			forgetSpoilt(m.source, img)
			srv.front(nil)
			wantBlob(t, m, img)
		})
	}
}

// What a mirror sent is asked for once more, of the registry itself.
func TestSpoiltMirror(t *testing.T) {
	home, mirror := newServer(t), newServer(t)
	img := big(t, home)
	mirror.image("big", "1", layer.Gzip, img.tars...)
	home.front(lying(img))
	mirror.front(lying(img))
	o := newSetup(t, "registry.test/big:1")
	o.registries = "[[registry]]\nprefix = \"registry.test\"\nlocation = \"" + home.host + "\"\n[[registry.mirror]]\nlocation = \"" + mirror.host + "\"\n"
	m := named(t, o.mustOpen(t), "registry.test/big:1")
	home.requests("")
	mirror.requests("")
	expectSpoilt(t, m, img)
	fetch := "GET /v2/big/blobs/" + img.layers[0].Digest.String()
	if a, b := home.requests(fetch), mirror.requests(fetch); len(a) != 1 || len(b) != 1 {
		t.Errorf("the registry was asked for %q, the mirror for %q", a, b)
	}
}

// A reader who leaves leaves no verdict behind.
func TestSpoiltByNobody(t *testing.T) {
	srv := newServer(t)
	img := big(t, srv)
	s, m, _ := openBig(t, srv)
	ctx, leave := context.WithCancel(t.Context())
	leave()
	c, err := m.Blob(t.Context(), img.layers[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.ReadAt(ctx, make([]byte, 10), 0); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	c.Close()
	if err := s.keptSpoilt(img.layers[0].Digest); err != nil {
		t.Error(err)
	}
	wantBlob(t, m, img)
}

// Nor is one with a damaged table of contents, which is given up for the tar, fetched more than once.
func TestSpoiltTOC(t *testing.T) {
	for _, lazy := range lazyImages(t, lazyEntries()) {
		t.Run(lazy.form, func(t *testing.T) {
			srv := newServer(t)
			l := srv.pushLazy("a", "1", lazy)
			o := newSetup(t, srv.host+"/a:1")
			m := named(t, o.mustOpen(t), srv.host+"/a:1")
			fault := partial(l.Digest, func(w http.ResponseWriter, _ *http.Request, whole []byte, from, to int) {
				sendPart(w, make([]byte, to-from+1), from, len(whole))
			})
			srv.front(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if strings.HasSuffix(r.URL.Path, l.Digest.String()) && r.Header.Get("Range") == "" {
					_, _ = w.Write(make([]byte, l.Size))
					return
				}
				fault(w, r, next)
			})
			srv.requests("")
			for range 3 {
				if _, err := tryLookInto(t, m); !errors.Is(err, imgsrc.ErrDamaged) {
					t.Error(err)
				}
				if _, err := readBlob(t, m, l.Digest); !errors.Is(err, imgsrc.ErrDamaged) {
					t.Error(err)
				}
			}
			whole := 0
			all := srv.requests("GET /v2/a/blobs/" + l.Digest.String())
			for _, r := range all {
				if !strings.Contains(r, "bytes=") {
					whole++
				}
			}
			if whole != 1 || len(all) > 12 {
				t.Errorf("it was asked for %q", all)
			}
		})
	}
}
