package sourcetest_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/dir"
	"github.com/imgfs/imgfs/imgsrc/dockerarchive"
	"github.com/imgfs/imgfs/imgsrc/layer"
	"github.com/imgfs/imgfs/imgsrc/layout"
	"github.com/imgfs/imgfs/imgsrc/sourcetest"
	"github.com/imgfs/imgfs/test/images"
)

var discard = slog.New(slog.DiscardHandler)

func cacheOf(t *testing.T) *layer.Cache {
	t.Helper()
	c, err := layer.OpenCache(t.TempDir(), 0, discard)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// sampleLayout is a layout of images.Sample.
func sampleLayout(t *testing.T) string {
	t.Helper()
	at := filepath.Join(t.TempDir(), "layout")
	l, err := images.Create(at)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(images.Sample(l), l.Close()); err != nil {
		t.Fatal(err)
	}
	return at
}

// pack makes an archive of files by their paths in it. A text that begins with an arrow is a link.
type packer struct {
	t  *testing.T
	b  bytes.Buffer
	tw *tar.Writer
}

func newPacker(t *testing.T) *packer {
	p := &packer{t: t}
	p.tw = tar.NewWriter(&p.b)
	return p
}

func (p *packer) add(name string, body []byte) {
	p.t.Helper()
	err := p.tw.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(body))})
	if _, writeErr := p.tw.Write(body); err != nil || writeErr != nil {
		p.t.Fatal(err, writeErr)
	}
}

func (p *packer) link(name, target string) {
	p.t.Helper()
	if err := p.tw.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target}); err != nil {
		p.t.Fatal(err)
	}
}

// write writes the archive, compressed or not, and returns its path.
func (p *packer) write(zip bool) string {
	p.t.Helper()
	if err := p.tw.Close(); err != nil {
		p.t.Fatal(err)
	}
	b := p.b.Bytes()
	if zip {
		b = gzipped(p.t, b)
	}
	file := filepath.Join(p.t.TempDir(), "archive.tar")
	if err := os.WriteFile(file, b, 0o644); err != nil {
		p.t.Fatal(err)
	}
	return file
}

func gzipped(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	zw := gzip.NewWriter(&out)
	if _, err := zw.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// packDir makes an archive of a directory.
func packDir(t *testing.T, at string, zip bool) string {
	t.Helper()
	p := newPacker(t)
	err := filepath.WalkDir(at, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		rel, relErr := filepath.Rel(at, path)
		p.add(rel, b)
		return errors.Join(err, relErr)
	})
	if err != nil {
		t.Fatal(err)
	}
	return p.write(zip)
}

func whole(t *testing.T, c imgsrc.Content, err error) []byte {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	size, err := c.Size(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, size)
	if _, err := c.ReadAt(t.Context(), b, 0); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	return b
}

func openLayout(t *testing.T, at string) *layout.Source {
	t.Helper()
	s, err := layout.Open(t.Context(), layout.Options{Dir: at, Cache: cacheOf(t), Log: discard})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// each calls f for the images of a layout that are no index.
func each(t *testing.T, s imgsrc.Source, f func(img imgsrc.Listed, facts *imgsrc.Facts)) {
	t.Helper()
	l, err := s.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, img := range l.Images {
		facts, err := imgsrc.Load(t.Context(), img)
		if err != nil {
			t.Fatal(err)
		}
		if facts.Kind == imgsrc.KindImage {
			f(img, facts)
		}
	}
}

// dockerArchive makes what docker save made of the images of a layout until it learned about layouts, with each layer once
// and links in the places of its repetitions. Compressed is how builders make it that need no Docker.
func dockerArchive(t *testing.T, at string, compressed bool) (file string, names []string, layers int) {
	t.Helper()
	type item struct {
		Config           string
		RepoTags, Layers []string
	}
	var items []item
	p, seen := newPacker(t), map[string]string{}
	p.add("repositories", []byte("{}"))
	each(t, openLayout(t, at), func(img imgsrc.Listed, facts *imgsrc.Facts) {
		it := item{Config: img.Desc().ID + ".json", RepoTags: img.Names}
		p.add(it.Config, facts.Config)
		for n, l := range facts.Layers {
			c, err := img.Diff(t.Context(), n)
			b := whole(t, c, err)
			file := img.Desc().ID[:12] + string(rune('0'+n)) + "/layer.tar"
			if compressed {
				b = gzipped(t, b)
				file = digestHex(b) + ".tar.gz"
				if n%2 == 1 {
					file = "layer" + file[:8] // which does not say its digest
				}
			}
			it.Layers = append(it.Layers, file)
			layers++
			switch first := seen[string(l.DiffID)]; {
			case first == "":
				seen[string(l.DiffID)] = file
				p.add(file, b)
			case first != file:
				p.link(file, "../"+first)
			}
		}
		names = append(names, img.Names...)
		items = append(items, it)
	})
	b, err := json.Marshal(items)
	if err != nil {
		t.Fatal(err)
	}
	p.add("manifest.json", b)
	return p.write(false), names, layers
}

// TestAll runs the suite over the same images in every form that is read in place.
func TestAll(t *testing.T) {
	at := sampleLayout(t)
	var all, sound int
	var names []string
	s := openLayout(t, at)
	l, err := s.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, img := range l.Images {
		all++
		names = append(names, img.Names...)
	}
	each(t, s, func(_ imgsrc.Listed, facts *imgsrc.Facts) { sound += len(facts.Layers) })
	same := sourcetest.Expect{Images: all, Names: names, Diffs: sound, Blobs: true}

	for _, zip := range []bool{false, true} {
		t.Run(map[bool]string{false: "oci-archive", true: "oci-archive, compressed"}[zip], func(t *testing.T) {
			file, c := packDir(t, at, zip), cacheOf(t)
			sourcetest.Run(t, func(t *testing.T) imgsrc.Source {
				s, err := layout.OpenArchive(t.Context(), "oci-archive", layout.Options{Dir: file, Cache: c, Log: discard})
				return must(t, s, err)
			}, same)
		})
	}
	t.Run("docker save with a layout", func(t *testing.T) {
		file, c := packDir(t, at, false), cacheOf(t)
		sourcetest.Run(t, func(t *testing.T) imgsrc.Source {
			s, err := dockerarchive.Open(t.Context(), dockerarchive.Options{File: file, Cache: c, Log: discard})
			return must(t, s, err)
		}, same)
	})
	for _, compressed := range []bool{false, true} {
		t.Run(map[bool]string{false: "docker-archive", true: "docker-archive with compressed layers"}[compressed], func(t *testing.T) {
			file, names, layers := dockerArchive(t, at, compressed)
			c := cacheOf(t)
			sourcetest.Run(t, func(t *testing.T) imgsrc.Source {
				s, err := dockerarchive.Open(t.Context(), dockerarchive.Options{File: file, Cache: c, Log: discard})
				return must(t, s, err)
			}, sourcetest.Expect{Images: all - 1, Names: names, Diffs: layers, Blobs: true})
		})
	}
	t.Run("dir", func(t *testing.T) {
		c := cacheOf(t)
		each(t, s, func(img imgsrc.Listed, facts *imgsrc.Facts) {
			at := dirOf(t, img, facts)
			sourcetest.Run(t, func(t *testing.T) imgsrc.Source {
				s, err := dir.Open(t.Context(), dir.Options{Dir: at, Cache: c, Log: discard})
				return must(t, s, err)
			}, sourcetest.Expect{Images: 1, Diffs: len(facts.Layers), Blobs: true})
		})
	})
}

func must[S imgsrc.Source](t *testing.T, s S, err error) imgsrc.Source {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// dirOf makes what skopeo's dir: makes of an image.
func dirOf(t *testing.T, img imgsrc.Listed, facts *imgsrc.Facts) string {
	t.Helper()
	at := t.TempDir()
	files := map[string][]byte{"version": []byte("Directory Transport Version: 1.1\n"), "manifest.json": facts.Manifest, img.Desc().Config.Encoded(): facts.Config}
	for _, l := range facts.Layers {
		c, err := img.Blob(t.Context(), l.Digest)
		files[l.Digest.Encoded()] = whole(t, c, err)
	}
	for name, b := range files {
		if err := os.WriteFile(filepath.Join(at, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return at
}

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
		{name: "a layer missing", manifest: ok, images: 1, damaged: imgsrc.ErrDamaged},
		{name: "no layers for a diff id", manifest: `[{"Config":"c.json","RepoTags":["a:1"]}]`, images: 1, damaged: imgsrc.ErrDamaged},
		{name: "two layers for a diff id", manifest: `[{"Config":"c.json","Layers":["l/layer.tar","l/layer.tar"]}]`, files: map[string]string{"l/layer.tar": "layer"}, images: 1, damaged: imgsrc.ErrDamaged},
		{name: "no config", manifest: `[{"Config":"d.json","RepoTags":["a:1"]}]`, problems: 1},
		{name: "a config of another name", manifest: `[{"Config":"` + strings.Repeat("0", 64) + `.json"}]`, files: map[string]string{strings.Repeat("0", 64) + ".json": "{}"}, problems: 1},
		{name: "an image twice", manifest: `[{"Config":"c.json","RepoTags":["a:1"],"Layers":["l/layer.tar"]},{"Config":"c.json","RepoTags":["b:1"],"Layers":["l/layer.tar"]}]`, files: map[string]string{"l/layer.tar": "layer"}, images: 2},
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
	at := sampleLayout(t)
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
	at := sampleLayout(t)
	first, _, _ := dockerArchive(t, at, false)
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
	file := packDir(t, sampleLayout(t), true)
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
