package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/layer"
	"github.com/imgfs/imgfs/test/images"
)

// lazyFile is the content of file n of lazyEntries, which does not compress.
func lazyFile(n int) string { return noise(4000 + n%1000) }

const lazyCount = 500

// lazyEntries are a layer of 2 MiB in small files, with a large one of 1 MiB behind them.
func lazyEntries() []images.Entry {
	entries := []images.Entry{images.Dir("d").WithMode(0o700)}
	for n := range lazyCount {
		entries = append(entries, images.File(fmt.Sprintf("d/%03d", n), lazyFile(n)))
	}
	return append(entries, images.File("large", noise(1<<20)), images.File("hello", "hello\n"))
}

// A lazyImage is one layer with a table of contents.
type lazyImage struct {
	form        string
	blob        []byte
	diffID      digest.Digest
	annotations map[string]string
}

func lazyImages(t testing.TB, entries []images.Entry) []lazyImage {
	t.Helper()
	var all []lazyImage
	for _, form := range []string{"estargz", "chunked"} {
		m := lazyImage{form: form}
		var err error
		if form == "estargz" {
			m.blob, m.diffID, m.annotations, err = images.EStargzBlob(0, entries)
		} else {
			m.blob, m.diffID, m.annotations, err = images.ChunkedBlob(entries)
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, m)
	}
	return all
}

// pushLazy pushes an image of one layer.
func (s *server) pushLazy(repo, tag string, m lazyImage) v1.Descriptor {
	s.Helper()
	mediaType := v1.MediaTypeImageLayerGzip
	if m.form == "chunked" {
		mediaType = v1.MediaTypeImageLayerZstd
	}
	l := s.push(repo, mediaType, m.blob)
	l.Annotations = m.annotations
	config, err := json.Marshal(v1.Image{Platform: v1.Platform{OS: "linux", Architecture: "amd64"}, Author: tag, RootFS: v1.RootFS{Type: "layers", DiffIDs: []digest.Digest{m.diffID}}})
	if err != nil {
		s.Fatal(err)
	}
	manifest := v1.Manifest{MediaType: v1.MediaTypeImageManifest, Config: s.push(repo, v1.MediaTypeImageConfig, config), Layers: []v1.Descriptor{l}}
	manifest.SchemaVersion = 2
	s.put(repo, tag, v1.MediaTypeImageManifest, manifest)
	return l
}

// A counter counts what leaves the server of one blob.
type counter struct {
	digest       digest.Digest
	bytes, asked atomic.Int64
	whole        atomic.Int64 // requests without a range
}

func (c *counter) front(w http.ResponseWriter, r *http.Request, next http.Handler) {
	if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, c.digest.String()) {
		next.ServeHTTP(w, r)
		return
	}
	c.asked.Add(1)
	if r.Header.Get("Range") == "" {
		c.whole.Add(1)
	}
	next.ServeHTTP(&countingWriter{w, &c.bytes}, r)
}

// countLazy is pushLazy with a counter of what is asked for until the test ends.
func (s *server) countLazy(t testing.TB, repo string, m lazyImage) (v1.Descriptor, *counter) {
	t.Helper()
	l := s.pushLazy(repo, "1", m)
	c := &counter{digest: l.Digest}
	s.front(c.front)
	t.Cleanup(func() { s.front(nil) })
	return l, c
}

// counted has the server count what it sends of a layer.
func (s *server) counted(d digest.Digest) *counter {
	c := &counter{digest: d}
	s.front(c.front)
	return c
}

// wantOnce checks that no byte of a layer came twice, and none but by ranges; of the last block of a file system's it may not be known
// that it is here.
func (c *counter) wantOnce(t *testing.T, size int64) {
	t.Helper()
	if n := c.bytes.Load(); n > size+size/200 {
		t.Errorf("%d bytes of %d, %.2f %%", n, size, 100*float64(n)/float64(size))
	}
	if n := c.whole.Load(); n > 0 {
		t.Errorf("it was asked for %d times without a range", n)
	}
}

type countingWriter struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (w *countingWriter) Write(p []byte) (int, error) {
	w.n.Add(int64(len(p))) // before the client has it
	return w.ResponseWriter.Write(p)
}

// A reader reads the files of an image's only layer by their names.
type reader struct {
	t     testing.TB
	files imgsrc.Files
	tree  *layer.Tree
}

// lookInto indexes the layer, as fs does, with another attempt where that asks for one.
func lookInto(t testing.TB, m *image) *reader {
	t.Helper()
	r, err := tryLookInto(t, m)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func tryLookInto(t testing.TB, m *image) (*reader, error) {
	t.Helper()
	for attempt := 0; ; attempt++ {
		files, err := m.Files(t.Context(), 0)
		if err != nil {
			return nil, err
		}
		x, err := m.source.cache.Index(t.Context(), layer.Layer{Key: files.Key(), From: m.layerFacts()[0].Digest, Open: func(ctx context.Context) (imgsrc.Files, error) { return m.Files(ctx, 0) }})
		if errors.Is(err, syscall.EAGAIN) && attempt == 0 {
			files.Close()
			continue
		}
		if err != nil {
			files.Close()
			return nil, err
		}
		t.Cleanup(func() { files.Close() })
		return &reader{t, files, layer.NewTree(nil, x)}, nil
	}
}

func (r *reader) place(name string) layer.Place {
	r.t.Helper()
	n := uint32(0)
	for part := range strings.SplitSeq(name, "/") {
		var ok bool
		if n, ok = r.tree.Child(n, part); !ok {
			r.t.Fatalf("no %s", name)
		}
	}
	p, _ := r.tree.Place(n)
	return p
}

func (r *reader) read(ctx context.Context, name string) (string, error) {
	r.t.Helper()
	p := r.place(name)
	b := make([]byte, p.Size)
	n, err := r.files.ReadBody(ctx, p.Body, b, 0)
	if err == io.EOF {
		err = nil
	}
	return string(b[:n]), err
}

func (r *reader) check(name, want string) {
	r.t.Helper()
	got, err := r.read(r.t.Context(), name)
	if err != nil || got != want {
		r.t.Fatalf("%s: %d bytes of %d, the same: %v, %v", name, len(got), len(want), got == want, err)
	}
}

func (r *reader) checkAll() {
	r.t.Helper()
	for n := range lazyCount {
		r.check(fmt.Sprintf("d/%03d", n), lazyFile(n))
	}
	r.check("large", noise(1<<20))
	r.check("hello", "hello\n")
}

// A list of the files and one of them cost a small part of the layer, once: not again in another image or another mount,
// and not without the network.
func TestLazyBytes(t *testing.T) {
	srv := newServer(t)
	for _, m := range lazyImages(t, lazyEntries()) {
		t.Run(m.form, func(t *testing.T) {
			l, c := srv.countLazy(t, m.form, m)
			srv.pushLazy(m.form, "2", m)
			o := newSetup(t, srv.host+"/"+m.form)
			s := o.mustOpen(t)
			img := named(t, s, srv.host+"/"+m.form+":1")
			if files, err := img.Files(t.Context(), 0); err != nil || files.Close() != nil || c.asked.Load() != 0 {
				t.Fatalf("opening costs %d requests, %v", c.asked.Load(), err)
			}
			r := lookInto(t, img)
			root, err := r.files.Root(t.Context())
			if err != nil || root != nil {
				t.Errorf("root: %+v, %v", root, err)
			}
			if a, err := r.tree.Attr(r.tree.Inode(1)); err != nil || a.Mode&0o777 != 0o700 {
				t.Errorf("d: %+v, %v", a, err)
			}
			listed := c.bytes.Load()
			r.check("d/250", lazyFile(250))
			if n := c.bytes.Load(); n*20 > l.Size || listed == 0 || n == listed || c.whole.Load() > 0 {
				t.Errorf("%d bytes for the list, %d with a file, of %d", listed, n, l.Size)
			}
			if got := img.Fetched() - c.bytes.Load(); got < 0 || got > 3000 {
				t.Errorf("fetched: %d bytes, and %d of the layer left the server", img.Fetched(), c.bytes.Load())
			}
			if img.Local(0) {
				t.Error("the layer is local")
			}
			t.Logf("%.2f %% for the list, %.2f %% with a file", 100*float64(listed)/float64(l.Size), 100*float64(c.bytes.Load())/float64(l.Size))
			before := c.asked.Load()
			r.check("d/250", lazyFile(250))
			lookInto(t, named(t, s, srv.host+"/"+m.form+":2")).check("d/250", lazyFile(250))
			o.newCache(t)
			lookInto(t, named(t, o.mustOpen(t), srv.host+"/"+m.form+":1")).check("d/250", lazyFile(250))
			o.Offline = true
			r = lookInto(t, named(t, o.mustOpen(t), srv.host+"/"+m.form+":1"))
			r.check("d/250", lazyFile(250))
			if n := c.asked.Load(); n != before {
				t.Errorf("%d requests more", n-before)
			}
			if _, err := r.read(t.Context(), "large"); !errors.Is(err, syscall.EHOSTUNREACH) || !strings.Contains(err.Error(), "offline") {
				t.Errorf("offline, what is not there: %v", err)
			}
		})
	}
}

func exists(o *setup, path string) bool {
	_, err := os.Stat(filepath.Join(o.CacheDir, cacheVersion, path))
	return err == nil
}

// All who ask at once what the root is are told the same.
func TestLazyRoot(t *testing.T) {
	srv := newServer(t)
	for _, m := range lazyImages(t, append([]images.Entry{images.Dir("./").WithMode(0o711)}, lazyEntries()...)) {
		l := srv.pushLazy(m.form, "1", m)
		asked, gate := make(chan struct{}, 10), make(chan struct{})
		srv.front(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if strings.HasSuffix(r.URL.Path, l.Digest.String()) {
				asked <- struct{}{}
				<-gate
			}
			next.ServeHTTP(w, r)
		})
		files, err := named(t, newSetup(t, srv.host+"/"+m.form+":1").mustOpen(t), srv.host+"/"+m.form+":1").Files(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		defer files.Close()
		var wg, ready sync.WaitGroup
		for range 20 {
			ready.Add(1)
			wg.Go(func() {
				ready.Done()
				root, err := files.Root(t.Context())
				if err != nil || root == nil || root.Mode != 0o711 {
					t.Errorf("%s: %+v, %v", m.form, root, err)
				}
			})
		}
		<-asked
		ready.Wait()
		close(gate)
		wg.Wait()
	}
}

// Parts count towards the cache's limit, and go when others need the room.
func TestLazyEvicted(t *testing.T) {
	srv := newServer(t)
	m := lazyImages(t, lazyEntries())[0]
	l := srv.pushLazy("a", "1", m)
	o := newSetup(t, srv.host+"/a:1")
	s, err := o.open(t)
	if err != nil {
		t.Fatal(err)
	}
	lookInto(t, named(t, s, srv.host+"/a:1")).check("d/100", lazyFile(100))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		limit int64
		want  bool
	}{{l.Size / 2, true}, {20_000, false}} { // the file has holes
		cache, err := layer.OpenCache(o.CacheDir, c.limit, o.Log)
		if err != nil {
			t.Fatal(err)
		}
		cache.Close()
		if got := exists(o, rangesPath(l.Digest)); got != c.want {
			t.Errorf("limit %d: it is there: %v", c.limit, got)
		}
	}
}

// Without a directory to keep things in, the same is read.
func TestLazyUnkept(t *testing.T) {
	srv := newServer(t)
	for _, m := range lazyImages(t, lazyEntries()) {
		srv.pushLazy(m.form, "1", m)
		o := newSetup(t, srv.host+"/"+m.form+":1")
		o.CacheDir = ""
		o.newCache(t)
		lookInto(t, named(t, o.mustOpen(t), srv.host+"/"+m.form+":1")).checkAll()
	}
}

// Several readers of one layer at once.
func TestLazyParallel(t *testing.T) {
	srv := newServer(t)
	for _, m := range lazyImages(t, lazyEntries()) {
		l, c := srv.countLazy(t, m.form, m)
		o := newSetup(t, srv.host+"/"+m.form+":1")
		img := named(t, o.mustOpen(t), srv.host+"/"+m.form+":1")
		r := lookInto(t, img)
		done := make(chan error)
		for i := range 8 {
			go func() {
				for n := range lazyCount {
					n = (n*7 + i*50) % lazyCount
					if got, err := r.read(t.Context(), fmt.Sprintf("d/%03d", n)); err != nil || got != lazyFile(n) {
						done <- fmt.Errorf("d/%03d: %w", n, err)
						return
					}
				}
				done <- nil
			}()
		}
		for range 8 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		if n := c.bytes.Load(); n > l.Size*2 {
			t.Errorf("%d bytes of %d", n, l.Size)
		}
		srv.front(nil)
	}
}
