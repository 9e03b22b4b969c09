package layout

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/imgfs/imgfs/imgsrc"
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
	plain := tarOf(t, "hello")
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
		"gzip":                    {mediaType: gzipLayer, blob: gzipped(t, plain)},
		"zstd":                    {mediaType: v1.MediaTypeImageLayerZstd, blob: zstded(t, plain)},
		"plain":                   {mediaType: v1.MediaTypeImageLayer, blob: plain},
		"plain, called gzip":      {mediaType: docker, blob: plain},
		"zstd, called plain":      {mediaType: v1.MediaTypeImageLayer, blob: zstded(t, plain)},
		"plain, with a sha512":    {mediaType: v1.MediaTypeImageLayer, blob: plain, digest: digest.SHA512.FromBytes(plain)},
		"foreign, there":          {mediaType: "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", blob: gzipped(t, plain)},
		"foreign, not there":      {mediaType: "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", blobErr: imgsrc.ErrAbsent, diffErr: imgsrc.ErrAbsent},
		"nondistributable":        {mediaType: "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", blobErr: imgsrc.ErrAbsent, diffErr: imgsrc.ErrAbsent},
		"missing":                 {mediaType: gzipLayer, blobErr: imgsrc.ErrDamaged, diffErr: imgsrc.ErrDamaged},
		"encrypted":               {mediaType: gzipLayer + "+encrypted", blob: []byte("secret"), diffErr: imgsrc.ErrUnsupported},
		"not a layer":             {mediaType: "application/vnd.in-toto+json", blob: []byte("{}"), diffErr: imgsrc.ErrUnsupported},
		"another size":            {mediaType: gzipLayer, blob: gzipped(t, plain), size: 5, blobErr: imgsrc.ErrDamaged, diffErr: imgsrc.ErrDamaged},
		"another digest":          {mediaType: gzipLayer, blob: gzipped(t, plain), digest: digest.FromString("x"), blobErr: imgsrc.ErrDamaged, diffErr: imgsrc.ErrDamaged},
		"plain, another digest":   {mediaType: v1.MediaTypeImageLayer, blob: plain, digest: digest.FromString("x"), diffID: digest.FromString("x"), blobErr: imgsrc.ErrDamaged, diffErr: imgsrc.ErrDamaged},
		"another diff id":         {mediaType: gzipLayer, blob: gzipped(t, plain), diffID: digest.FromString("x"), diffErr: imgsrc.ErrDamaged},
		"plain, another diff id":  {mediaType: v1.MediaTypeImageLayer, blob: plain, diffID: digest.FromString("x"), diffErr: imgsrc.ErrDamaged},
		"broken compression":      {mediaType: gzipLayer, blob: gzipped(t, plain)[:20], diffErr: imgsrc.ErrDamaged},
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
	layer := l.blob(gzipLayer, gzipped(t, tarOf(t, "a")))
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

// A blob that changes under its reader is verified again: before and after the change nothing else is read.
func TestBlobChanges(t *testing.T) {
	l := newLayout(t)
	plain := tarOf(t, strings.Repeat("x", 3<<20))
	d := l.blob(v1.MediaTypeImageLayer, plain)
	l.name(l.manifest([]v1.Descriptor{d}, []digest.Digest{d.Digest}), "a")
	img := only(t, l.open())
	c, err := img.Blob(t.Context(), d.Digest)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	read := func(what string, want error) {
		t.Helper()
		p := make([]byte, 1000)
		n, err := c.ReadAt(t.Context(), p, 2<<20)
		if want != nil {
			if n != 0 || !errors.Is(err, want) || !bytes.Equal(p, make([]byte, 1000)) {
				t.Errorf("%s: %d bytes, %v, want %v", what, n, err, want)
			}
		} else if err != nil || !bytes.Equal(p, plain[2<<20:2<<20+1000]) {
			t.Errorf("%s: %d bytes, %v", what, n, err)
		}
	}
	path := l.path(d.Digest)
	read("as it was", nil)
	edit(t, path, 100)
	read("edited", imgsrc.ErrDamaged)
	edit(t, path, 100)
	read("edited back", nil)
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	read("gone", imgsrc.ErrDamaged)
	l.blob(v1.MediaTypeImageLayer, plain)
	read("a new file", nil)
	if err := os.Truncate(path, 100); err != nil {
		t.Fatal(err)
	}
	read("cut short", imgsrc.ErrDamaged)
	if err := errors.Join(os.Remove(path), os.Rename(path+".old", path)); err != nil {
		t.Fatal(err)
	}
	read("the old file", nil)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	read("closed and opened again", nil)
}

// Hashing goes on without the reader who asked for it, and is done once for all.
func TestVerifyOnce(t *testing.T) {
	l := newLayout(t)
	plain := tarOf(t, strings.Repeat("x", 1<<20))
	d := l.blob(v1.MediaTypeImageLayer, plain)
	l.name(l.manifest([]v1.Descriptor{d}, []digest.Digest{d.Digest}), "a")
	s := l.open()
	img := only(t, s)
	for range cap(s.slots) { // nothing can be hashed
		s.slots <- struct{}{}
	}
	open := func() imgsrc.Content {
		c, err := img.Blob(t.Context(), d.Digest)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan error)
	c := open()
	go func() {
		_, err := c.ReadAt(ctx, make([]byte, 1), 0)
		left <- err
	}()
	cancel()
	if err := <-left; err != context.Canceled {
		t.Errorf("%v, want context.Canceled", err)
	}
	var wg sync.WaitGroup
	var checks []*check
	for range 8 {
		c := open()
		wg.Go(func() {
			if b, err := content(t.Context(), c); err != nil || !bytes.Equal(b, plain) {
				t.Errorf("%d bytes, %v", len(b), err)
			}
		})
	}
	for range cap(s.slots) {
		<-s.slots
	}
	wg.Wait()
	checks = append(checks, s.checks[d.Digest])
	if _, err := content(t.Context(), open()); err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(checks, s.checks[d.Digest]) {
		t.Error("a verified file was hashed again")
	}
}

func TestCloseSource(t *testing.T) {
	l := newLayout(t)
	plain := tarOf(t, "x")
	d := l.blob(v1.MediaTypeImageLayer, plain)
	l.name(l.manifest([]v1.Descriptor{d}, []digest.Digest{d.Digest}), "a")
	s := l.open()
	img := only(t, s)
	for range cap(s.slots) {
		s.slots <- struct{}{}
	}
	c, err := img.Blob(t.Context(), d.Digest)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	waiting := make(chan error)
	go func() {
		_, err := c.ReadAt(context.Background(), make([]byte, 1), 0)
		waiting <- err
	}()
	for started := false; !started; {
		s.mu.Lock()
		started = s.checks[d.Digest] != nil
		s.mu.Unlock()
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-waiting; !errors.Is(err, fs.ErrClosed) {
		t.Errorf("%v, want ErrClosed", err)
	}
	if _, err := img.Manifest(t.Context()); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("%v, want ErrClosed", err)
	}
}
