package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/layer"
)

// A reader that leaves does not end the fetch, and the next one finds what has come meanwhile.
func TestReaderLeaves(t *testing.T) {
	srv := newServer(t)
	img := big(t, srv)
	_, m, _ := openBig(t, srv)
	gate, began := make(chan struct{}), make(chan struct{})
	var once sync.Once
	srv.front(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if isLayer(r, img) {
			once.Do(func() { close(began) })
			<-gate
		}
		next.ServeHTTP(w, r)
	})
	c, err := m.Blob(t.Context(), img.layers[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-began
		cancel()
	}()
	if _, err := c.ReadAt(ctx, make([]byte, 1), 0); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want Canceled", err)
	}
	c.Close()
	close(gate)
	srv.requests("")
	wantBlob(t, m, img)
	if again := srv.requests("GET"); len(again) != 0 {
		t.Errorf("fetched again: %q", again)
	}
}

// A source that is closed while it fetches returns at once, and its readers get an error that says why.
func TestCloseWhileFetching(t *testing.T) {
	srv := newServer(t)
	img := big(t, srv)
	o := newSetup(t, srv.host+"/big:1")
	o.test.limits.stall = time.Minute
	s, err := o.open(t)
	if err != nil {
		t.Fatal(err)
	}
	m := named(t, s, srv.host+"/big:1")
	srv.front(broken(img, 1000, true, silence))
	began := make(chan struct{})
	got := make(chan error, 2)
	for range 2 {
		go func() {
			began <- struct{}{}
			_, err := readBlob(t, m, img.layers[0].Digest)
			got <- err
		}()
		<-began
	}
	time.Sleep(50 * time.Millisecond)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := <-got; !errors.Is(err, os.ErrClosed) {
			t.Errorf("%v, want ErrClosed", err)
		}
	}
	if _, err := readBlob(t, m, img.layers[0].Digest); !errors.Is(err, os.ErrClosed) {
		t.Errorf("afterwards: %v, want ErrClosed", err)
	}
}

// Two sources on one cache, as in two processes, fetch a blob once.
func TestTwoFetchOnce(t *testing.T) {
	srv := newServer(t)
	img := big(t, srv)
	a, m, o := openBig(t, srv)
	_ = a
	other := *o
	s2 := other.mustOpen(t)
	m2 := named(t, s2, srv.host+"/big:1")
	var wg sync.WaitGroup
	srv.requests("")
	for range 4 {
		wg.Go(func() { wantBlob(t, m, img) })
		wg.Go(func() { wantBlob(t, m2, img) })
		wg.Go(func() { wantDiff(t, m, img) })
	}
	wg.Wait()
	if n := len(srv.requests("GET /v2/big/blobs/" + img.layers[0].Digest.String())); n != 1 {
		t.Errorf("fetched %d times", n)
	}
}

// A file in the cache that somebody has changed is noticed, also while it is open.
func TestCacheIsChanged(t *testing.T) {
	srv := newServer(t)
	img := big(t, srv)
	_, m, o := openBig(t, srv)
	wantBlob(t, m, img)
	path := filepath.Join(o.CacheDir, "v1", blobPath(img.layers[0].Digest))
	c, err := m.Blob(t.Context(), img.layers[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	p := make([]byte, 100)
	if _, err := c.ReadAt(t.Context(), p, 5000); err != nil || !bytes.Equal(p, img.blobs[0][5000:5100]) {
		t.Fatal(err)
	}
	for _, change := range []func(){
		func() { write(t, path, "short") },
		func() {
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err == nil {
				_, err = f.WriteAt([]byte("x"), 5050)
				f.Close()
			}
			if err != nil {
				t.Fatal(err)
			}
		},
		func() { os.RemoveAll(o.CacheDir + "/v1") },
	} {
		change()
		srv.requests("")
		if _, err := c.ReadAt(t.Context(), p, 5000); err != nil || !bytes.Equal(p, img.blobs[0][5000:5100]) {
			t.Errorf("%v", err)
		}
		wantBlob(t, m, img)
	}
	if again := srv.requests(""); len(again) != 0 { // it was open, and right
		t.Errorf("after the cache was emptied: %q", again)
	}
}

// Without a directory everything works, and nothing is left behind.
func TestNoCacheDir(t *testing.T) {
	srv := newServer(t)
	img := big(t, srv)
	o := newSetup(t, srv.host+"/big:1")
	o.CacheDir = ""
	o.newCache(t)
	s := o.mustOpen(t)
	m := named(t, s, srv.host+"/big:1")
	wantBlob(t, m, img)
	wantDiff(t, m, img)
	if _, err := m.Config(t.Context()); err != nil {
		t.Error(err)
	}
}

// Where the cache cannot be written a temporary file will do, and where there is room for none a layer is read all the
// same, as it comes in.
func TestCacheCannotBeWritten(t *testing.T) {
	srv := newServer(t)
	img := big(t, srv)
	_, m, o := openBig(t, srv)
	part := filepath.Join(o.CacheDir, "v1", partDir)
	if err := os.RemoveAll(part); err != nil {
		t.Fatal(err)
	}
	write(t, part, "not a directory")
	wantBlob(t, m, img)
	wantDiff(t, m, img)

	_, m, o = openBig(t, srv)
	part = filepath.Join(o.CacheDir, "v1", partDir)
	if err := os.RemoveAll(part); err != nil {
		t.Fatal(err)
	}
	write(t, part, "not a directory")
	t.Setenv("TMPDIR", "/nonexistent")
	if b, err := readBlob(t, m, img.layers[0].Digest); err == nil || len(b) > 0 {
		t.Errorf("%d bytes of a blob that cannot be stored", len(b))
	}
	wantDiff(t, m, img)
}

// Blobs count towards the cache's limit as they come, and not only when it is opened again.
func TestFetchedWithinLimit(t *testing.T) {
	const size = 300_000
	srv := newServer(t)
	var all []made
	for n := range 5 {
		all = append(all, srv.image("web", fmt.Sprint(n), layer.Gzip, tarOf(t, "f", noise(size+n))))
	}
	o := newSetup(t, srv.host+"/web")
	var err error
	if o.Cache, err = layer.OpenCache(o.CacheDir, 3*size, o.Log); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { o.Cache.Close() })
	s := o.mustOpen(t)
	for n, img := range all {
		wantBlob(t, named(t, s, fmt.Sprintf("%s/web:%d", srv.host, n)), img)
	}
	here, err := filepath.Glob(filepath.Join(o.CacheDir, "v1", fetchedDir, "sha256", "*"))
	if err != nil || len(here) < 1 || len(here) > 3 {
		t.Errorf("%d of %d blobs are here, %v", len(here), len(all), err)
	}
}

// Only what is decompressed is there: the layer is local all the same.
func TestLocalByDiff(t *testing.T) {
	srv := newServer(t)
	img := srv.image("web", "1", layer.Gzip, tarOf(t, "f", noise(100_000)))
	o := newSetup(t, srv.host+"/web:1")
	s := o.mustOpen(t)
	m := named(t, s, srv.host+"/web:1")
	if _, err := readDiff(t, m, 0); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(o.CacheDir + "/v1/" + fetchedDir); err != nil {
		t.Fatal(err)
	}
	srv.requests("")
	if !m.Local(0) {
		t.Error("the layer is not local")
	}
	files, err := m.Files(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer files.Close()
	if _, err := files.Root(t.Context()); err != nil {
		t.Error(err)
	}
	if b, err := readDiff(t, m, 0); err != nil || len(b) != len(img.tars[0]) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if again := srv.requests("GET"); len(again) != 0 {
		t.Errorf("asked for %q", again)
	}
}

func TestOffline(t *testing.T) {
	srv := newServer(t)
	img := srv.image("web", "1", layer.Gzip, tarOf(t, "f", noise(100_000)), tarOf(t, "g", "x"))
	o := newSetup(t, srv.host+"/web")
	off := *o
	off.Offline = true
	if _, err := off.open(t); !errors.Is(err, imgsrc.ErrNoSource) {
		t.Errorf("nothing is kept: %v, want ErrNoSource", err)
	}
	s := o.mustOpen(t)
	m := named(t, s, srv.host+"/web:1")
	if _, err := imgsrc.Load(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	if _, err := readDiff(t, m, 0); err != nil {
		t.Fatal(err)
	}
	s.Close()
	srv.requests("")
	s = off.mustOpen(t)
	m = named(t, s, srv.host+"/web:1")
	s.Stamp()
	wantDiff(t, m, img)
	if !m.Local(0) || m.Local(1) {
		t.Error("the first layer is local and the second is not")
	}
	if _, err := readDiff(t, m, 1); !errors.Is(err, syscall.EHOSTUNREACH) || !strings.Contains(err.Error(), "offline") {
		t.Errorf("a layer that is not there: %v", err)
	}
	if _, err := s.Resolve(t.Context(), srv.host+"/other:1"); !errors.Is(err, imgsrc.ErrNotFound) {
		t.Errorf("an image that is not there: %v", err)
	}
	if again := srv.requests(""); len(again) != 0 {
		t.Errorf("asked: %q", again)
	}
}

// What the cache of manifests holds is checked, bounded, and private.
func TestDocuments(t *testing.T) {
	srv := newServer(t)
	img := srv.image("web", "1", layer.None, tarOf(t))
	o := newSetup(t, srv.host+"/web:1")
	s := o.mustOpen(t)
	m := named(t, s, srv.host+"/web:1")
	path := filepath.Join(o.CacheDir, "manifests", documentPath(img.Digest))
	write(t, path, "{}")
	b, err := m.Manifest(t.Context())
	if err != nil || digest.FromBytes(b) != img.Digest {
		t.Errorf("%s, %v", b, err)
	}
	if b, err := os.ReadFile(path); err != nil || digest.FromBytes(b) != img.Digest {
		t.Errorf("it was not put back: %v", err)
	}
	if fi, err := os.Stat(filepath.Join(o.CacheDir, "manifests")); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", fi, err)
	}
	s.docs.sweep(0)
	if files, _ := filepath.Glob(o.CacheDir + "/manifests/*/*"); len(files) != 0 {
		t.Errorf("left: %q", files)
	}
	if _, err := m.Manifest(t.Context()); err != nil {
		t.Error(err)
	}
	os.RemoveAll(o.CacheDir)
	if _, err := m.Manifest(t.Context()); err != nil {
		t.Error(err)
	}
	// A directory that others can write to is not used.
	o = newSetup(t, srv.host+"/web:1")
	for _, dir := range []string{"manifests", "v1"} {
		if err := os.MkdirAll(filepath.Join(o.CacheDir, dir), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Join(o.CacheDir, dir), 0o777); err != nil {
			t.Fatal(err)
		}
	}
	s = o.mustOpen(t)
	if _, err := readBlob(t, named(t, s, srv.host+"/web:1"), img.layers[0].Digest); err != nil {
		t.Error(err)
	}
	if files, _ := filepath.Glob(o.CacheDir + "/*/*/*"); len(files) != 0 {
		t.Errorf("kept: %q", files)
	}
}

// Blobs are within the bound of the layer cache: those that nobody reads from go, the others stay.
func TestEviction(t *testing.T) {
	srv := newServer(t)
	img := srv.image("web", "1", layer.Gzip, tarOf(t, "f", noise(100_000)), tarOf(t, "g", noise(100_001)))
	o := newSetup(t, srv.host+"/web:1")
	s := o.mustOpen(t)
	m := named(t, s, srv.host+"/web:1")
	held, err := m.Blob(t.Context(), img.layers[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	if _, err := held.ReadAt(t.Context(), make([]byte, 1), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := readBlob(t, m, img.layers[1].Digest); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(time.Minute); m.Local(1) && time.Now().Before(end); { // until who has fetched it has let go of it
		c, err := layer.OpenCache(o.CacheDir, 1, o.Log)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if !m.Local(0) || m.Local(1) {
		t.Errorf("local: %v %v, want true and false", m.Local(0), m.Local(1))
	}
	if b, err := readBlob(t, m, img.layers[1].Digest); err != nil || len(b) != len(img.blobs[1]) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}
