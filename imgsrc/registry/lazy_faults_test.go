package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/layer"
	"github.com/imgfs/imgfs/test/images"
)

// partial answers requests for ranges with what answer makes of the right answer.
func partial(d digest.Digest, answer func(w http.ResponseWriter, r *http.Request, whole []byte, from, to int)) func(http.ResponseWriter, *http.Request, http.Handler) {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		var from, to int
		if n, _ := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &from, &to); n != 2 || r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, d.String()) {
			next.ServeHTTP(w, r)
			return
		}
		r.Header.Del("Range")
		rec := &recorder{header: http.Header{}}
		next.ServeHTTP(rec, r)
		answer(w, r, rec.Bytes(), from, min(to+1, rec.Len()))
	}
}

type recorder struct {
	bytes.Buffer
	header http.Header
}

func (r *recorder) Header() http.Header { return r.header }
func (r *recorder) WriteHeader(int)     {}

func sendPart(w http.ResponseWriter, part []byte, from, size int) {
	w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, from+len(part)-1, size))
	w.Header().Set("Content-Length", fmt.Sprint(len(part)))
	w.WriteHeader(http.StatusPartialContent)
	_, _ = w.Write(part)
}

// What a registry can do wrong with ranges: what is read is right, or an error.
func TestLazyFaults(t *testing.T) {
	type answer = func(w http.ResponseWriter, r *http.Request, whole []byte, from, to int)
	lies := map[string]bool{"another part, mislabelled": true, "wrong bytes": true}
	faults := map[string]answer{
		"no ranges": func(w http.ResponseWriter, _ *http.Request, whole []byte, _, _ int) { _, _ = w.Write(whole) },
		"416": func(w http.ResponseWriter, _ *http.Request, _ []byte, _, _ int) {
			w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
		},
		"short": func(w http.ResponseWriter, _ *http.Request, whole []byte, from, to int) {
			sendPart(w, whole[from:from+(to-from)/2], from, len(whole))
		},
		"another part": func(w http.ResponseWriter, _ *http.Request, whole []byte, from, to int) {
			sendPart(w, whole[from/2:from/2+to-from], from/2, len(whole))
		},
		"another part, mislabelled": func(w http.ResponseWriter, _ *http.Request, whole []byte, from, to int) {
			sendPart(w, whole[from/2:from/2+to-from], from, len(whole))
		},
		"wrong bytes": func(w http.ResponseWriter, _ *http.Request, whole []byte, from, to int) {
			part := slices.Clone(whole[from:to])
			for i := range part {
				part[i] ^= 1
			}
			sendPart(w, part, from, len(whole))
		},
		"nothing": func(w http.ResponseWriter, _ *http.Request, whole []byte, from, _ int) {
			sendPart(w, nil, from, len(whole))
		},
	}
	all := lazyImages(t, lazyEntries())
	for name, fault := range faults {
		for _, m := range all {
			t.Run(name+"/"+m.form, func(t *testing.T) {
				srv := newServer(t)
				l := srv.pushLazy("a", "1", m)
				// From the first request on: the layer is a tar like others.
				srv.front(partial(l.Digest, fault))
				r := lookInto(t, named(t, newSetup(t, srv.host+"/a:1").mustOpen(t), srv.host+"/a:1"))
				if key := r.files.Key(); key.Form != layer.TarForm {
					t.Errorf("key %+v", key)
				}
				r.check("d/100", lazyFile(100))
				if root, err := r.files.Root(t.Context()); root != nil || err != nil {
					t.Errorf("root: %+v, %v", root, err)
				}
				// Once its table has been read: its chunks are taken from the whole blob if they are not to be had. What
				// is wrong is asked for once more.
				srv.front(nil)
				o := newSetup(t, srv.host+"/a:1")
				img := named(t, o.mustOpen(t), srv.host+"/a:1")
				r = lookInto(t, img)
				srv.front(partial(l.Digest, fault))
				srv.requests("")
				if lies[name] {
					if _, err := r.read(t.Context(), "d/100"); !errors.Is(err, imgsrc.ErrDamaged) || img.Local(0) {
						t.Errorf("what is wrong: %v, local %v", err, img.Local(0))
					}
					if asked := srv.requests("GET /v2/a/blobs/" + l.Digest.String()); len(asked) != 2 {
						t.Errorf("it was asked for %q", asked)
					}
				} else {
					r.check("d/100", lazyFile(100))
					r.check("d/400", lazyFile(400))
					if key := r.files.Key(); key.Form != layer.TOCForm || !img.Local(0) {
						t.Errorf("key %+v, local %v", key, img.Local(0))
					}
				}
				// And when nothing is right, nothing is read.
				o = newSetup(t, srv.host+"/a:1")
				srv.front(nil)
				r = lookInto(t, named(t, o.mustOpen(t), srv.host+"/a:1"))
				srv.front(func(w http.ResponseWriter, req *http.Request, next http.Handler) {
					if strings.HasSuffix(req.URL.Path, l.Digest.String()) && req.Header.Get("Range") == "" {
						_, _ = w.Write(make([]byte, l.Size))
						return
					}
					partial(l.Digest, fault)(w, req, next)
				})
				if _, err := r.read(t.Context(), "d/100"); !errors.Is(err, imgsrc.ErrDamaged) || !strings.Contains(o.logged.String(), l.Digest.String()) {
					t.Errorf("nothing is right: %v", err)
				}
			})
		}
	}
}

// A registry that sends other ranges, when the rest is asked for, is asked for all of the blob: that need not be wrong.
func TestLazyOtherRanges(t *testing.T) {
	srv := newServer(t)
	for _, m := range lazyImages(t, lazyEntries()) {
		l := srv.pushLazy(m.form, "1", m)
		img := named(t, newSetup(t, srv.host+"/"+m.form+":1").mustOpen(t), srv.host+"/"+m.form+":1")
		r := lookInto(t, img)
		srv.front(partial(l.Digest, func(w http.ResponseWriter, _ *http.Request, whole []byte, from, to int) {
			sendPart(w, whole[from/2:from/2+to-from], from/2+1, len(whole))
		}))
		if b, err := readBlob(t, img, l.Digest); err != nil || !bytes.Equal(b, m.blob) {
			t.Errorf("blob: %v", err)
		}
		r.checkAll()
		srv.front(nil)
	}
}

// A layer is not what its table says, though both are what their digests say.
func TestLazyLies(t *testing.T) {
	srv := newServer(t)
	m := lazyImages(t, []images.Entry{images.File("a", noise(100_000)), images.File("b", "right")})[1]
	other := lazyImages(t, []images.Entry{images.File("a", noise(100_000)), images.File("b", "wrong")})[1]
	at := bytes.Index(m.blob, []byte("right"))
	if at < 0 {
		t.Fatal("the content is not there as it is")
	}
	copy(m.blob[at:], "wrong")
	m.diffID = other.diffID
	srv.pushLazy("a", "1", m)
	o := newSetup(t, srv.host+"/a:1")
	r := lookInto(t, named(t, o.mustOpen(t), srv.host+"/a:1"))
	r.check("a", noise(100_000))
	if _, err := r.read(t.Context(), "b"); !errors.Is(err, imgsrc.ErrDamaged) {
		t.Errorf("b: %v", err)
	}
	if !strings.Contains(o.logged.String(), "level=ERROR") {
		t.Error("the log says nothing")
	}
}

// Names that JSON cannot say are read from the tar.
func TestLazyNames(t *testing.T) {
	srv := newServer(t)
	for _, m := range lazyImages(t, []images.Entry{images.File("\xff\xfe", "odd"), images.File("b", "b")}) {
		srv.pushLazy(m.form, "1", m)
		r := lookInto(t, named(t, newSetup(t, srv.host+"/"+m.form+":1").mustOpen(t), srv.host+"/"+m.form+":1"))
		r.check("\xff\xfe", "odd")
	}
}

// A registry that hangs does not hold a reader that leaves, nor one that stays for long.
func TestLazyHangs(t *testing.T) {
	srv := newServer(t)
	m := lazyImages(t, lazyEntries())[0]
	l := srv.pushLazy("a", "1", m)
	o := newSetup(t, srv.host+"/a:1")
	o.test.limits.stall, o.test.limits.attempts = 300*time.Millisecond, 2
	r := lookInto(t, named(t, o.mustOpen(t), srv.host+"/a:1"))
	var waiting atomic.Int32
	srv.front(func(w http.ResponseWriter, req *http.Request, next http.Handler) {
		if !strings.HasSuffix(req.URL.Path, l.Digest.String()) {
			next.ServeHTTP(w, req)
			return
		}
		waiting.Add(1)
		<-req.Context().Done()
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		_, err := r.read(ctx, "d/100")
		done <- err
	}()
	eventually(t, "the registry to be asked", func() bool { return waiting.Load() > 0 })
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("who left: %v", err)
	}
	if _, err := r.read(t.Context(), "d/300"); !errors.Is(err, syscall.ETIMEDOUT) {
		t.Errorf("who stayed: %v", err)
	}
	srv.front(nil)
	r.check("d/300", lazyFile(300))
}

// What is in the cache is verified whenever it is read.
func TestLazyCacheDamaged(t *testing.T) {
	srv := newServer(t)
	for _, m := range lazyImages(t, lazyEntries()) {
		l := srv.pushLazy(m.form, "1", m)
		for name, damage := range map[string]func(path string) error{
			"noise":   func(path string) error { return os.WriteFile(path, []byte(noise(int(l.Size))), 0o600) },
			"shorter": func(path string) error { return os.Truncate(path, l.Size/2) },
			"longer":  func(path string) error { return os.Truncate(path, l.Size*2) },
			"empty":   func(path string) error { return os.Truncate(path, 0) },
			"a directory": func(path string) error {
				return errors.Join(os.Remove(path), os.Mkdir(path, 0o700))
			},
		} {
			t.Run(m.form+"/"+name, func(t *testing.T) {
				o := newSetup(t, srv.host+"/"+m.form+":1")
				s, err := o.open(t)
				if err != nil {
					t.Fatal(err)
				}
				lookInto(t, named(t, s, srv.host+"/"+m.form+":1")).check("d/100", lazyFile(100))
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				if err := damage(filepath.Join(o.CacheDir, cacheVersion, rangesPath(l.Digest))); err != nil {
					t.Fatal(err)
				}
				o.newCache(t)
				r := lookInto(t, named(t, o.mustOpen(t), srv.host+"/"+m.form+":1"))
				r.check("d/100", lazyFile(100))
				r.check("d/200", lazyFile(200))
			})
		}
	}
}
