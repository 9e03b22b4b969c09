package registry

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/cachefile"
	"github.com/imgfs/imgfs/imgsrc/layer"
)

// looked opens a layer and reads from its beginning, as `head` does.
func looked(t *testing.T, m *image, d digest.Digest) imgsrc.Content {
	t.Helper()
	c, err := m.Blob(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	ctx, cancel := context.WithTimeout(imgsrc.WithEarly(t.Context(), func(imgsrc.Verdict) {}), 20*time.Second)
	defer cancel()
	if _, err := c.ReadAt(ctx, make([]byte, earlyRead), 0); err != nil {
		t.Fatalf("reading the beginning of %s: %v", d, err)
	}
	return c
}

// Blobs that somebody has looked into, of which a slow registry sends no more, are in nobody's way, and come in as wholes, from
// where they stopped.
func TestLookedInto(t *testing.T) {
	srv := newServer(t)
	var tars [][]byte
	content := strings.Repeat("x", imgsrc.Withheld+earlySent)
	for i := range 2*maxFetches + 1 {
		tars = append(tars, tarOf(t, fmt.Sprint("f", i), content))
	}
	img := srv.image("many", "1", layer.None, tars...)
	last := img.layers[len(tars)-1].Digest
	held := make(chan struct{})
	letGo := sync.OnceFunc(func() { close(held) })
	t.Cleanup(letGo) // before the server is closed, which waits
	srv.front(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.Contains(r.URL.Path, "/blobs/") && !strings.HasSuffix(r.URL.Path, last.String()) && !strings.HasSuffix(r.URL.Path, img.config.Digest.String()) {
			w = &heldWriter{ResponseWriter: w, left: earlySent, held: held}
		}
		next.ServeHTTP(w, r)
	})
	o := newSetup(t, srv.host+"/many:1")
	o.test.limits.stall = time.Minute
	m := named(t, o.mustOpen(t), o.Ref)
	srv.requests("")
	var contents []imgsrc.Content
	for _, l := range img.layers[:len(tars)-1] {
		contents = append(contents, looked(t, m, l.Digest))
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c, err := m.Blob(ctx, last)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := readAll(ctx, c); err != nil || !bytes.Equal(b, img.blobs[len(tars)-1]) {
		t.Errorf("of a blob that is waited for %d bytes came: %v", len(b), err)
	}
	letGo()
	for i, c := range contents {
		if b, err := readAll(t.Context(), c); err != nil || !bytes.Equal(b, img.blobs[i]) {
			t.Errorf("layer %d: %d bytes of %d, or others, %v", i, len(b), len(img.blobs[i]), err)
		}
	}
	asked := srv.requests("GET")
	if len(asked) < len(tars)+maxFetches {
		t.Errorf("none gave way: %q", asked)
	}
	begun := map[string]bool{}
	for _, r := range asked {
		if path, part, _ := strings.Cut(r, " bytes="); part == "" {
			if begun[path] {
				t.Errorf("asked for again from the beginning: %s", r)
			}
			begun[path] = true
		}
	}
}

// Blobs of which a registry sends no more are not in the way of others because somebody waits for them: the kernel does, which reads
// ahead. Those who wait get them when they come.
func TestSilentBlobs(t *testing.T) {
	srv := newServer(t)
	var tars [][]byte
	content := strings.Repeat("x", imgsrc.Withheld+earlySent)
	for i := range maxFetches + 1 {
		tars = append(tars, tarOf(t, fmt.Sprint("f", i), content))
	}
	img := srv.image("many", "1", layer.None, tars...)
	held := make(chan struct{})
	letGo := sync.OnceFunc(func() { close(held) })
	t.Cleanup(letGo)
	srv.front(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.Contains(r.URL.Path, "/blobs/") && !strings.HasSuffix(r.URL.Path, img.layers[maxFetches].Digest.String()) {
			w = &heldWriter{ResponseWriter: w, left: earlySent, held: held}
		}
		next.ServeHTTP(w, r)
	})
	o := newSetup(t, srv.host+"/many:1")
	o.test.limits.stall = time.Minute
	m := named(t, o.mustOpen(t), o.Ref)
	var readers sync.WaitGroup
	defer readers.Wait()
	defer letGo()
	for i, l := range img.layers[:maxFetches] {
		c := looked(t, m, l.Digest)
		readers.Go(func() {
			if b, err := readAll(t.Context(), c); err != nil || !bytes.Equal(b, img.blobs[i]) {
				t.Errorf("layer %d: %d bytes of %d, or others, %v", i, len(b), len(img.blobs[i]), err)
			}
		})
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	c, err := m.Blob(ctx, img.layers[maxFetches].Digest)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := readAll(ctx, c); err != nil || !bytes.Equal(b, img.blobs[maxFetches]) {
		t.Errorf("of a blob that comes %d bytes came: %v", len(b), err)
	}
}

// A blob of which nothing comes is given up in the end, though it gives way to others again and again.
func TestSilentTurns(t *testing.T) { synctest.Test(t, testSilentTurns) }

func testSilentTurns(t *testing.T) {
	var ts turns
	var d, other demand
	defer ts.ask(&d)()
	n, err := ts.take(t.Context(), &d)
	if err != nil {
		t.Fatal(err)
	}
	defer n.leave()
	var others []*turn
	for range maxFetches {
		defer ts.ask(&other)()
	}
	for range maxFetches - 1 {
		o, err := ts.take(t.Context(), &other)
		if err != nil {
			t.Fatal(err)
		}
		others = append(others, o)
	}
	for i, want := range []time.Duration{silentTime, 2 * silentTime, 4 * silentTime, 8 * silentTime, longestSilence, longestSilence} {
		ctx, err := n.wait()
		if err != nil {
			t.Fatal(err)
		}
		n.asks()
		for _, o := range others {
			o.came()
		}
		began := time.Now()
		next := make(chan *turn)
		go func() {
			o, err := ts.take(t.Context(), &other)
			if err != nil {
				t.Error(err)
			}
			next <- o
		}()
		const look = silentTime / 4
		for ctx.Err() == nil {
			time.Sleep(look)
			for _, o := range others {
				o.came()
			}
		}
		if took := time.Since(began); took < want || took > want+look || n.silent() != i+1 {
			t.Errorf("it gave way after %s, and has been silent %d times: want %s, %d", took, n.silent(), want, i+1)
		}
		(<-next).leave()
	}
	if _, err := n.wait(); err != nil {
		t.Fatal(err)
	}
	n.came()
	if n.silent() != 0 {
		t.Error("it is called silent when something has come")
	}
	for _, o := range others {
		o.leave()
	}
}

// Files that were found right once are not remembered for ever when they are gone.
func TestVerifiedIsBounded(t *testing.T) {
	o := newSetup(t, newServer(t).host)
	s := o.mustOpen(t)
	kept := digest.FromString("kept")
	path := filepath.Join(o.CacheDir, "v1", blobPath(kept))
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, path, "kept")
	s.blobs.remember(kept, cachefile.Identity{Size: 4})
	for i := range 3 * spareVerified {
		s.blobs.remember(digest.FromString(fmt.Sprint(i)), cachefile.Identity{})
	}
	if n := len(s.blobs.verified); n > spareVerified+2 {
		t.Errorf("%d files are remembered", n)
	}
	if s.blobs.verified[kept].Size != 4 {
		t.Error("a file that is there was forgotten")
	}
}
