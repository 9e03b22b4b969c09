package ops

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/imgfs/imgfs/imgsrc"
)

// othersOf returns the events that are said to be somebody else's, and how many there are of the mount's own.
func othersOf(t *testing.T, o *Ops) (others []string, own int) {
	t.Helper()
	text, _ := o.Events()
	for line := range strings.Lines(string(text)) {
		var e event
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatal(err)
		}
		if e.Origin == "" {
			own++
			continue
		}
		others = append(others, strings.TrimSpace(fmt.Sprintf("%s %.4s %s", e.Type, e.Image, e.Reference)))
	}
	return others, own
}

// farImage is one in a registry.
type farImage struct{ *fakeImage }

func (farImage) Local(int) bool { return false }

func (farImage) Lacks() (int64, bool) { return 0, false }

func TestOthersChanges(t *testing.T) {
	var images []*fakeImage
	for i := range 3 {
		images = append(images, newImage(t, imgspecv1.MediaTypeImageManifest, true, fmt.Sprint(i), tarOf("a", nil)))
	}
	id := func(i int) string { return images[i].desc.ID[:4] }
	type listing map[int][]string
	for _, test := range []struct {
		name   string
		before listing
		after  listing
		want   []string
	}{
		{"nothing", listing{0: {"a"}}, listing{0: {"a"}}, nil},
		{"an image comes", listing{}, listing{0: nil}, []string{"add " + id(0)}},
		{"an image comes with names", listing{}, listing{0: {"b", "a"}}, []string{"add " + id(0), "tag " + id(0) + " a", "tag " + id(0) + " b"}},
		{"an image goes", listing{0: {"a", "b"}, 1: nil}, listing{1: nil}, []string{"untag " + id(0) + " a", "untag " + id(0) + " b", "remove " + id(0)}},
		{"a name", listing{0: {"a"}}, listing{0: {"a", "b"}}, []string{"tag " + id(0) + " b"}},
		{"a name goes", listing{0: {"a", "b"}}, listing{0: {"a"}}, []string{"untag " + id(0) + " b"}},
		{"a name moves", listing{0: {"a"}, 1: nil}, listing{0: nil, 1: {"a"}}, []string{"tag " + id(1) + " a"}},
		{"a name moves to what comes", listing{0: {"a"}}, listing{0: nil, 1: {"a"}}, []string{"add " + id(1), "tag " + id(1) + " a"}},
		{"a name moves off what goes", listing{0: {"a"}, 1: nil}, listing{1: {"a"}}, []string{"remove " + id(0), "tag " + id(1) + " a"}},
		{"replaced", listing{0: {"a"}}, listing{1: {"a"}}, []string{"remove " + id(0), "add " + id(1), "tag " + id(1) + " a"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			src := &fakeSource{name: "oci:/srv/fake"}
			set := func(l listing) {
				src.mu.Lock()
				defer src.mu.Unlock()
				src.stamp++
				src.images = nil
				for i, img := range images {
					if names, ok := l[i]; ok {
						src.images = append(src.images, imgsrc.Listed{Image: img, Names: names})
					}
				}
			}
			set(test.before)
			o, _ := newOpsOn(t, Options{}, src)
			look := func() {
				if _, err := o.opt.Catalog.Refresh(t.Context()); err != nil {
					t.Error(err)
				}
			}
			look()
			if others, own := othersOf(t, o); others != nil || own > 0 {
				t.Errorf("what was there at first: %q", others)
			}
			set(test.after)
			look()
			set(test.after)
			look() // once more, which changes nothing
			others, own := othersOf(t, o)
			if !slices.Equal(others, test.want) || own > 0 {
				t.Errorf("%q, want %q", others, test.want)
			}
		})
	}
}

func TestRegistriesAreNoChange(t *testing.T) {
	img := smallImage(t)
	src := &fakeSource{name: "docker://host"}
	o, _ := newOpsOn(t, Options{}, src)
	for range 2 {
		if _, err := o.opt.Catalog.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		src.images, src.stamp = []imgsrc.Listed{{Image: farImage{img}, RemoteNames: []string{"host/a:1"}}}, 1
	}
	if others, _ := othersOf(t, o); others != nil {
		t.Errorf("%q", others)
	}
}

// TestOwnChanges tags while the source changes for other reasons, too: what the mount does is not somebody else's as well.
func TestOwnChanges(t *testing.T) {
	a, b := newImage(t, imgspecv1.MediaTypeImageManifest, true, "a", tarOf("a", nil)), newImage(t, imgspecv1.MediaTypeImageManifest, true, "b", tarOf("b", nil))
	src := &tagging{fakeSource: &fakeSource{name: "containers-storage:", images: []imgsrc.Listed{
		{Image: a, Names: []string{"localhost/a:1", "localhost/moves:1"}}, {Image: b, Names: []string{"localhost/b:1"}},
	}}}
	o, _ := newOpsOn(t, Options{}, src)
	look := func() {
		if _, err := o.opt.Catalog.Refresh(t.Context()); err != nil {
			t.Error(err)
		}
	}
	look()
	tag := func(img *fakeImage, lines ...string) error {
		r := Request{Control: "tags", Image: img.desc.ID}
		for _, line := range lines {
			r.Lines = append(r.Lines, []string{line})
		}
		return o.Do(t.Context(), r)
	}
	if err := tag(b, "localhost/moves:1", "localhost/new:1", "-localhost/b:1"); err != nil {
		t.Fatal(err)
	}
	look()
	if others, own := othersOf(t, o); others != nil || own != 3 {
		t.Errorf("%q, and %d of its own", others, own)
	}
	if err := src.Tag(t.Context(), a.desc, []string{"localhost/theirs:1"}, []string{"localhost/a:1"}); err != nil {
		t.Fatal(err)
	}
	if err := tag(a, "localhost/ours:1"); err != nil {
		t.Fatal(err)
	}
	look()
	want := []string{"untag " + a.desc.ID[:4] + " localhost/a:1", "tag " + a.desc.ID[:4] + " localhost/theirs:1"}
	if others, own := othersOf(t, o); !slices.Equal(others, want) || own != 4 {
		t.Errorf("%q, and %d of its own; want %q", others, own, want)
	}
	src.err = errors.New("boom")
	if err := tag(a, "localhost/ours:2"); err == nil {
		t.Fatal("the source's error is lost")
	}
	if len(o.others.holds) > 0 {
		t.Error("an operation that has ended is still under way")
	}
}

// TestHold has a pull under way, which may bring one name, while others change others.
func TestHold(t *testing.T) {
	a, b, c := smallImage(t), newImage(t, imgspecv1.MediaTypeImageManifest, true, "b", tarOf("b", nil)), newImage(t, imgspecv1.MediaTypeImageManifest, true, "c", tarOf("c", nil))
	src := &fakeSource{name: "oci:/srv/fake"}
	o, _ := newOpsOn(t, Options{}, src)
	list := func(images ...imgsrc.Listed) {
		t.Helper()
		src.mu.Lock()
		src.images = images
		src.stamp++
		src.mu.Unlock()
		if _, err := o.opt.Catalog.Refresh(t.Context()); err != nil {
			t.Error(err)
		}
	}
	list()
	release := o.others.hold("docker.io/library/pulled:1")
	list(imgsrc.Listed{Image: a, Names: []string{"docker.io/library/pulled:1"}}, imgsrc.Listed{Image: b}, imgsrc.Listed{Image: c, Names: []string{"localhost/theirs:1"}})
	if others, _ := othersOf(t, o); len(others) != 2 || others[0] != "add "+c.desc.ID[:4] || others[1] != "tag "+c.desc.ID[:4]+" localhost/theirs:1" {
		t.Errorf("under way: %q", others)
	}
	o.others.own(a.desc.ID, "docker.io/library/pulled:1")
	release()
	if others, _ := othersOf(t, o); len(others) != 3 || others[2] != "add "+b.desc.ID[:4] {
		t.Errorf("in the end: %q", others)
	}
	o.others.own("x", "y") // while nothing is under way it does not pile up
	if len(o.others.touched.names) > 0 {
		t.Error("what was touched is not forgotten")
	}
}

// TestPushIntoSource pushes into the layout that the image is from: that is a push, and no change that others made.
func TestPushIntoSource(t *testing.T) {
	img := smallImage(t)
	src := &fakeSource{name: "oci:/srv/fake", images: []imgsrc.Listed{{Image: img}}}
	o, _ := newOpsOn(t, Options{}, src)
	o.copy = func(context.Context, pushJob) error {
		src.mu.Lock()
		defer src.mu.Unlock()
		src.stamp++
		src.images[0].Names = []string{"x"}
		return nil
	}
	if err := o.Do(t.Context(), pushTo(img, "oci:"+t.TempDir()+":x")); err != nil {
		t.Fatal(err)
	}
	if others, own := othersOf(t, o); others != nil || own != 1 {
		t.Errorf("%q, and %d of its own", others, own)
	}
	if e := o.opt.Catalog.Snapshot().ByName("x"); e == nil {
		t.Error("what was pushed into it does not show")
	}
}
