package daemon

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/layer"
	"github.com/imgfs/imgfs/imgsrc/sourcetest"
)

func testCache(t testing.TB, dir string, limit int64) *layer.Cache {
	t.Helper()
	c, err := layer.OpenCache(dir, limit, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// openSource opens a source that is closed with the test.
func openSource(t testing.TB, o Options) *Source {
	t.Helper()
	s, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// find returns the image that is listed under a name.
func find(t testing.TB, s *Source, name string) imgsrc.Listed {
	t.Helper()
	l, err := s.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, img := range l.Images {
		for _, n := range img.Names {
			if n == name {
				return img
			}
		}
	}
	t.Fatalf("no image is named %s: %v %v", name, l.Images, l.Problems)
	return imgsrc.Listed{}
}

// checkLayers reads all layers of an image, each by a reader of its own, and compares them with their digests.
func checkLayers(t testing.TB, img imgsrc.Image) {
	t.Helper()
	facts, err := imgsrc.Load(t.Context(), img)
	if err != nil || facts.ManifestErr != nil || facts.ConfigErr != nil {
		t.Fatal(err, facts)
	}
	done := make(chan error)
	for n, l := range facts.Layers {
		go func() {
			c, err := img.Diff(t.Context(), n)
			if err != nil {
				done <- err
				return
			}
			b, err := sourcetest.ReadAll(t.Context(), c)
			if err == nil && (digest.FromBytes(b) != l.DiffID || l.Digest == l.DiffID && int64(len(b)) != l.Size) {
				err = fmt.Errorf("layer %d has %d bytes, which are not %s", n, len(b), l.DiffID)
			}
			if err == nil {
				err = c.Close()
			}
			done <- err
		}()
	}
	for range facts.Layers {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// A tarFile is an entry of a tar that is made here.
type tarFile struct {
	name, link string
	body       []byte
}

func tarOf(t testing.TB, files ...tarFile) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Mode: 0o644, Size: int64(len(f.body)), Typeflag: tar.TypeReg}
		switch {
		case f.link != "":
			h.Typeflag, h.Linkname = tar.TypeSymlink, f.link
		case strings.HasSuffix(f.name, "/"):
			h.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(f.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func jsonOf(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// spools are the files without a name that were made below a directory, and that this process has open.
func spools(t testing.TB, dir string) []string {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	var open []string
	for _, fd := range fds {
		to, err := os.Readlink(filepath.Join("/proc/self/fd", fd.Name()))
		if err == nil && strings.HasPrefix(to, dir) && strings.Contains(to, "part-save-") {
			open = append(open, to)
		}
	}
	return open
}
