package registry

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/layer"
	"github.com/imgfs/imgfs/test/images"
)

// A blob that the registry has lost is damage; that of an image that it has lost is not found.
func TestBlobIsGone(t *testing.T) {
	srv := newServer(t)
	img := srv.image("web", "1", layer.Gzip, tarOf(t, "f", "x"))
	s := newSetup(t, srv.host+"/web:1").mustOpen(t)
	m := named(t, s, srv.host+"/web:1")
	all := false
	srv.front(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if all || strings.HasSuffix(r.URL.Path, img.layers[0].Digest.String()) {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		next.ServeHTTP(w, r)
	})
	if _, err := readBlob(t, m, img.layers[0].Digest); !errors.Is(err, imgsrc.ErrDamaged) || errors.Is(err, imgsrc.ErrNotFound) {
		t.Errorf("blob: %v, want ErrDamaged", err)
	}
	if _, err := readDiff(t, m, 0); !errors.Is(err, imgsrc.ErrDamaged) {
		t.Errorf("diff: %v, want ErrDamaged", err)
	}
	all = true
	if _, err := readBlob(t, m, img.layers[0].Digest); !errors.Is(err, imgsrc.ErrNotFound) {
		t.Errorf("blob: %v, want ErrNotFound", err)
	}
}

// Layers that need not be in a registry, of media types that are no tars, and with another size than the manifest says.
func TestOddLayers(t *testing.T) {
	srv := newServer(t)
	tar := tarOf(t, "f", "x")
	there := srv.push("web", "application/vnd.docker.image.rootfs.foreign.diff.tar", tar)
	notThere := v1.Descriptor{MediaType: "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", Digest: digest.FromString("x"), Size: 5}
	wrongSize := srv.push("web", v1.MediaTypeImageLayer, tarOf(t, "f", "y"))
	wrongSize.Size--
	other := srv.push("web", "application/x-squashfs", []byte("squash"))
	sealed := srv.push("web", v1.MediaTypeImageLayerGzip+"+encrypted", []byte("sealed"))
	layers := []v1.Descriptor{there, notThere, wrongSize, other, sealed}
	var ids []digest.Digest
	for _, l := range layers {
		ids = append(ids, l.Digest)
	}
	config, _ := json.Marshal(v1.Image{RootFS: v1.RootFS{Type: "layers", DiffIDs: ids}})
	manifest := v1.Manifest{MediaType: v1.MediaTypeImageManifest, Config: srv.push("web", v1.MediaTypeImageConfig, config), Layers: layers}
	manifest.SchemaVersion = 2
	srv.put("web", "1", v1.MediaTypeImageManifest, manifest)
	m := named(t, newSetup(t, srv.host+"/web:1").mustOpen(t), srv.host+"/web:1")
	for n, want := range []error{nil, imgsrc.ErrAbsent, imgsrc.ErrDamaged, imgsrc.ErrUnsupported, imgsrc.ErrUnsupported} {
		if _, err := readDiff(t, m, n); !errors.Is(err, want) {
			t.Errorf("layer %d: %v, want %v", n, err, want)
		}
	}
	if b, err := readBlob(t, m, other.Digest); err != nil || string(b) != "squash" {
		t.Errorf("%q, %v", b, err)
	}
}

// Schema 1 names no sizes: the registry is asked.
func TestSchema1(t *testing.T) {
	srv := newServer(t)
	tar := tarOf(t, "f", noise(50_000))
	blob := srv.push("old", "", images.Gzipped(tar))
	srv.put("old", "1", "application/vnd.docker.distribution.manifest.v1+json", map[string]any{
		"schemaVersion": 1, "name": "old", "tag": "1", "architecture": "amd64",
		"fsLayers": []any{map[string]any{"blobSum": blob.Digest}},
		"history":  []any{map[string]any{"v1Compatibility": `{"id":"x","os":"linux"}`}},
	})
	s := newSetup(t, srv.host+"/old:1").mustOpen(t)
	m := named(t, s, srv.host+"/old:1")
	if m.desc.ID != m.desc.Digest.Encoded() || m.desc.Config != "" {
		t.Errorf("%+v", m.desc)
	}
	c, err := m.Blob(t.Context(), blob.Digest)
	if err != nil {
		t.Fatal(err)
	}
	if size, err := c.Size(t.Context()); err != nil || size != blob.Size || m.Local(0) {
		t.Errorf("size %d, %v, want %d, without fetching", size, err, blob.Size)
	}
	if b, err := readAll(t.Context(), c); err != nil || int64(len(b)) != blob.Size {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if b, err := readDiff(t, m, 0); err != nil || len(b) != len(tar) || !m.Local(0) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}
