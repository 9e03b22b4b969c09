package dockerarchive

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
)

// write makes an archive of files, each a path and a text.
func write(t testing.TB, files ...[2]string) string {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, f := range files {
		if err := tw.WriteHeader(&tar.Header{Name: f[0], Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(f[1]))}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(tw, f[1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "archive.tar")
	if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

func open(t testing.TB, file, ref string) *Source {
	t.Helper()
	s, err := Open(t.Context(), Options{File: file, Ref: ref})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s.(*Source)
}

func configOf(diffID digest.Digest) string {
	return `{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["` + diffID.String() + `"]}}`
}

// An entry that manifest.json repeats is made sense of once: four MiB of them would be hours of hashing. Entries for one
// image are one image, with the names of all.
func TestRepeatedEntries(t *testing.T) {
	entry := `{"Config":"c.json","RepoTags":["a:1"],"Layers":["l.tar"]}`
	s := open(t, write(t, [2]string{"c.json", configOf(digest.FromString("layer"))}, [2]string{"l.tar", "layer"},
		[2]string{manifestFile, "[" + entry + "," + entry + "," + strings.Replace(entry, "a:1", "b:2", 1) + "]"}), "")
	l, err := s.List(t.Context())
	if err != nil || len(l.Images) != 1 || !slices.Equal(l.Images[0].Names, []string{"a:1", "b:2"}) || len(s.known) != 1 {
		t.Errorf("%v, %v: another image for the same entry", l, err)
	}
}

// A compressed layer whose name does not say its digest is hashed for the first image that has it.
func TestSharedLayerIsHashedOnce(t *testing.T) {
	var z bytes.Buffer
	zw := gzip.NewWriter(&z)
	if _, err := io.WriteString(zw, "layer"); err != nil {
		t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	s := open(t, write(t, [2]string{"l.tar.gz", z.String()}, [2]string{manifestFile, "[]"}), "")
	hashes := map[string]digest.Digest{}
	l, err := s.describeLayer(t.Context(), "l.tar.gz", digest.FromString("layer"), hashes)
	if want := digest.FromBytes(z.Bytes()); err != nil || l.Digest != want || hashes["l.tar.gz"] != want {
		t.Fatalf("%v, %v, %v", l, hashes, err)
	}
	hashes["l.tar.gz"] = digest.FromString("known")
	if l, err = s.describeLayer(t.Context(), "l.tar.gz", digest.FromString("layer"), hashes); err != nil || l.Digest != hashes["l.tar.gz"] {
		t.Errorf("%v, %v: hashed again", l, err)
	}
}

func TestRef(t *testing.T) {
	file := write(t, [2]string{"c.json", configOf(digest.FromString("layer"))}, [2]string{"l.tar", "layer"},
		[2]string{manifestFile, `[{"Config":"c.json","RepoTags":["a:1","docker.io/library/b:latest"],"Layers":["l.tar"]},{"Config":"c.json","Layers":["l.tar"]}]`})
	for ref, want := range map[string]int{"": 1, "a:1": 1, "docker.io/library/a:1": 1, "b": 1, "@1": 1} {
		if l, err := open(t, file, ref).List(t.Context()); err != nil || len(l.Images) != want {
			t.Errorf("%q: %v, %v", ref, l, err)
		}
	}
	for _, ref := range []string{"a", "c:1", "@2", "@-1", "@x"} {
		if s, err := Open(t.Context(), Options{File: file, Ref: ref}); !errors.Is(err, imgsrc.ErrNoSource) {
			t.Errorf("%q: %v, %v", ref, s, err)
		}
	}
}

func FuzzManifest(f *testing.F) {
	f.Add(`[{"Config":"c.json","RepoTags":["a:1"],"Layers":["l.tar"]}]`)
	f.Add(`[{"Config":"l.tar","Layers":["c.json",""]},null,{"Config":".."}]`)
	f.Add(`{}`)
	f.Fuzz(func(t *testing.T, manifest string) {
		s, err := Open(t.Context(), Options{File: write(t, [2]string{"c.json", configOf(digest.FromString("layer"))}, [2]string{"l.tar", "layer"}, [2]string{manifestFile, manifest})})
		if err != nil {
			return
		}
		defer s.Close()
		l, err := s.List(t.Context())
		if err != nil {
			return
		}
		for _, img := range l.Images {
			if _, err := img.Manifest(t.Context()); (err == nil) != (img.Desc().Damaged == nil) {
				t.Errorf("damaged: %v, and its manifest: %v", img.Desc().Damaged, err)
			}
			for n := range img.Layers {
				if c, err := img.Diff(t.Context(), n); err == nil {
					b := make([]byte, 100)
					if n, err := c.ReadAt(t.Context(), b, 0); err == io.EOF && string(b[:n]) != "layer" {
						t.Errorf("%q", b[:n])
					}
					c.Close()
				}
			}
		}
	})
}
