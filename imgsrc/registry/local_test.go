package registry

import (
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/layer"
)

func expectLacks(t *testing.T, what string, m *image, want int64) {
	t.Helper()
	n, ok := m.Lacks()
	if !ok {
		n = -1
	}
	if n != want {
		t.Errorf("%s: %d bytes are lacking, want %d", what, n, want)
	}
}

// What an image lacks shrinks as its layers come, and nobody is asked for that.
func TestLacks(t *testing.T) {
	srv := newServer(t)
	one, two := tarOf(t, "f", noise(300_000)), tarOf(t, "g", noise(20_000))
	made := srv.image("web", "1", layer.Gzip, one, two, one)
	o := newSetup(t, srv.host+"/web:1")
	s := o.mustOpen(t)
	m := named(t, s, srv.host+"/web:1")
	sizes := []int64{made.layers[0].Size, made.layers[1].Size}
	srv.requests("")
	expectLacks(t, "nothing has come", m, sizes[0]+sizes[1])
	if asked := srv.requests(""); len(asked) > 0 {
		t.Errorf("it was asked for %q", asked)
	}
	if _, err := readBlob(t, m, made.layers[1].Digest); err != nil {
		t.Fatal(err)
	}
	expectLacks(t, "a blob is here", m, sizes[0])
	gate := make(chan struct{})
	srv.front(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, made.layers[0].Digest.String()) {
			next.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Content-Length", strconv.FormatInt(sizes[0], 10))
		_, _ = w.Write(made.blobs[0][:200_000])
		_ = http.NewResponseController(w).Flush()
		<-gate
		_, _ = w.Write(made.blobs[0][200_000:])
	})
	done := make(chan error)
	go func() {
		_, err := readDiff(t, m, 0)
		done <- err
	}()
	eventually(t, "a part of it", func() bool { n, ok := m.Lacks(); return ok && n == sizes[0]-200_000 })
	close(gate)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	expectLacks(t, "all is here", m, 0)

	// The tars alone will do, in another mount that has read no config yet.
	for _, l := range made.layers {
		_ = s.blobs.dir.Remove(blobPath(l.Digest))
	}
	if _, err := m.Config(t.Context()); err != nil {
		t.Fatal(err)
	}
	o.newCache(t)
	again := named(t, o.mustOpen(t), srv.host+"/web:1")
	srv.requests("")
	expectLacks(t, "the tar of the first is here", again, sizes[1])
	if asked := srv.requests(""); len(asked) > 0 {
		t.Errorf("it was asked for %q", asked)
	}
}

// A layer with a table of contents lacks nothing, as long as that can be used.
func TestLacksLazy(t *testing.T) {
	srv := newServer(t)
	for _, m := range lazyImages(t, lazyEntries()) {
		l := srv.pushLazy(m.form, "1", m)
		s := newSetup(t, srv.host+"/"+m.form+":1").mustOpen(t)
		img := named(t, s, srv.host+"/"+m.form+":1")
		expectLacks(t, m.form, img, 0)
		srv.front(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if r.Header.Get("Range") != "" && strings.Contains(r.URL.Path, "/blobs/") {
				w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
				return
			}
			next.ServeHTTP(w, r)
		})
		files, err := img.Files(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := files.Entries(t.Context(), func(*imgsrc.File) error { return nil }); err == nil {
			t.Errorf("%s: the table was had without ranges", m.form)
		}
		expectLacks(t, m.form+" whose table cannot be had", img, l.Size)
		srv.front(nil)
		if err := files.Close(); err != nil {
			t.Error(err)
		}
	}
}

// Of an image with a layer that cannot be read it is not known what it lacks.
func TestLacksUnknown(t *testing.T) {
	srv := newServer(t)
	tar := tarOf(t, "f", "x")
	foreign := v1.Descriptor{MediaType: "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", Digest: digest.FromString("x"), Size: 5}
	for name, l := range map[string]v1.Descriptor{
		"foreign": foreign, "encrypted": srv.push("web", v1.MediaTypeImageLayerGzip+"+encrypted", []byte("sealed")), "endless": {MediaType: v1.MediaTypeImageLayer, Digest: digest.FromString("y"), Size: 1<<63 - 1},
	} {
		layers := []v1.Descriptor{srv.push("web", v1.MediaTypeImageLayer, tar), l}
		config, err := json.Marshal(v1.Image{Author: name, RootFS: v1.RootFS{Type: "layers", DiffIDs: []digest.Digest{layers[0].Digest, layers[1].Digest}}})
		if err != nil {
			t.Fatal(err)
		}
		manifest := v1.Manifest{MediaType: v1.MediaTypeImageManifest, Config: srv.push("web", v1.MediaTypeImageConfig, config), Layers: layers}
		manifest.SchemaVersion = 2
		srv.put("web", name, v1.MediaTypeImageManifest, manifest)
		expectLacks(t, name, named(t, newSetup(t, srv.host+"/web:"+name).mustOpen(t), srv.host+"/web:"+name), -1)
	}
}
