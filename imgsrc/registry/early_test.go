package registry

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/layer"
)

const (
	earlySent = 1 << 20 // bytes that the registry sends before it waits
	earlyRead = 256 << 10
)

// earlySetup is an image whose layer is longer than what is withheld, in a registry that sends some of it and waits to be let go.
func earlySetup(t *testing.T) (o *setup, img made, letGo func()) {
	t.Helper()
	srv := newServer(t)
	img = srv.image("big", "1", layer.None, tarOf(t, "f", noise(imgsrc.Withheld+earlySent)))
	held := make(chan struct{})
	srv.front(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if isLayer(r, img) {
			w = &heldWriter{ResponseWriter: w, left: earlySent, held: held}
		}
		next.ServeHTTP(w, r)
	})
	o = newSetup(t, srv.host+"/big:1")
	o.test.limits.stall = time.Minute
	letGo = sync.OnceFunc(func() { close(held) })
	t.Cleanup(letGo) // a test that fails before it lets go would have the server wait for that for ever
	return o, img, letGo
}

// A heldWriter waits after some bytes.
type heldWriter struct {
	http.ResponseWriter
	left int
	held chan struct{}
}

func (w *heldWriter) Write(p []byte) (int, error) {
	n := min(len(p), w.left)
	if w.left -= n; n < len(p) {
		if _, err := w.ResponseWriter.Write(p[:n]); err != nil {
			return 0, err
		}
		w.ResponseWriter.(http.Flusher).Flush()
		<-w.held
		m, err := w.ResponseWriter.Write(p[n:])
		w.left = 1 << 40
		return n + m, err
	}
	return w.ResponseWriter.Write(p)
}

func openEarly(t *testing.T, o *setup, img made) (c imgsrc.Content, ctx context.Context, taken map[imgsrc.Verdict]bool) {
	t.Helper()
	c, err := named(t, o.mustOpen(t), o.Ref).Blob(t.Context(), img.layers[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	taken = map[imgsrc.Verdict]bool{}
	return c, imgsrc.WithEarly(t.Context(), func(v imgsrc.Verdict) { taken[v] = true }), taken
}

func wantWhole(ctx context.Context, t *testing.T, c imgsrc.Content, img made) {
	t.Helper()
	if b, err := readAll(ctx, c); err != nil || !bytes.Equal(b, img.blobs[0]) {
		t.Errorf("%d of %d bytes, or others, %v", len(b), len(img.blobs[0]), err)
	}
}

// A layer is given out from its beginning while it comes in.
func TestEarly(t *testing.T) {
	o, img, letGo := earlySetup(t)
	c, ctx, taken := openEarly(t, o, img)
	p := make([]byte, earlyRead)
	for off := int64(0); off < earlySent-earlyRead; off += earlyRead {
		if n, err := c.ReadAt(ctx, p, off); n != len(p) || err != nil || !bytes.Equal(p, img.blobs[0][off:off+earlyRead]) {
			t.Fatalf("at %d: %d bytes, %v", off, n, err)
		}
	}
	if len(taken) != 1 {
		t.Fatalf("%d verdicts, want one", len(taken))
	}
	others := make(chan error)
	for _, read := range []struct {
		ctx context.Context
		off int64
	}{{ctx, earlySent / 2}, {ctx, int64(len(img.blobs[0])) - 1000}, {t.Context(), 0}} {
		go func() {
			p := make([]byte, 1000)
			_, err := c.ReadAt(read.ctx, p, read.off)
			if err == nil && !bytes.Equal(p, img.blobs[0][read.off:read.off+1000]) {
				err = errors.New("other bytes")
			}
			others <- err
		}()
	}
	letGo()
	for range 3 {
		if err := <-others; err != nil {
			t.Error(err)
		}
	}
	for v := range taken {
		if err := v.Wait(t.Context()); err != nil {
			t.Error(err)
		}
	}
	wantWhole(ctx, t, c, img)
}

// What was given out of a part that turned out wrong stays wrong, also if the right bytes come in its place.
func TestEarlyWrong(t *testing.T) {
	o, img, letGo := earlySetup(t)
	wrong := bytes.Clone(img.blobs[0][:earlySent])
	wrong[100] ^= 1
	dir := filepath.Join(o.CacheDir, "v1")
	if err := os.MkdirAll(filepath.Join(dir, partDir), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, partPath(img.layers[0].Digest)), string(wrong))
	c, ctx, taken := openEarly(t, o, img)
	p := make([]byte, earlyRead)
	if _, err := c.ReadAt(ctx, p, 0); err != nil || !bytes.Equal(p, wrong[:earlyRead]) {
		t.Fatalf("%v, or not what lay there", err)
	}
	letGo()
	wantWhole(t.Context(), t, c, img)
	for v := range taken {
		if err := v.Wait(t.Context()); err == nil {
			t.Error("it was found right")
		}
	}
}

// A file of the cache is given out while it is hashed; if it is wrong, that is said.
func TestEarlyFromCache(t *testing.T) {
	for name, flip := range map[string]int{"right": -1, "wrong": 100} {
		t.Run(name, func(t *testing.T) {
			o, img, letGo := earlySetup(t)
			letGo()
			b := bytes.Clone(img.blobs[0])
			if flip >= 0 {
				b[flip] ^= 1
			}
			path := filepath.Join(o.CacheDir, "v1", blobPath(img.layers[0].Digest))
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			write(t, path, string(b))
			c, ctx, taken := openEarly(t, o, img)
			p := make([]byte, earlyRead)
			if _, err := c.ReadAt(ctx, p, 0); err != nil {
				t.Fatal(err)
			}
			wantWhole(t.Context(), t, c, img)
			for v := range taken { // none, if the hashing was faster
				if err := v.Wait(t.Context()); (err == nil) != bytes.Equal(p, img.blobs[0][:earlyRead]) {
					t.Errorf("%v", err)
				}
			}
			if len(taken) == 0 && !bytes.Equal(p, img.blobs[0][:earlyRead]) {
				t.Error("wrong bytes, and no verdict on them")
			}
		})
	}
}
