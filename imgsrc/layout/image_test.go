package layout

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/imgfs/imgfs/imgsrc"
	made "github.com/imgfs/imgfs/test/images"
)

// only returns the first image of a listing.
func only(t testing.TB, s *Source) imgsrc.Image {
	t.Helper()
	l := list(t, s)
	if len(l.Images) == 0 {
		t.Fatal("no images")
	}
	return l.Images[0].Image
}

func content(ctx context.Context, c imgsrc.Content) ([]byte, error) {
	size, err := c.Size(ctx)
	if err != nil {
		return nil, err
	}
	b := make([]byte, size+1)
	n, err := c.ReadAt(ctx, b, 0)
	if err == io.EOF {
		err = nil
	}
	return b[:n], err
}

func TestConfigDamaged(t *testing.T) {
	for name, test := range map[string]struct {
		damage func(l *testLayout, path string)
		text   string
	}{
		"missing":     {func(l *testLayout, path string) { os.Remove(path) }, "missing"},
		"edited":      {func(l *testLayout, path string) { edit(l, path, 5) }, "bytes of"},
		"cut short":   {func(l *testLayout, path string) { os.Truncate(path, 5) }, "has 5 bytes"},
		"100 MB":      {func(l *testLayout, path string) { os.Truncate(path, 100e6) }, "has 100000000 bytes"},
		"a directory": {func(l *testLayout, path string) { os.Remove(path); os.Mkdir(path, 0o755) }, "not a regular file"},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLayout(t)
			l.name(l.image("a"), "a")
			img := only(t, l.open())
			d := img.Desc().Config
			if _, err := img.Config(t.Context()); err != nil {
				t.Fatal(err)
			}
			test.damage(l, l.path(d))
			_, err := img.Config(t.Context())
			if !errors.Is(err, imgsrc.ErrDamaged) || !strings.Contains(err.Error(), test.text) || !strings.Contains(err.Error(), blobPath(d)) {
				t.Errorf("config: %v, want ErrDamaged with %q and the path", err, test.text)
			}
			if _, err := img.Diff(t.Context(), 0); !errors.Is(err, imgsrc.ErrDamaged) {
				t.Errorf("layer: %v, want ErrDamaged: the diff id is not known", err)
			}
			if _, err := img.Manifest(t.Context()); err != nil {
				t.Errorf("manifest: %v", err)
			}
		})
	}
}

// edit changes one byte of a file, keeping its size.
func edit(t testing.TB, path string, off int) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[off] ^= 1
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

// What is gone since it was listed is not there; what is missing is damaged.
func TestRemoved(t *testing.T) {
	l := newLayout(t)
	a := l.image("a")
	l.name(a, "a")
	img := only(t, l.open())
	if err := os.Remove(l.path(a.Digest)); err != nil {
		t.Fatal(err)
	}
	if _, err := img.Manifest(t.Context()); !errors.Is(err, imgsrc.ErrDamaged) {
		t.Errorf("%v, want ErrDamaged while index.json names it", err)
	}
	if err := os.Remove(l.path(img.Desc().Config)); err != nil {
		t.Fatal(err)
	}
	l.entries = nil
	l.index()
	for what, call := range map[string]func() error{
		"Manifest": func() error { _, err := img.Manifest(t.Context()); return err },
		"Config":   func() error { _, err := img.Config(t.Context()); return err },
		"Blob":     func() error { _, err := img.Blob(t.Context(), a.Digest); return err },
		"Diff":     func() error { _, err := img.Diff(t.Context(), 0); return err },
	} {
		if err := call(); !errors.Is(err, imgsrc.ErrNotFound) || errors.Is(err, imgsrc.ErrDamaged) {
			t.Errorf("%s: %v, want ErrNotFound", what, err)
		}
	}
}

// Each kind of layer: what its blob and its tar are.
func TestLayers(t *testing.T) {
	plain := tarOf("hello")
	diffID := digest.FromBytes(plain)
	const docker = "application/vnd.docker.image.rootfs.diff.tar.gzip"
	for name, test := range map[string]struct {
		mediaType string
		blob      []byte // nil: missing
		digest    digest.Digest
		size      int64
		diffID    digest.Digest
		blobErr   error // of opening or reading
		diffErr   error
	}{
		"gzip":                    {mediaType: gzipLayer, blob: made.Gzipped(plain)},
		"zstd":                    {mediaType: v1.MediaTypeImageLayerZstd, blob: made.Zstded(plain)},
		"plain":                   {mediaType: v1.MediaTypeImageLayer, blob: plain},
		"plain, called gzip":      {mediaType: docker, blob: plain},
		"zstd, called plain":      {mediaType: v1.MediaTypeImageLayer, blob: made.Zstded(plain)},
		"plain, with a sha512":    {mediaType: v1.MediaTypeImageLayer, blob: plain, digest: digest.SHA512.FromBytes(plain)},
		"foreign, there":          {mediaType: "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", blob: made.Gzipped(plain)},
		"foreign, not there":      {mediaType: "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", blobErr: imgsrc.ErrAbsent, diffErr: imgsrc.ErrAbsent},
		"nondistributable":        {mediaType: "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", blobErr: imgsrc.ErrAbsent, diffErr: imgsrc.ErrAbsent},
		"missing":                 {mediaType: gzipLayer, blobErr: imgsrc.ErrDamaged, diffErr: imgsrc.ErrDamaged},
		"encrypted":               {mediaType: gzipLayer + "+encrypted", blob: []byte("secret"), diffErr: imgsrc.ErrUnsupported},
		"not a layer":             {mediaType: "application/vnd.in-toto+json", blob: []byte("{}"), diffErr: imgsrc.ErrUnsupported},
		"another size":            {mediaType: gzipLayer, blob: made.Gzipped(plain), size: 5, blobErr: imgsrc.ErrDamaged, diffErr: imgsrc.ErrDamaged},
		"another digest":          {mediaType: gzipLayer, blob: made.Gzipped(plain), digest: digest.FromString("x"), blobErr: imgsrc.ErrDamaged, diffErr: imgsrc.ErrDamaged},
		"plain, another digest":   {mediaType: v1.MediaTypeImageLayer, blob: plain, digest: digest.FromString("x"), diffID: digest.FromString("x"), blobErr: imgsrc.ErrDamaged, diffErr: imgsrc.ErrDamaged},
		"another diff id":         {mediaType: gzipLayer, blob: made.Gzipped(plain), diffID: digest.FromString("x"), diffErr: imgsrc.ErrDamaged},
		"plain, another diff id":  {mediaType: v1.MediaTypeImageLayer, blob: plain, diffID: digest.FromString("x"), diffErr: imgsrc.ErrDamaged},
		"broken compression":      {mediaType: gzipLayer, blob: made.Gzipped(plain)[:20], diffErr: imgsrc.ErrDamaged},
		"nothing, an empty layer": {mediaType: v1.MediaTypeImageLayer, blob: []byte{}, diffID: digest.FromString("")},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLayout(t)
			d := v1.Descriptor{MediaType: test.mediaType, Digest: digest.FromString("missing"), Size: 100}
			if test.blob != nil {
				if test.digest == "" {
					test.digest = digest.FromBytes(test.blob)
				}
				d = l.blobAs(test.mediaType, test.blob, test.digest)
			}
			if test.size != 0 {
				d.Size = test.size
			}
			if test.diffID == "" {
				test.diffID = diffID
			}
			l.name(l.manifest([]v1.Descriptor{d}, []digest.Digest{test.diffID}), "a")
			img := only(t, l.open())

			check := func(what string, want []byte, wantErr error, c imgsrc.Content, err error) {
				t.Helper()
				var got []byte
				if err == nil {
					got, err = content(t.Context(), c)
				}
				switch {
				case wantErr == nil && (err != nil || !bytes.Equal(got, want)):
					t.Errorf("%s: %d bytes, %v, want %d", what, len(got), err, len(want))
				case wantErr != nil && (!errors.Is(err, wantErr) || len(got) > 0):
					t.Errorf("%s: %d bytes, %v, want %v", what, len(got), err, wantErr)
				case wantErr != nil && !strings.Contains(err.Error(), "sha256:"):
					t.Errorf("%s: %v does not name a digest", what, err)
				}
			}
			wantDiff := plain
			if len(test.blob) == 0 {
				wantDiff = nil
			}
			c, err := img.Blob(t.Context(), d.Digest)
			check("blob", test.blob, test.blobErr, c, err)
			if err == nil {
				if size, err := c.Size(t.Context()); err != nil || size != d.Size {
					t.Errorf("blob: size %d, %v, want the descriptor's, %d", size, err, d.Size)
				}
				c.Close()
			}
			c, err = img.Diff(t.Context(), 0)
			check("diff", wantDiff, test.diffErr, c, err)
			if err == nil {
				c.Close()
			}
		})
	}
}

func TestLayersMiscounted(t *testing.T) {
	l := newLayout(t)
	layer := l.blob(gzipLayer, made.Gzipped(tarOf("a")))
	l.name(l.manifest([]v1.Descriptor{layer}, nil), "a")
	img := only(t, l.open())
	if _, err := img.Diff(t.Context(), 0); !errors.Is(err, imgsrc.ErrDamaged) {
		t.Errorf("no diff ids: %v, want ErrDamaged", err)
	}
	if c, err := img.Blob(t.Context(), layer.Digest); err != nil {
		t.Errorf("blob: %v", err)
	} else if _, err := content(t.Context(), c); err != nil {
		t.Errorf("blob: %v", err)
	} else {
		c.Close()
	}
	if s, err := Open(t.Context(), Options{Dir: l.dir, Log: discard}); err != nil {
		t.Error(err)
	} else {
		defer s.Close()
		l.name(l.image("b"), "b")
		l.entries = l.entries[1:]
		l.index()
		if _, err := only(t, s).Diff(t.Context(), 0); !errors.Is(err, imgsrc.ErrUnsupported) {
			t.Errorf("without a cache: %v, want ErrUnsupported", err)
		}
	}
}

// An artifact has blobs and no layers; an index has neither.
func TestNoLayers(t *testing.T) {
	l := newLayout(t)
	chart := l.blob("application/vnd.cncf.helm.chart.content.v1.tar+gzip", []byte("chart"))
	artifact := l.json(v1.MediaTypeImageManifest, v1.Manifest{
		MediaType: v1.MediaTypeImageManifest,
		Config:    l.blob("application/vnd.cncf.helm.config.v1+json", []byte(`{"name":"x"}`)),
		Layers:    []v1.Descriptor{chart},
	})
	l.name(artifact, "chart")
	l.name(l.nested(artifact), "index")
	images := list(t, l.open()).Images
	if b, err := images[0].Config(t.Context()); err != nil || string(b) != `{"name":"x"}` {
		t.Errorf("config: %s, %v", b, err)
	}
	if c, err := images[0].Blob(t.Context(), chart.Digest); err != nil {
		t.Errorf("blob: %v", err)
	} else if b, err := content(t.Context(), c); err != nil || string(b) != "chart" {
		t.Errorf("blob: %s, %v", b, err)
	}
	for _, img := range images {
		if _, err := img.Diff(t.Context(), 0); !errors.Is(err, imgsrc.ErrAbsent) {
			t.Errorf("diff: %v, want ErrAbsent", err)
		}
	}
	if _, err := images[1].Config(t.Context()); !errors.Is(err, imgsrc.ErrAbsent) {
		t.Errorf("the index's config: %v, want ErrAbsent", err)
	}
	if _, err := images[1].Blob(t.Context(), chart.Digest); !errors.Is(err, imgsrc.ErrAbsent) {
		t.Errorf("the index's blob: %v, want ErrAbsent", err)
	}
}
