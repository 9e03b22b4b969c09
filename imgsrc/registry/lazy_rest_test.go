package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
)

// However a layer is read, none of it comes twice.
func TestLazyOnce(t *testing.T) {
	srv := newServer(t)
	small := func(n int) (string, string) { return fmt.Sprintf("d/%03d", n), lazyFile(n) }
	orders := map[string]func(r *reader){
		"forwards": func(r *reader) { r.checkAll() },
		"backwards": func(r *reader) {
			r.check("large", noise(1<<20))
			for n := lazyCount - 1; n >= 0; n-- {
				r.check(small(n))
			}
		},
		"shuffled": func(r *reader) {
			for _, n := range rand.New(rand.NewPCG(3, 4)).Perm(lazyCount) {
				r.check(small(n))
			}
			r.checkAll()
		},
		"the end, the middle, all": func(r *reader) {
			for n := 300; n < 500; n++ {
				r.check(small(n))
			}
			for n := 100; n < 200; n++ {
				r.check(small(n))
			}
			r.checkAll()
		},
		"four at once": func(r *reader) {
			var wg sync.WaitGroup
			for i := range 4 {
				wg.Go(func() {
					for n := range lazyCount {
						name, want := small((n*7 + i*125) % lazyCount)
						if got, err := r.read(r.t.Context(), name); err != nil || got != want {
							r.t.Errorf("%s: %v", name, err)
						}
					}
				})
			}
			wg.Wait()
			r.checkAll()
		},
	}
	for name, read := range orders {
		for _, m := range lazyImages(t, lazyEntries()) {
			t.Run(name+"/"+m.form, func(t *testing.T) {
				l := srv.pushLazy(m.form, "1", m)
				c := srv.counted(l.Digest)
				defer srv.front(nil)
				img := named(t, newSetup(t, srv.host+"/"+m.form+":1").mustOpen(t), srv.host+"/"+m.form+":1")
				r := lookInto(t, img)
				r.t = t
				read(r)
				eventually(t, "the layer to be local", func() bool { return img.Local(0) })
				if b, err := readBlob(t, img, l.Digest); err != nil || !bytes.Equal(b, m.blob) {
					t.Errorf("blob: %v", err)
				}
				c.wantOnce(t, l.Size)
			})
		}
	}
}

// Who wants the blob or the tar, after something of it was read, gets what is missing. So he does in another mount.
func TestLazyBlobOnce(t *testing.T) {
	srv := newServer(t)
	for _, m := range lazyImages(t, lazyEntries()) {
		for name, again := range map[string]bool{"at once": false, "after a remount": true} {
			t.Run(m.form+"/"+name, func(t *testing.T) {
				l := srv.pushLazy(m.form, "1", m)
				c := srv.counted(l.Digest)
				defer srv.front(nil)
				o := newSetup(t, srv.host+"/"+m.form+":1")
				s, err := o.open(t)
				if err != nil {
					t.Fatal(err)
				}
				img := named(t, s, srv.host+"/"+m.form+":1")
				r := lookInto(t, img)
				for n := 50; n < lazyCount; n += 50 {
					r.check(fmt.Sprintf("d/%03d", n), lazyFile(n))
				}
				if again {
					if err := s.Close(); err != nil {
						t.Fatal(err)
					}
					o.newCache(t)
					s = o.mustOpen(t)
					img = named(t, s, srv.host+"/"+m.form+":1")
				} else {
					defer s.Close()
				}
				if b, err := readDiff(t, img, 0); err != nil || digest.FromBytes(b) != m.diffID {
					t.Errorf("tar: %v", err)
				}
				if b, err := readBlob(t, img, l.Digest); err != nil || !bytes.Equal(b, m.blob) {
					t.Errorf("blob: %v", err)
				}
				c.wantOnce(t, l.Size)
				eventually(t, "its parts to be removed", func() bool { return !exists(o, rangesPath(l.Digest)) })
			})
		}
	}
}

// A chunk is read as soon as it has come, while the rest of the blob comes; and one of what has been asked for is waited for.
func TestLazyMeanwhile(t *testing.T) {
	srv := newServer(t)
	m := lazyImages(t, lazyEntries())[1]
	l := srv.pushLazy("a", "1", m)
	c := &counter{digest: l.Digest}
	open := make(chan struct{})
	gate := sync.OnceFunc(func() { close(open) })
	defer gate()
	halted := make(chan struct{}, 10)
	srv.front(func(w http.ResponseWriter, req *http.Request, next http.Handler) {
		var from, to int64
		if n, _ := fmt.Sscanf(req.Header.Get("Range"), "bytes=%d-%d", &from, &to); n == 2 && from < l.Size*2/3 && to >= l.Size*2/3 {
			w = &haltingWriter{w, l.Size*2/3 - from, open}
			halted <- struct{}{}
		}
		c.front(w, req, next)
	})
	img := named(t, newSetup(t, srv.host+"/a:1").mustOpen(t), srv.host+"/a:1")
	r := lookInto(t, img)
	go func() { _, _ = readBlob(t, img, l.Digest) }()
	<-halted
	for n := range lazyCount / 2 {
		r.check(fmt.Sprintf("d/%03d", n), lazyFile(n))
	}
	if c.asked.Load() == 0 || img.Local(0) {
		t.Error("it was here before")
	}
	done := make(chan error)
	go func() {
		got, err := r.read(t.Context(), "hello")
		if err == nil && got != "hello\n" {
			err = errors.New(got)
		}
		done <- err
	}()
	ctx, leave := context.WithCancel(t.Context())
	left := make(chan error)
	go func() {
		_, err := r.read(ctx, "d/499")
		left <- err
	}()
	leave()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("who left: %v", err)
	}
	gate()
	if err := <-done; err != nil {
		t.Error(err)
	}
	eventually(t, "the layer to be local", func() bool { return img.Local(0) })
	c.wantOnce(t, l.Size)
}

// cutting breaks every connection for a layer after some bytes.
func cutting(d digest.Digest, after int, next func(http.ResponseWriter, *http.Request, http.Handler)) func(http.ResponseWriter, *http.Request, http.Handler) {
	return func(w http.ResponseWriter, r *http.Request, h http.Handler) {
		if strings.HasSuffix(r.URL.Path, d.String()) {
			w = &cutWriter{w, after}
		}
		next(w, r, h)
	}
}

type cutWriter struct {
	http.ResponseWriter
	left int
}

func (w *cutWriter) Write(p []byte) (int, error) {
	if len(p) > w.left {
		p = p[:w.left]
	}
	if len(p) == 0 {
		_ = http.NewResponseController(w.ResponseWriter).Flush()
		panic(http.ErrAbortHandler)
	}
	w.left -= len(p)
	return w.ResponseWriter.Write(p)
}

func (w *cutWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// A connection that breaks within a range is replaced by one that goes on where it stopped.
func TestLazyCut(t *testing.T) {
	srv := newServer(t)
	m := lazyImages(t, lazyEntries())[0]
	l := srv.pushLazy("a", "1", m)
	c := &counter{digest: l.Digest}
	srv.front(cutting(l.Digest, 700_000, c.front))
	img := named(t, newSetup(t, srv.host+"/a:1").mustOpen(t), srv.host+"/a:1")
	r := lookInto(t, img)
	r.check("large", noise(1<<20))
	r.checkAll()
	eventually(t, "the layer to be local", func() bool { return img.Local(0) })
	if n := c.bytes.Load(); n > l.Size*6/5 { // what was sent may be lost with a connection
		t.Errorf("%d bytes of %d", n, l.Size)
	}
}

// What has come of the rest of a blob before the mount ended is not asked for again by who reads on in the next one.
func TestLazyStopped(t *testing.T) {
	srv := newServer(t)
	m := lazyImages(t, lazyEntries())[1]
	l := srv.pushLazy("a", "1", m)
	stop := make(chan struct{})
	srv.front(func(w http.ResponseWriter, req *http.Request, next http.Handler) {
		var from, to int64
		if n, _ := fmt.Sscanf(req.Header.Get("Range"), "bytes=%d-%d", &from, &to); n == 2 && from < l.Size/2 && to >= l.Size/2 {
			w = &haltingWriter{w, l.Size/2 - from, stop}
		}
		next.ServeHTTP(w, req)
	})
	o := newSetup(t, srv.host+"/a:1")
	s, err := o.open(t)
	if err != nil {
		t.Fatal(err)
	}
	img := named(t, s, srv.host+"/a:1")
	r := lookInto(t, img)
	ctx, leave := context.WithCancel(t.Context())
	read := make(chan struct{})
	go func() {
		defer close(read)
		if b, err := img.Blob(ctx, l.Digest); err == nil {
			_, _ = b.ReadAt(ctx, make([]byte, 1), l.Size-1)
			b.Close()
		}
	}()
	for n := range lazyCount / 4 {
		r.check(fmt.Sprintf("d/%03d", n), lazyFile(n))
	}
	eventually(t, "half of it to have come", func() bool {
		fi, err := os.Stat(filepath.Join(o.CacheDir, cacheVersion, partPath(l.Digest)))
		return err == nil && fi.Size() > l.Size*9/20
	})
	leave()
	<-read
	r.files.Close()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	close(stop)
	asked := &asks{}
	srv.front(asked.front(l.Digest))
	o.newCache(t)
	r = lookInto(t, named(t, o.mustOpen(t), srv.host+"/a:1"))
	for n := range lazyCount / 4 {
		r.check(fmt.Sprintf("d/%03d", n), lazyFile(n))
	}
	if n := asked.bytes.Load(); n > 0 {
		t.Errorf("%d bytes once more", n)
	}
	r.checkAll()
	if n := asked.bytes.Load(); n == 0 || n > l.Size*3/5 {
		t.Errorf("%d bytes of %d for the rest", n, l.Size)
	}
}

// asks are how many bytes of a blob the server is asked for.
type asks struct{ bytes atomic.Int64 }

func (a *asks) front(d digest.Digest) func(http.ResponseWriter, *http.Request, http.Handler) {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		var from, to int64
		if n, _ := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &from, &to); n == 2 && strings.HasSuffix(r.URL.Path, d.String()) {
			a.bytes.Add(to + 1 - from)
		}
		next.ServeHTTP(w, r)
	}
}

// A registry that knows ranges no longer, when the rest is asked for, is asked once for all of it.
func TestLazyRangesGone(t *testing.T) {
	srv := newServer(t)
	for _, m := range lazyImages(t, lazyEntries()) {
		l := srv.pushLazy(m.form, "1", m)
		img := named(t, newSetup(t, srv.host+"/"+m.form+":1").mustOpen(t), srv.host+"/"+m.form+":1")
		r := lookInto(t, img)
		r.check("d/250", lazyFile(250))
		c := &counter{digest: l.Digest}
		srv.front(func(w http.ResponseWriter, req *http.Request, next http.Handler) {
			req.Header.Del("Range")
			c.front(w, req, next)
		})
		if b, err := readBlob(t, img, l.Digest); err != nil || !bytes.Equal(b, m.blob) {
			t.Errorf("blob: %v", err)
		}
		r.checkAll()
		if n := c.asked.Load(); n > maxClaims {
			t.Errorf("%d requests", n)
		}
		srv.front(nil)
	}
}

// What a mirror sent wrong is asked for once more, of the registry itself.
func TestLazyMirror(t *testing.T) {
	home, mirror := newServer(t), newServer(t)
	m := lazyImages(t, lazyEntries())[0]
	l := home.pushLazy("a", "1", m)
	mirror.pushLazy("a", "1", m)
	o := newSetup(t, "registry.test/a:1")
	o.registries = "[[registry]]\nprefix = \"registry.test\"\nlocation = \"" + home.host + "\"\n[[registry.mirror]]\nlocation = \"" + mirror.host + "\"\n"
	r := lookInto(t, named(t, o.mustOpen(t), "registry.test/a:1"))
	mirror.front(partial(l.Digest, func(w http.ResponseWriter, _ *http.Request, whole []byte, from, to int) {
		sendPart(w, make([]byte, to-from), from, len(whole))
	}))
	home.requests("")
	r.check("d/100", lazyFile(100))
	if asked := home.requests("GET /v2/a/blobs/" + l.Digest.String()); len(asked) != 1 || !strings.Contains(asked[0], "bytes=") {
		t.Errorf("the registry was asked for %q", asked)
	}
}

// Of a layer some bytes of which are wrong, whoever asks for them, the others come once.
func TestLazyDamaged(t *testing.T) {
	srv := newServer(t)
	for _, m := range lazyImages(t, lazyEntries()) {
		t.Run(m.form, func(t *testing.T) {
			m.blob = bytes.Clone(m.blob)
			l := srv.pushLazy(m.form, "1", m)
			var wrong atomic.Bool
			c := &counter{digest: l.Digest}
			fault := partial(l.Digest, func(w http.ResponseWriter, _ *http.Request, whole []byte, from, to int) {
				part := bytes.Clone(whole[from:to])
				if at := len(whole) / 4; wrong.Load() && from <= at && at < to {
					part[at-from] ^= 1
				}
				sendPart(&countingWriter{w, &c.bytes}, part, from, len(whole))
			})
			srv.front(fault)
			defer srv.front(nil)
			img := named(t, newSetup(t, srv.host+"/"+m.form+":1").mustOpen(t), srv.host+"/"+m.form+":1")
			r := lookInto(t, img)
			wrong.Store(true)
			bad := 0
			for range 2 {
				for n := range lazyCount {
					got, err := r.read(t.Context(), fmt.Sprintf("d/%03d", n))
					switch {
					case errors.Is(err, imgsrc.ErrDamaged):
						bad++
					case err != nil || got != lazyFile(n):
						t.Fatalf("d/%03d: %v", n, err)
					}
				}
				r.check("large", noise(1<<20))
			}
			if bad != 2 {
				t.Errorf("%d files are wrong", bad)
			}
			if n := c.bytes.Load(); n > l.Size*51/50 {
				t.Errorf("%d bytes of %d", n, l.Size)
			}
			if _, err := readBlob(t, img, l.Digest); !errors.Is(err, imgsrc.ErrDamaged) {
				t.Errorf("blob: %v", err)
			}
		})
	}
}
