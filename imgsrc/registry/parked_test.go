package registry

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
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

// What was read early of a blob that gave way is found right when the blob goes on where it stopped.
func TestParkedVerdict(t *testing.T) {
	o, img, letGo := earlySetup(t)
	s := o.mustOpen(t)
	m := named(t, s, o.Ref)
	c, err := m.Blob(t.Context(), img.layers[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var verdict imgsrc.Verdict
	early := imgsrc.WithEarly(t.Context(), func(v imgsrc.Verdict) { verdict = v })
	if _, err := c.ReadAt(early, make([]byte, earlyRead), 0); err != nil || verdict == nil {
		t.Fatalf("%v, verdict %v", err, verdict)
	}
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
	f, err := cachefile.Lock(t.Context(), s.blobs.dir, partPath(img.layers[0].Digest), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	f.Close() // it is parked, and nobody has written to it
	letGo()
	for _, n := range others {
		n.leave()
	}
	if err := verdict.Wait(t.Context()); err != nil {
		t.Error(err)
	}
	wantWhole(t.Context(), t, c, img)
}
