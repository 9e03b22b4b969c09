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
	"sync"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/cachefile"
	"github.com/imgfs/imgfs/imgsrc/layer"
)

// A blob that gave way is not in the way of another process either: that one goes on with what has come of it.
func TestParkedForOthers(t *testing.T) {
	const looks = maxFetches
	srv, well := newServer(t), newServer(t)
	var tars [][]byte
	content := strings.Repeat("x", imgsrc.Withheld+earlySent)
	for i := range looks {
		tars = append(tars, tarOf(t, fmt.Sprint("f", i), content))
	}
	for i := range maxFetches {
		tars = append(tars, tarOf(t, fmt.Sprint("g", i), "wanted"))
	}
	img := srv.image("many", "1", layer.None, tars...)
	well.image("many", "1", layer.None, tars...)
	held, wanted := make(chan struct{}), make(chan struct{}, len(tars))
	letGo := sync.OnceFunc(func() { close(held) })
	t.Cleanup(letGo) // before the server is closed, which waits
	srv.front(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		switch i := slices.IndexFunc(img.layers, func(l v1.Descriptor) bool { return strings.HasSuffix(r.URL.Path, l.Digest.String()) }); {
		case i >= looks:
			wanted <- struct{}{}
			<-held
		case i >= 0:
			w = &heldWriter{ResponseWriter: w, left: earlySent, held: held}
		}
		next.ServeHTTP(w, r)
	})
	o := newSetup(t, srv.host+"/many:1")
	o.test.limits.stall = time.Minute
	m := named(t, o.mustOpen(t), o.Ref)
	var contents []imgsrc.Content
	for _, l := range img.layers[:looks] {
		contents = append(contents, looked(t, m, l.Digest))
	}
	var readers sync.WaitGroup
	defer readers.Wait()
	defer letGo()
	for i, l := range img.layers[looks:] {
		readers.Go(func() {
			if b, err := readBlob(t, m, l.Digest); err != nil || !bytes.Equal(b, img.blobs[looks+i]) {
				t.Errorf("what is waited for: %d bytes, %v", len(b), err)
			}
		})
	}
	for range maxFetches {
		<-wanted // now all others have given way
	}

	other := *o
	other.Ref = well.host + "/many:1"
	m2 := named(t, other.mustOpen(t), other.Ref)
	well.requests("")
	ctx, cancel := context.WithTimeout(t.Context(), stallTime/2)
	defer cancel()
	c, err := m2.Blob(ctx, img.layers[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := readAll(ctx, c); err != nil || !bytes.Equal(b, img.blobs[0]) {
		t.Errorf("another process gets %d bytes of %d: %v", len(b), len(img.blobs[0]), err)
	}
	if asked := well.requests("GET"); len(asked) != 1 || !strings.Contains(asked[0], " bytes=") {
		t.Errorf("it asked for %q, want the rest", asked)
	}

	srv.requests("")
	letGo()
	readers.Wait()
	for i, c := range contents {
		if b, err := readAll(t.Context(), c); err != nil || !bytes.Equal(b, img.blobs[i]) {
			t.Errorf("layer %d: %d bytes of %d, or others, %v", i, len(b), len(img.blobs[i]), err)
		}
	}
	for _, r := range srv.requests("GET") {
		if strings.Contains(r, img.layers[0].Digest.String()) {
			t.Errorf("what another process has fetched was asked for: %s", r)
		} else if !strings.Contains(r, " bytes=") {
			t.Errorf("asked for again from the beginning: %s", r)
		}
	}
}

// What was read early of a blob that gave way is found right when the blob goes on, whatever has become of its part file. Only what
// another process has begun with other bytes is not gone on with.
func TestParkedVerdict(t *testing.T) {
	for name, test := range map[string]struct {
		meanwhile func(t *testing.T, f *os.File, dir string, img made) // to the part file
		right     bool
	}{
		"nothing": {func(*testing.T, *os.File, string, made) {}, true},
		"another process went on": {func(t *testing.T, f *os.File, _ string, img made) {
			writeAt(t, f, img.blobs[0][fileSize(f):][:100_000], fileSize(f))
		}, true},
		"another process finished it": {func(t *testing.T, f *os.File, dir string, img made) {
			writeAt(t, f, img.blobs[0], 0)
			finished := filepath.Join(dir, blobPath(img.layers[0].Digest))
			if err := errors.Join(os.MkdirAll(filepath.Dir(finished), 0o700), os.Rename(f.Name(), finished)); err != nil {
				t.Fatal(err)
			}
		}, true},
		"evicted": {func(t *testing.T, f *os.File, _ string, _ made) {
			if err := os.Remove(f.Name()); err != nil {
				t.Fatal(err)
			}
		}, true},
		"begun anew": {func(t *testing.T, f *os.File, _ string, _ made) {
			if err := f.Truncate(0); err != nil {
				t.Fatal(err)
			}
		}, false},
		"begun anew with other bytes": {func(t *testing.T, f *os.File, _ string, _ made) { writeAt(t, f, []byte("other bytes"), 1000) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			o, img, letGo := earlySetup(t)
			s := o.mustOpen(t)
			c, err := named(t, s, o.Ref).Blob(t.Context(), img.layers[0].Digest)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			var verdict imgsrc.Verdict
			early := imgsrc.WithEarly(t.Context(), func(v imgsrc.Verdict) { verdict = v })
			if _, err := c.ReadAt(early, make([]byte, earlyRead), 0); err != nil || verdict == nil {
				t.Fatalf("%v, verdict %v", err, verdict)
			}
			told := make(chan error, 1)
			go func() { told <- verdict.Wait(t.Context()) }() // as who has to know it does, who does not want more of the blob
			var others []*turn
			for range maxFetches {
				var d demand
				defer s.blobs.turns.ask(&d)()
				n, err := s.blobs.turns.take(t.Context(), &d)
				if err != nil {
					t.Fatal(err)
				}
				others = append(others, n)
			}
			part := partPath(img.layers[0].Digest)
			locked, err := cachefile.Lock(t.Context(), s.blobs.dir, part, time.Minute) // it is parked
			if err != nil {
				t.Fatal(err)
			}
			dir := filepath.Join(o.CacheDir, cacheVersion)
			f, err := os.OpenFile(filepath.Join(dir, part), os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			test.meanwhile(t, f, dir, img)
			f.Close()
			locked.Close()
			letGo()
			for _, n := range others {
				n.leave()
			}
			if err := <-told; (err == nil) != test.right {
				t.Errorf("what was read early: %v", err)
			}
			wantWhole(t.Context(), t, c, img)
		})
	}
}

func writeAt(t *testing.T, f *os.File, b []byte, off int64) {
	t.Helper()
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}
