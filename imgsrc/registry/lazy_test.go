package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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
			l := srv.pushLazy(m.form, "1", m)
			srv.pushLazy(m.form, "2", m)
			c := &counter{digest: l.Digest}
			srv.front(c.front)
			defer srv.front(nil)
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

// Whoever goes on reading gets more at a time, and the layer as a whole when most of it is read.
func TestLazySequential(t *testing.T) {
	srv := newServer(t)
	for _, m := range lazyImages(t, lazyEntries()) {
		t.Run(m.form, func(t *testing.T) {
			l := srv.pushLazy(m.form, "1", m)
			c := &counter{digest: l.Digest}
			srv.front(c.front)
			defer srv.front(nil)
			o := newSetup(t, srv.host+"/"+m.form+":1")
			s := o.mustOpen(t)
			img := named(t, s, srv.host+"/"+m.form+":1")
			r := lookInto(t, img)
			before := c.asked.Load()
			for n := 200; n < 250; n++ {
				r.check(fmt.Sprintf("d/%03d", n), lazyFile(n))
			}
			if n := c.asked.Load() - before; n > 6 {
				t.Errorf("%d requests for 50 files", n)
			}
			if n := c.bytes.Load(); n > l.Size/4 {
				t.Errorf("%d bytes of %d for a tenth of the files", n, l.Size)
			}
			key := r.files.Key()
			r.checkAll()
			if n := c.bytes.Load(); n > l.Size*3/2 {
				t.Errorf("%d bytes of %d for all files", n, l.Size)
			}
			eventually(t, "the layer to be local", func() bool { return img.Local(0) })
			eventually(t, "its parts to be removed", func() bool { return !exists(o, rangesPath(l.Digest)) })
			before = c.asked.Load()
			r.checkAll()
			if b, err := readDiff(t, img, 0); err != nil || digest.FromBytes(b) != m.diffID {
				t.Errorf("diff: %v", err)
			}
			if b, err := readBlob(t, img, l.Digest); err != nil || !bytes.Equal(b, m.blob) {
				t.Errorf("blob: %v", err)
			}
			if n := c.asked.Load() - before; n != 0 {
				t.Errorf("%d requests for what is local", n)
			}
			// What is shown stays what it is; who looks later sees the tar.
			if again := lookInto(t, img); again.files.Key() != key || key.Form != layer.TOCForm {
				t.Errorf("%+v, and before %+v", again.files.Key(), key)
			}
			o.newCache(t)
			r = lookInto(t, named(t, o.mustOpen(t), srv.host+"/"+m.form+":1"))
			if r.files.Key().Form != layer.TarForm {
				t.Errorf("%+v", r.files.Key())
			}
			r.checkAll()
		})
	}
}

func exists(o *setup, path string) bool {
	_, err := os.Stat(filepath.Join(o.CacheDir, cacheVersion, path))
	return err == nil
}

// Whoever begins at the beginning gets the rest in one piece, which begins where the parts end.
func TestLazySeed(t *testing.T) {
	srv := newServer(t)
	m := lazyImages(t, lazyEntries())[0]
	l := srv.pushLazy("a", "1", m)
	c := &counter{digest: l.Digest}
	srv.front(c.front)
	s := newSetup(t, srv.host+"/a:1").mustOpen(t)
	img := named(t, s, srv.host+"/a:1")
	r := lookInto(t, img)
	r.checkAll()
	eventually(t, "the layer to be local", func() bool { return img.Local(0) })
	if n := c.bytes.Load(); n > l.Size*5/4 {
		t.Errorf("%d bytes of %d", n, l.Size)
	}
	if n := c.asked.Load(); n > 12 {
		t.Errorf("%d requests", n)
	}
}

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
				// Once its table has been read: its chunks are taken from the whole blob.
				srv.front(nil)
				o := newSetup(t, srv.host+"/a:1")
				img := named(t, o.mustOpen(t), srv.host+"/a:1")
				r = lookInto(t, img)
				srv.front(partial(l.Digest, fault))
				r.check("d/100", lazyFile(100))
				r.check("d/400", lazyFile(400))
				if key := r.files.Key(); key.Form != layer.TOCForm || !img.Local(0) {
					t.Errorf("key %+v, local %v", key, img.Local(0))
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
		l := srv.pushLazy(m.form, "1", m)
		c := &counter{digest: l.Digest}
		srv.front(c.front)
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
