package layout

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/layer"
	made "github.com/imgfs/imgfs/test/images"
)

// A testLayout is a layout made by hand.
type testLayout struct {
	testing.TB
	dir     string
	entries []any
}

func newLayout(t testing.TB) *testLayout {
	t.Helper()
	l := &testLayout{TB: t, dir: t.TempDir()}
	l.file("oci-layout", `{"imageLayoutVersion":"1.0.0"}`)
	if err := os.MkdirAll(filepath.Join(l.dir, "blobs/sha256"), 0o755); err != nil {
		t.Fatal(err)
	}
	l.index()
	return l
}

// age makes the directory of the blobs one that has not changed for an hour: the next change gives it another time, however
// coarse the file system's clock is.
func (l *testLayout) age() {
	l.Helper()
	then := time.Now().Add(-time.Hour)
	if err := os.Chtimes(filepath.Join(l.dir, "blobs/sha256"), then, then); err != nil {
		l.Fatal(err)
	}
}

func (l *testLayout) file(path, text string) {
	l.Helper()
	path = filepath.Join(l.dir, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		l.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		l.Fatal(err)
	}
}

// index writes index.json with the entries so far.
func (l *testLayout) index() {
	l.Helper()
	l.file("index.json", text(l, map[string]any{"schemaVersion": 2, "manifests": append([]any{}, l.entries...)}))
}

// add writes index.json with one more entry.
func (l *testLayout) add(d v1.Descriptor, annotations ...string) {
	l.Helper()
	for i := 0; i < len(annotations); i += 2 {
		if d.Annotations == nil {
			d.Annotations = map[string]string{}
		}
		d.Annotations[annotations[i]] = annotations[i+1]
	}
	l.entries = append(l.entries, d)
	l.index()
}

// name is add with a name; without one if it is empty.
func (l *testLayout) name(d v1.Descriptor, name string) {
	l.Helper()
	if name == "" {
		l.add(d)
		return
	}
	l.add(d, v1.AnnotationRefName, name)
}

func text(t testing.TB, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func (l *testLayout) path(d digest.Digest) string { return filepath.Join(l.dir, blobPath(d)) }

func (l *testLayout) blob(mediaType string, b []byte) v1.Descriptor {
	l.Helper()
	return l.blobAs(mediaType, b, digest.FromBytes(b))
}

func (l *testLayout) blobAs(mediaType string, b []byte, d digest.Digest) v1.Descriptor {
	l.Helper()
	l.file(blobPath(d), string(b))
	return v1.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(b))}
}

func (l *testLayout) json(mediaType string, v any) v1.Descriptor {
	l.Helper()
	return l.blob(mediaType, []byte(text(l, v)))
}

// tarOf is a tar with one file.
func tarOf(content string) []byte { return made.Tar(made.File("file", content)) }

const gzipLayer = v1.MediaTypeImageLayerGzip

// image makes an image with one gzipped layer for each of contents.
func (l *testLayout) image(contents ...string) v1.Descriptor {
	l.Helper()
	var layers []v1.Descriptor
	var diffIDs []digest.Digest
	for _, c := range contents {
		plain := tarOf(c)
		layers = append(layers, l.blob(gzipLayer, made.Gzipped(plain)))
		diffIDs = append(diffIDs, digest.FromBytes(plain))
	}
	return l.manifest(layers, diffIDs)
}

func (l *testLayout) manifest(layers []v1.Descriptor, diffIDs []digest.Digest) v1.Descriptor {
	l.Helper()
	config := l.json(v1.MediaTypeImageConfig, v1.Image{
		Platform: v1.Platform{OS: "linux", Architecture: "amd64"},
		RootFS:   v1.RootFS{Type: "layers", DiffIDs: diffIDs},
	})
	return l.json(v1.MediaTypeImageManifest, v1.Manifest{
		MediaType: v1.MediaTypeImageManifest, Config: config, Layers: append([]v1.Descriptor{}, layers...),
	})
}

func (l *testLayout) nested(manifests ...v1.Descriptor) v1.Descriptor {
	l.Helper()
	return l.json(v1.MediaTypeImageIndex, v1.Index{MediaType: v1.MediaTypeImageIndex, Manifests: manifests})
}

func (l *testLayout) open() *Source {
	l.Helper()
	return l.openRef("")
}

func (l *testLayout) openRef(ref string) *Source {
	l.Helper()
	s, err := Open(l.Context(), Options{Dir: l.dir, Ref: ref, Cache: cache(l), Log: discard})
	if err != nil {
		l.Fatal(err)
	}
	l.Cleanup(func() { s.Close() })
	return s
}

var discard = slog.New(slog.DiscardHandler)

func cache(t testing.TB) *layer.Cache {
	t.Helper()
	c, err := layer.OpenCache(t.TempDir(), 0, discard)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func list(t testing.TB, s *Source) *imgsrc.Listing {
	t.Helper()
	l, err := s.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// shown is a listing in short: for each image the digest's first digits, !! if it is damaged, and its names.
func shown(l *imgsrc.Listing) string {
	var lines []string
	for _, img := range l.Images {
		d := img.Desc()
		mark := ""
		if d.Damaged != nil {
			mark = "!!"
		}
		lines = append(lines, fmt.Sprintf("%.6s%s %q", d.Digest.Encoded(), mark, img.Names))
	}
	return strings.Join(lines, "\n")
}

// show is what shown gives for one image.
func show(d v1.Descriptor, mark string, names ...string) string {
	return fmt.Sprintf("%.6s%s %q", d.Digest.Encoded(), mark, names)
}

func unmarshal(t testing.TB, b []byte, v any) {
	t.Helper()
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatal(err)
	}
}
