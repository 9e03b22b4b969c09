package sourcetest_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/dockerarchive"
	"github.com/imgfs/imgfs/imgsrc/layout"
)

func TestDockerArchiveErrors(t *testing.T) {
	config := []byte(`{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:` + digestHex([]byte("layer")) + `"]}}`)
	ok := `[{"Config":"c.json","RepoTags":["a:1"],"Layers":["l/layer.tar"]}]`
	for _, tt := range []struct {
		name, manifest string
		files          map[string]string
		open           error // of opening
		images         int
		damaged        error
		problems       int
	}{
		{name: "sound", manifest: ok, files: map[string]string{"l/layer.tar": "layer"}, images: 1},
		{name: "a layer missing", manifest: ok, images: 1}, // it is damaged where it is read
		{name: "no layers for a diff id", manifest: `[{"Config":"c.json","RepoTags":["a:1"]}]`, images: 1, damaged: imgsrc.ErrDamaged},
		{name: "two layers for a diff id", manifest: `[{"Config":"c.json","Layers":["l/layer.tar","l/layer.tar"]}]`, files: map[string]string{"l/layer.tar": "layer"}, images: 1, damaged: imgsrc.ErrDamaged},
		{name: "no config", manifest: `[{"Config":"d.json","RepoTags":["a:1"]}]`, problems: 1},
		{name: "a config of another name", manifest: `[{"Config":"` + strings.Repeat("0", 64) + `.json"}]`, files: map[string]string{strings.Repeat("0", 64) + ".json": "{}"}, problems: 1},
		{name: "an image twice", manifest: `[{"Config":"c.json","RepoTags":["a:1"],"Layers":["l/layer.tar"]},{"Config":"c.json","RepoTags":["b:1"],"Layers":["l/layer.tar"]}]`, files: map[string]string{"l/layer.tar": "layer"}, images: 1},
		{name: "nothing", manifest: `[]`},
		{name: "no list", manifest: `{}`, open: imgsrc.ErrDamaged},
		{name: "no manifest.json", files: map[string]string{"x": "y"}, open: imgsrc.ErrNoSource},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPacker(t)
			p.add("c.json", config)
			for name, text := range tt.files {
				p.add(name, []byte(text))
			}
			if tt.manifest != "" {
				p.add("manifest.json", []byte(tt.manifest))
			}
			s, err := dockerarchive.Open(t.Context(), dockerarchive.Options{File: p.write(false), Cache: cacheOf(t), Log: discard})
			if tt.open != nil {
				if !errors.Is(err, tt.open) {
					t.Fatalf("%v, want %v", err, tt.open)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			l, err := s.List(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if len(l.Images) != tt.images || len(l.Problems) != tt.problems {
				t.Fatalf("%d images, %d problems: %v", len(l.Images), len(l.Problems), l.Problems)
			}
			for _, img := range l.Images {
				if got := img.Desc().Damaged; !errors.Is(got, tt.damaged) {
					t.Errorf("damaged: %v, want %v", got, tt.damaged)
				}
				if b, err := img.Config(context.Background()); err != nil || !bytes.Equal(b, config) {
					t.Errorf("config %q, %v", b, err)
				}
			}
		})
	}
}

// Cut anywhere, an archive is no source, or has what came before.
func TestArchiveCutShort(t *testing.T) {
	at := newSample(t).dir
	whole, err := os.ReadFile(packDir(t, at, false))
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "cut.tar")
	for _, n := range []int{0, 1, 511, 512, 700, len(whole) / 4, len(whole) / 2, len(whole) - 2000} {
		if err := os.WriteFile(file, whole[:n], 0o644); err != nil {
			t.Fatal(err)
		}
		s, err := layout.OpenArchive(t.Context(), "oci-archive", layout.Options{Dir: file, Cache: cacheOf(t), Log: discard})
		if err != nil {
			if !errors.Is(err, imgsrc.ErrNoSource) && !errors.Is(err, imgsrc.ErrDamaged) {
				t.Errorf("%d bytes: %v", n, err)
			}
			continue
		}
		l, err := s.List(t.Context())
		if err != nil || len(l.Problems) == 0 {
			t.Errorf("%d bytes: %d images, no problem, %v", n, len(l.Images), err)
		}
		s.Close()
	}
}

// An archive that is replaced shows what is there now.
func TestArchiveReplaced(t *testing.T) {
	first := dockerArchive(t, newSample(t).images, false)
	second := newPacker(t)
	second.add("manifest.json", []byte("[]"))
	s, err := dockerarchive.Open(t.Context(), dockerarchive.Options{File: first, Cache: cacheOf(t), Log: discard})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	was, err := s.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	stamp := s.Stamp()
	if err := os.Rename(second.write(false), first); err != nil {
		t.Fatal(err)
	}
	if s.Stamp() == stamp {
		t.Error("the stamp has not moved")
	}
	is, err := s.List(t.Context())
	if err != nil || len(was.Images) == 0 || len(is.Images) != 0 {
		t.Errorf("%d images, and then %d, %v", len(was.Images), len(is.Images), err)
	}
	if _, err := was.Images[0].Manifest(t.Context()); !errors.Is(err, imgsrc.ErrNotFound) {
		t.Errorf("an image that is gone: %v", err)
	}
}

// A stamp costs a stat(2): it does not index what has come in an archive's place.
func TestArchiveStamp(t *testing.T) {
	file := packDir(t, newSample(t).dir, true)
	s, err := layout.OpenArchive(t.Context(), "oci-archive", layout.Options{Dir: file, Cache: cacheOf(t), Log: discard})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	seen := map[imgsrc.Stamp]bool{s.Stamp(): true}
	for _, text := range []string{"no archive", "none either"} {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if stamp := s.Stamp(); seen[stamp] {
			t.Errorf("%q has the stamp of what was there before", text)
		} else {
			seen[stamp] = true
		}
	}
}

func digestHex(b []byte) string { return digest.FromBytes(b).Encoded() }
