package layout

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/sourcetest"
	"github.com/imgfs/imgfs/test/needs"
)

// conformance runs the suite over the layout in dir.
func conformance(t *testing.T, dir string, want sourcetest.Expect) {
	t.Helper()
	want.Blobs, want.BadNames = true, badNames
	c := cache(t)
	sourcetest.Run(t, func(t *testing.T) imgsrc.Source {
		s, err := Open(t.Context(), Options{Dir: dir, Cache: c, Log: discard})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}, want)
}

// A buildStore is a private containers-storage.
type buildStore struct {
	*testing.T
	dir   string
	flags []string
}

func newStore(t *testing.T) *buildStore {
	t.Helper()
	needs.Programs(t, "buildah", "skopeo", "umoci")
	dir := t.TempDir()
	return &buildStore{T: t, dir: dir, flags: []string{"--root", filepath.Join(dir, "root"), "--runroot", filepath.Join(dir, "run"), "--storage-driver", "vfs"}}
}

func (s *buildStore) buildah(args ...string) string {
	s.Helper()
	return needs.Line(s, "buildah", append(slices.Clone(s.flags), args...)...)
}

// build makes an image of n layers, and pushes it to dest.
func (s *buildStore) build(n int, name, dest string, push ...string) {
	s.Helper()
	from := "scratch"
	for i := range n {
		file := filepath.Join(s.dir, "file")
		if err := os.WriteFile(file, []byte(strings.Repeat(fmt.Sprintln(name, i), 100000)), 0o644); err != nil {
			s.Fatal(err)
		}
		c := s.buildah("from", from)
		s.buildah("copy", c, file, fmt.Sprintf("/file-%d", i))
		from = fmt.Sprintf("localhost/%s:%d", name, i)
		s.buildah("commit", "--quiet", "--disable-compression=false", c, from)
		s.buildah("rm", c)
	}
	s.buildah(slices.Concat([]string{"push", "--quiet"}, push, []string{from, dest})...)
}

// Layouts as the tools make them pass the suite.
func TestToolsLayouts(t *testing.T) {
	s := newStore(t)
	dir := filepath.Join(s.dir, "buildah")
	s.build(2, "two", "oci:"+dir+":latest")
	s.build(1, "one", "oci:"+dir+":a/b:c", "--compression-format", "zstd")
	s.build(3, "three", "oci:"+dir)
	t.Run("buildah", func(t *testing.T) {
		conformance(t, dir, sourcetest.Expect{Images: 3, Names: []string{"latest", "a/b:c"}, Diffs: 6, NewName: "web-1.0"})
	})
	t.Run("skopeo", func(t *testing.T) {
		copied := filepath.Join(t.TempDir(), "skopeo")
		needs.Run(t, "skopeo", "copy", "--quiet", "oci:"+dir+":latest", "oci:"+copied+":docker.io/library/two:1")
		needs.Run(t, "skopeo", "copy", "--quiet", "oci:"+dir+":latest", "oci:"+copied+":again")
		needs.Run(t, "skopeo", "copy", "--quiet", "--dest-decompress", "oci:"+dir+":a/b:c", "oci:"+copied+":plain")
		conformance(t, copied, sourcetest.Expect{Images: 2, Names: []string{"docker.io/library/two:1", "again", "plain"}, Diffs: 3, NewName: "localhost/x:1"})
	})
	t.Run("umoci", func(t *testing.T) {
		made := filepath.Join(t.TempDir(), "umoci")
		needs.Run(t, "umoci", "init", "--layout", made)
		needs.Run(t, "umoci", "new", "--image", made+":empty")
		needs.Run(t, "umoci", "config", "--image", made+":empty", "--tag", "labelled", "--config.label", "a=b")
		needs.Run(t, "umoci", "insert", "--image", made+":empty", "--tag", "full", "/etc/hostname", "/etc/hostname")
		conformance(t, made, sourcetest.Expect{Images: 3, Names: []string{"empty", "labelled", "full"}, Diffs: 1, NewName: "x"})
	})
	t.Run("index", func(t *testing.T) {
		s := &buildStore{T: t, dir: s.dir, flags: s.flags}
		s.buildah("manifest", "create", "localhost/list:1", "localhost/one:0", "localhost/two:1")
		multi := filepath.Join(t.TempDir(), "multi")
		s.buildah("manifest", "push", "--quiet", "--all", "localhost/list:1", "oci:"+multi+":multi")
		l, err := Open(t.Context(), Options{Dir: multi, Log: discard})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		images := list(t, l).Images
		if len(images) != 3 || !slices.ContainsFunc(images, func(i imgsrc.Listed) bool {
			return i.Desc().MediaType == v1.MediaTypeImageIndex && i.Desc().ID == i.Desc().Digest.Encoded()
		}) {
			t.Errorf("listed:\n%s", shown(list(t, l)))
		}
		conformance(t, multi, sourcetest.Expect{Images: 3, Names: []string{"multi"}, Diffs: 3, NewName: "x"})
	})
}

// Other tools read what Tag has written, and write to it again.
func TestTagAndTools(t *testing.T) {
	s := newStore(t)
	dir := filepath.Join(s.dir, "layout")
	s.build(1, "one", "oci:"+dir+":one")
	s.build(1, "two", "oci:"+dir+":two")
	src, err := Open(t.Context(), Options{Dir: dir, Log: discard})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	byName := func() map[string]imgsrc.Desc {
		m := map[string]imgsrc.Desc{}
		for _, img := range list(t, src).Images {
			for _, name := range img.Names {
				m[name] = img.Desc()
			}
		}
		return m
	}
	inspect := func(name string) digest.Digest {
		return digest.Digest(needs.Line(t, "skopeo", "inspect", "--format", "{{.Digest}}", "oci:"+dir+":"+name))
	}
	before := byName()
	if err := src.Tag(t.Context(), before["one"], []string{"one-more", "a/b:c"}, nil); err != nil {
		t.Fatal(err)
	}
	if err := src.Tag(t.Context(), before["two"], []string{"one"}, []string{"two"}); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"one": "two", "one-more": "one", "a/b:c": "one"} {
		if got := inspect(name); got != before[want].Digest {
			t.Errorf("skopeo: %s is %s, want %s", name, got, before[want].Digest)
		}
	}
	got := strings.Fields(needs.Run(t, "umoci", "list", "--layout", dir))
	slices.Sort(got)
	if want := []string{"a/b:c", "one", "one-more"}; !slices.Equal(got, want) {
		t.Errorf("umoci lists %q, want %q", got, want)
	}
	needs.Run(t, "umoci", "tag", "--image", dir+":one-more", "umocis")
	needs.Run(t, "umoci", "gc", "--layout", dir)
	needs.Run(t, "skopeo", "copy", "--quiet", "oci:"+dir+":one", "oci:"+dir+":skopeos")
	after := byName()
	for name, want := range map[string]string{"one": "two", "skopeos": "two", "umocis": "one", "one-more": "one", "a/b:c": "one"} {
		if after[name].Digest != before[want].Digest {
			t.Errorf("%s is %s, want %s", name, after[name].Digest, before[want].Digest)
		}
	}
	if len(after) != 5 {
		t.Errorf("names: %v", after)
	}
}

// Damage beside what is sound: the suite holds for the rest.
func TestDamagedLayout(t *testing.T) {
	l := newLayout(t)
	good := l.image("a", "b", "a")
	l.name(good, "good")
	l.name(l.blobAs(v1.MediaTypeImageManifest, []byte("{}"), digest.FromString("x")), "edited")
	l.name(v1.Descriptor{MediaType: v1.MediaTypeImageManifest, Digest: digest.FromString("y"), Size: 5}, "missing")
	l.name(l.nested(good), "index")
	l.add(l.image())
	conformance(t, l.dir, sourcetest.Expect{
		Images: 5, Damaged: 2, Names: []string{"good", "edited", "missing", "index"}, Diffs: 3, NewName: "new",
	})
}
