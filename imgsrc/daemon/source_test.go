package daemon

import (
	"bytes"
	"context"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/sourcetest"
	"github.com/imgfs/imgfs/test/images"
)

func layerOf(t testing.TB, name string) []byte {
	return tarOf(t, tarFile{name: name, body: bytes.Repeat([]byte(name+"\n"), 50_000)})
}

// three are three images: of the old form with a layer twice, of the new one, and of the containerd image store.
func three(t testing.TB) []*fakeImage {
	t.Helper()
	a := partsOf(t, layerOf(t, "a"), layerOf(t, "b"), layerOf(t, "a"))
	b := partsOf(t, layerOf(t, "a"), layerOf(t, "c"))
	c := partsOf(t, layerOf(t, "c"), layerOf(t, "d"))
	_, modern := b.modern(t, false)
	id, stored := c.modern(t, true)
	images := []*fakeImage{a.image(a.legacy(t), "a:1", "quay.io/a/a:2"), b.image(modern, "b:1"), c.image(stored, "c:1")}
	images[2].id, images[2].stored = id, true
	images[0].containers = []string{strings.Repeat("1", 64)}
	images[0].digests = []string{"a@sha256:" + strings.Repeat("2", 64)}
	return images
}

func TestListingSavesNothing(t *testing.T) {
	f := newFake(t, three(t)...)
	s := openSource(t, Options{Host: f.host})
	for range 3 {
		if l, err := s.List(t.Context()); err != nil || len(l.Images) != 3 || len(l.Problems) > 0 {
			t.Fatal(err, l)
		}
	}
	if n := f.count("GET get"); n != 0 {
		t.Errorf("%d saves", n)
	}
	if n := f.count("inspect"); n != 3 {
		t.Errorf("%d images were inspected, want each once", n)
	}
	a := find(t, s, "docker.io/library/a:1")
	if !slices.Equal(a.Names, []string{"docker.io/library/a:1", "quay.io/a/a:2"}) || len(a.Containers) != 1 || len(a.Layers) != 3 ||
		!slices.Equal(a.RepoDigests, []string{"docker.io/library/a@sha256:" + strings.Repeat("2", 64)}) {
		t.Errorf("%+v", a)
	}
	if d := a.Desc(); d.Digest != "" || d.Config.Encoded() != d.ID {
		t.Errorf("%+v", d)
	}
	if d := find(t, s, "docker.io/library/c:1").Desc(); d.Config != "" {
		t.Errorf("the config of a stored image is known without a save: %+v", d)
	}
}

// The manifest of an image in the containerd image store is the engine's own: without an index its digest is the id, and
// known from listing. Its layers are kept uncompressed.
func TestStoredManifest(t *testing.T) {
	for name, inIndex := range map[string]bool{"alone": false, "in an index": true} {
		t.Run(name, func(t *testing.T) {
			p := partsOf(t, layerOf(t, "a"), layerOf(t, "b"))
			id, archive, stored := p.saved(t, true, inIndex)
			img := p.image(archive, "a:1")
			img.id, img.stored = id, true
			if !inIndex {
				img.manifest = stored
			}
			f := newFake(t, img)
			o := Options{Host: f.host, CacheDir: t.TempDir()}
			o.Cache = testCache(t, o.CacheDir, 0)
			for again := range 2 {
				s := openSource(t, o)
				img := find(t, s, "docker.io/library/a:1")
				want := imgsrc.Desc{ID: id, MediaType: "application/vnd.docker.distribution.manifest.v2+json"}
				if again > 0 || !inIndex {
					want.Digest, want.Size, want.MediaType = digest.FromBytes(stored), int64(len(stored)), "application/vnd.oci.image.manifest.v1+json"
				}
				if again > 0 {
					want.Config = digest.FromBytes(p.config)
				}
				if d := img.Desc(); !reflect.DeepEqual(d, want) {
					t.Errorf("listed as %+v, want %+v", d, want)
				}
				if b, err := img.Manifest(t.Context()); err != nil || !bytes.Equal(b, stored) {
					t.Errorf("%v, the manifest is\n%s\nwant\n%s", err, b, stored)
				}
				if _, err := img.Blob(t.Context(), digest.FromBytes(images.Gzipped(p.layers[0]))); !errors.Is(err, imgsrc.ErrAbsent) {
					t.Errorf("a compressed layer: %v", err)
				}
				checkLayers(t, img)
			}
			if n := f.count("GET get"); n != 1 {
				t.Errorf("%d saves", n)
			}
		})
	}
}

// Engines that have the containerd image store do not all say so of each image.
func TestConfigIsNotGuessed(t *testing.T) {
	p := partsOf(t, layerOf(t, "a"))
	id, stored := p.modern(t, true)
	img := p.image(stored, "a:1")
	img.id = id
	f := newFake(t, img)
	f.containerd = true
	o := Options{Host: f.host, CacheDir: t.TempDir()}
	listed := find(t, openSource(t, o), "docker.io/library/a:1")
	if d := listed.Desc(); d.Config != "" || d.ID != id {
		t.Errorf("%+v", d)
	}
	if config, err := listed.Config(t.Context()); err != nil || !bytes.Equal(config, p.config) {
		t.Errorf("%s, %v", config, err)
	}
	if d := find(t, openSource(t, o), "docker.io/library/a:1").Desc(); d.Config.Encoded() != p.id() || d.ID != id {
		t.Errorf("%+v", d)
	}
}

// What Debian's engine does not have passes the suite: archives of all forms, and the containerd image store. Package
// sourcetest runs it over that engine.
func TestSuite(t *testing.T) {
	made := three(t)
	t.Run("classic", func(t *testing.T) {
		suite(t, made[:2], sourcetest.Expect{
			Images: 2, Names: []string{"docker.io/library/a:1", "quay.io/a/a:2", "docker.io/library/b:1"},
			Diffs: 5, Blobs: true, NewName: "localhost/new:2", BadNames: []string{"", "UPPER", "a b"},
		})
	})
	t.Run("containerd", func(t *testing.T) {
		suite(t, made[2:], sourcetest.Expect{
			Images: 1, Names: []string{"docker.io/library/c:1"}, Diffs: 2, NewName: "localhost/new:2", BadNames: []string{"", "UPPER", "a b"},
		})
	})
	t.Run("containerd, the images of all", func(t *testing.T) {
		engine, want := varied(t)
		suite(t, engine, want)
	})
}

// varied are the images that all sources are tested with, in the containerd image store: that has the manifests, and by their
// digests it calls the images. An index is none of its own there.
func varied(t *testing.T) (engine []*fakeImage, want sourcetest.Expect) {
	t.Helper()
	dir := t.TempDir()
	l, err := images.Create(dir)
	if err == nil {
		err = errors.Join(images.Varied(l), l.Close())
	}
	all, readErr := sourcetest.ReadLayout(dir)
	if err := errors.Join(err, readErr); err != nil {
		t.Fatal(err)
	}
	for _, img := range all {
		if img.Lists != nil {
			continue
		}
		img.ID = img.Digest.Encoded()
		fake := &fakeImage{id: img.ID, stored: true, manifest: img.Manifest, mediaType: img.MediaType}
		for _, name := range img.Names {
			if strings.HasPrefix(name, "localhost/") {
				fake.tags = append(fake.tags, name)
			}
		}
		blob := func(b []byte) tarFile { return tarFile{name: "blobs/sha256/" + digest.FromBytes(b).Encoded(), body: b} }
		config := blob(img.Config)
		files, layers := []tarFile{blob(img.Manifest), config}, []string{}
		for _, l := range img.Layers {
			file := blob(l.Blob)
			files, layers = append(files, file), append(layers, file.name)
			fake.layers = append(fake.layers, l.DiffID)
			want.Diffs++
		}
		fake.archive = tarOf(t, append(files,
			tarFile{name: "manifest.json", body: jsonOf(t, []any{map[string]any{"Config": config.name, "RepoTags": nil, "Layers": layers}})},
			tarFile{name: "oci-layout", body: []byte(`{"imageLayoutVersion":"1.0.0"}`)})...)
		engine, want.Same, want.Names = append(engine, fake), append(want.Same, img), append(want.Names, fake.tags...)
	}
	want.Images, want.NewName = len(engine), "localhost/new:2"
	return engine, want
}

// suite runs the conformance suite over images that have all been saved once.
func suite(t *testing.T, engine []*fakeImage, want sourcetest.Expect) {
	f := newFake(t, engine...)
	o := Options{Host: f.host, CacheDir: t.TempDir()}
	o.Cache = testCache(t, o.CacheDir, 0)
	first := openSource(t, o)
	l, err := first.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, img := range l.Images {
		if _, err := img.Manifest(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	// The fake sends no events by itself.
	sourcetest.Run(t, func(t *testing.T) imgsrc.Source {
		s, err := Open(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		return telling{s, f}
	}, want)
}

// telling has the fake engine tell of what is tagged.
type telling struct {
	*Source
	fake *fakeEngine
}

func (s telling) Tag(ctx context.Context, img imgsrc.Desc, add, remove []string) error {
	err := s.Source.Tag(ctx, img, add, remove)
	s.fake.tell("image", "tag")
	return err
}
