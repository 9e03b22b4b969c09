package daemon

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/sourcetest"
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

func TestSuite(t *testing.T) {
	f := newFake(t, three(t)...)
	o := Options{Host: f.host, CacheDir: t.TempDir()}
	o.Cache = testCache(t, o.CacheDir, 0)
	first := openSource(t, o)
	for _, name := range []string{"a", "b", "c"} {
		if _, err := find(t, first, "docker.io/library/"+name+":1").Manifest(t.Context()); err != nil {
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
	}, sourcetest.Expect{
		Images: 3, Names: []string{"docker.io/library/a:1", "quay.io/a/a:2", "docker.io/library/b:1", "docker.io/library/c:1"},
		Diffs: 7, Blobs: true, NewName: "localhost/new:2", BadNames: []string{"", "UPPER", "a b"},
	})
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
