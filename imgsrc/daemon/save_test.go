package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// Layers that images share are read while these are saved, whoever asks for them.
func TestSharedLayers(t *testing.T) {
	var images []*fakeImage
	for n := range 6 {
		p := partsOf(t, layerOf(t, "a"), layerOf(t, "b"), layerOf(t, fmt.Sprint(n)))
		images = append(images, p.image(p.legacy(t), fmt.Sprintf("p:%d", n)))
	}
	f := newFake(t, images...)
	dir := t.TempDir()
	s := openSource(t, Options{Host: f.host, CacheDir: dir, Cache: testCache(t, dir, 0)})
	for range 5 {
		var wg sync.WaitGroup
		for n := range images {
			img := find(t, s, fmt.Sprintf("docker.io/library/p:%d", n))
			wg.Go(func() { checkLayers(t, img) })
		}
		wg.Wait()
		s.settled()
		s.unpin(0)
		_ = os.RemoveAll(filepath.Join(dir, "v1", "diff")) // the cache may be about to put one there
	}
	if n := f.count("GET get"); n > 5*2*len(images) {
		t.Errorf("%d saves", n)
	}
}

func TestOneSaveForAll(t *testing.T) {
	for name, withDir := range map[string]bool{"with a cache": true, "with none": false} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t, three(t)...)
			o := Options{Host: f.host}
			if withDir {
				o.CacheDir = t.TempDir()
				o.Cache = testCache(t, o.CacheDir, 0)
			}
			s := openSource(t, o)
			for i, name := range []string{"a", "b", "c"} {
				img := find(t, s, "docker.io/library/"+name+":1")
				var wg sync.WaitGroup
				for range 8 {
					wg.Go(func() {
						if _, err := img.Manifest(t.Context()); err != nil {
							t.Error(err)
						}
						if _, err := img.Config(t.Context()); err != nil {
							t.Error(err)
						}
					})
				}
				wg.Wait()
				checkLayers(t, img)
				checkLayers(t, img)
				if n := f.count("GET get"); n != i+1 {
					t.Errorf("%d saves for %d images", n, i+1)
				}
			}
			if !withDir {
				return
			}
			// The next source knows them from the beginning.
			again := openSource(t, o)
			for _, name := range []string{"a", "b", "c"} {
				img := find(t, again, "docker.io/library/"+name+":1")
				m, err := img.Manifest(t.Context())
				if d := img.Desc(); err != nil || digest.FromBytes(m) != d.Digest || int64(len(m)) != d.Size || d.Config == "" {
					t.Errorf("%+v, %v", d, err)
				}
				checkLayers(t, img)
			}
			if n := f.count("GET get"); n != 3 {
				t.Errorf("%d saves for what is in the cache", n-3)
			}
		})
	}
}

// What is evicted is saved again, once for an image, and read rightly, however little the cache keeps.
func TestEvictedLayers(t *testing.T) {
	f := newFake(t, three(t)...)
	dir := t.TempDir()
	s := openSource(t, Options{Host: f.host, CacheDir: dir, Cache: testCache(t, dir, 1)})
	images := []string{"a", "b", "c"}
	for range 3 {
		for _, name := range images {
			checkLayers(t, find(t, s, "docker.io/library/"+name+":1"))
			s.settled()
			s.unpin(0)
			_ = os.RemoveAll(filepath.Join(dir, "v1", "diff")) // the cache may be about to put one there
		}
	}
	if n := f.count("GET get"); n < 2*len(images) || n > 3*len(images) {
		t.Errorf("%d saves", n)
	}
	if open := spools(t, dir); len(open) > 0 {
		t.Errorf("files are still open: %v", open)
	}
}

// A layer is here from the save that brings it until the cache has thrown it out, and before and after that for nobody.
func TestLocal(t *testing.T) {
	for name, withDir := range map[string]bool{"with a cache": true, "with none": false} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t, three(t)...)
			o := Options{Host: f.host}
			if withDir {
				o.CacheDir = t.TempDir()
				o.Cache = testCache(t, o.CacheDir, 0)
			}
			s := openSource(t, o)
			listed := find(t, s, "docker.io/library/a:1")
			img := listed.Image.(*image)
			is := func(when string, local bool) {
				t.Helper()
				for n := range img.layers {
					if img.Local(n) != local {
						t.Errorf("%s: layer %d is here: %v", when, n, !local)
					}
				}
			}
			is("before", false)
			if f.count("GET get") > 0 || img.Local(-1) {
				t.Error("it was saved to tell")
			}
			if _, err := img.Manifest(t.Context()); err != nil {
				t.Fatal(err)
			}
			is("saved", true)
			s.settled()
			is("in the cache", true)
			if img.Local(len(img.layers)) {
				t.Error("there is a layer behind the last")
			}
			s.unpin(0)
			is("nobody reads it", withDir)
			if withDir {
				if err := os.RemoveAll(filepath.Join(o.CacheDir, "v1", "diff")); err != nil {
					t.Fatal(err)
				}
			}
			is("thrown out", false)
			checkLayers(t, listed)
			is("read again", true)
			if n := f.count("GET get"); n != 2 {
				t.Errorf("%d saves", n)
			}
		})
	}
}

// settled waits until no image is being taken apart.
func (s *Source) settled() {
	for {
		s.mu.Lock()
		n := len(s.spools)
		s.mu.Unlock()
		if n == 0 {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

func TestReaderWhoLeaves(t *testing.T) {
	images := three(t)
	f := newFake(t, images...)
	gate := make(chan struct{})
	f.save = func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusOK)
		w.(http.Flusher).Flush()
		<-gate
		_, _ = w.Write(images[0].archive)
	}
	s := openSource(t, Options{Host: f.host})
	img := find(t, s, "docker.io/library/a:1")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := img.Config(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a reader who leaves: %v", err)
	}
	close(gate)
	if _, err := img.Config(t.Context()); err != nil {
		t.Error(err)
	}
	if n := f.count("GET get"); n != 1 {
		t.Errorf("%d saves", n)
	}
}

func TestCloseStopsSaves(t *testing.T) {
	f := newFake(t, three(t)...)
	gate := make(chan struct{})
	defer close(gate)
	f.save = func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusOK)
		w.(http.Flusher).Flush()
		<-gate
	}
	dir := t.TempDir()
	s, err := Open(t.Context(), Options{Host: f.host, CacheDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	img := find(t, s, "docker.io/library/a:1")
	ended := make(chan error)
	go func() {
		_, err := img.Manifest(t.Context())
		ended <- err
	}()
	for f.count("GET get") == 0 {
		time.Sleep(time.Millisecond)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := <-ended; !errors.Is(err, fs.ErrClosed) {
		t.Errorf("a reader of a source that was closed: %v", err)
	}
	if _, err := img.Manifest(t.Context()); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("reading after closing: %v", err)
	}
	if open := spools(t, dir); len(open) > 0 {
		t.Errorf("files are still open: %v", open)
	}
	wantEmpty(t, filepath.Join(dir, recordsDir))
}

func wantEmpty(t *testing.T, dir string) {
	t.Helper()
	files, err := os.ReadDir(dir)
	if err != nil || len(files) > 0 {
		t.Errorf("left behind: %v, %v", files, err)
	}
}

func TestStalledSave(t *testing.T) {
	f := newFake(t, three(t)...)
	f.save = func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusOK)
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	}
	s := openSource(t, Options{Host: f.host})
	s.stall = 50 * time.Millisecond
	if _, err := find(t, s, "docker.io/library/a:1").Config(t.Context()); !errors.Is(err, syscall.ETIMEDOUT) || !strings.Contains(err.Error(), "has stopped sending") {
		t.Error(err)
	}
}

// An engine that hangs in the middle of a save is not waited for, and one that takes its time is, as long as it says that it is there.
func TestSaveOfAHungEngine(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for _, hangs := range []bool{false, true} {
		f := newFake(t, three(t)...)
		f.save = func(w http.ResponseWriter, r *http.Request) {
			f.mu.Lock()
			f.silent = map[string]bool{"HEAD _ping": hangs, "GET _ping": hangs}
			before := f.calls["HEAD _ping"]
			f.mu.Unlock()
			for !hangs && f.count("HEAD _ping") < before+3 && r.Context().Err() == nil {
				time.Sleep(time.Millisecond)
			}
			if !hangs {
				f.sendImage(w, r)
				return
			}
			<-r.Context().Done()
		}
		s := openSource(t, Options{Host: f.host})
		s.quiet, s.engine.answer = 10*time.Millisecond, time.Second
		_, err := find(t, s, "docker.io/library/a:1").Config(ctx)
		if hangs && (!errors.Is(err, syscall.ETIMEDOUT) || !strings.Contains(err.Error(), "does not answer in time")) {
			t.Errorf("an engine that hangs: %v", err)
		}
		if !hangs && err != nil {
			t.Errorf("an engine that takes its time: %v", err)
		}
	}
}
