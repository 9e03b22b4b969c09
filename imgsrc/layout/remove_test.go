package layout

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/imgfs/imgfs/imgsrc"
)

func TestRemove(t *testing.T) {
	l := newLayout(t)
	a, b, c := l.image("a"), l.image("b"), l.image("c")
	l.name(a, "a:1")
	l.name(b, "b:1")
	l.name(a, "a:2")
	l.add(c)
	index := l.json(v1.MediaTypeImageIndex, v1.Index{MediaType: v1.MediaTypeImageIndex, Manifests: []v1.Descriptor{b}})
	l.name(index, "multi")
	s := l.open()
	byDigest := func(d v1.Descriptor) []imgsrc.Desc {
		for _, img := range list(t, s).Images {
			if img.Desc().Digest == d.Digest {
				return []imgsrc.Desc{img.Desc()}
			}
		}
		t.Fatalf("%s is not listed", d.Digest)
		return nil
	}
	made := l.image("d")
	was := l.asDocker(made)
	l.made(made, was, "d:1")
	first := byDigest(a)
	for _, step := range []struct {
		what  string
		img   []imgsrc.Desc
		names []string
		want  error
		left  []string // the entries' names
	}{
		{"it has got another name", first, []string{"a:1"}, imgsrc.ErrInUse, []string{"a:1", "b:1", "a:2", "", "multi", "d:1"}},
		{"part of an index", byDigest(b), []string{"b:1"}, imgsrc.ErrInUse, []string{"a:1", "b:1", "a:2", "", "multi", "d:1"}},
		{"with all its names", first, []string{"a:2", "a:1"}, nil, []string{"b:1", "", "multi", "d:1"}},
		{"what was made from another", byDigest(was), []string{"d:1"}, nil, []string{"b:1", "", "multi"}},
		{"again", first, nil, imgsrc.ErrNotFound, []string{"b:1", "", "multi"}},
		{"without a name", byDigest(c), nil, nil, []string{"b:1", "multi"}},
		{"the index", byDigest(index), []string{"multi"}, nil, []string{"b:1"}},
		{"what it had", byDigest(b), []string{"b:1"}, nil, nil},
		{"nothing", nil, nil, imgsrc.ErrNotFound, nil},
	} {
		if err := s.Remove(t.Context(), step.img, step.names); !errors.Is(err, step.want) {
			t.Errorf("%s: %v, want %v", step.what, err, step.want)
		}
		ix, err := s.readIndex(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var left []string
		for _, e := range ix.entries {
			left = append(left, e.name)
		}
		if !slices.Equal(left, step.left) {
			t.Errorf("%s: %q are left, want %q", step.what, left, step.left)
		}
	}
	blobs, err := os.ReadDir(filepath.Join(l.dir, "blobs/sha256"))
	if err != nil || len(blobs) < 7 {
		t.Errorf("%d blobs are left: %v", len(blobs), err)
	}
	wantClean(t, l)
}

// What is not understood stays as it is.
func TestRemoveKeepsTheRest(t *testing.T) {
	l := newLayout(t)
	a, b := l.image("a"), l.image("b")
	entry := func(d v1.Descriptor) string {
		return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d}`, d.MediaType, d.Digest, d.Size)
	}
	l.file("index.json", `{"schemaVersion":2,"x":[1.50],"manifests":[`+entry(a)+`,{"odd":true},`+entry(b)+`],"y":null}`)
	s := l.open()
	if err := s.Remove(t.Context(), []imgsrc.Desc{list(t, s).Images[0].Desc()}, nil); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(l.dir, "index.json"))
	if want := `{"schemaVersion":2,"x":[1.50],"manifests":[{"odd":true},` + entry(b) + `],"y":null}`; err != nil || string(got) != want {
		t.Errorf("%s, %v; want %s", got, err, want)
	}
}
