package imgsrc

import (
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

// farImage is an image in a registry.
type farImage struct {
	*fakeImage
	lacks *int64 // negative: unknown
}

func (farImage) Local(int) bool { return false }

func (i farImage) Lacks() (int64, bool) { return *i.lacks, *i.lacks >= 0 }

// overConfig is a manifest, called name, of an image that several manifests are over.
func overConfig(name string) *fakeImage {
	return &fakeImage{desc: Desc{ID: strings.Repeat("c", 64), Digest: digest.FromString(name), Config: digest.FromString("config")}}
}

func here(name string) Listed { return Listed{Image: overConfig(name)} }

// far is one in the repository r/app of a registry, which lacks so much.
func far(name string, lacks int64) Listed {
	return Listed{Image: farImage{overConfig(name), &lacks}, RepoDigests: []string{"r/app@" + digest.FromString(name).String()}}
}

func with(l Listed, change func(*Listed, *Desc)) Listed {
	img, _ := l.Image.(*fakeImage)
	if f, ok := l.Image.(farImage); ok {
		img = f.fakeImage
	}
	change(&l, &img.desc)
	return l
}

func damaged(l Listed) Listed {
	return with(l, func(_ *Listed, d *Desc) { d.Damaged = errors.New("damaged") })
}

func otherConfig(l Listed) Listed {
	return with(l, func(_ *Listed, d *Desc) { d.Config = digest.FromString("other") })
}

func layered(l Listed, layers ...string) Listed {
	return with(l, func(l *Listed, _ *Desc) { l.Layers = layers })
}

func asked(l Listed, repo string) Listed {
	return with(l, func(l *Listed, d *Desc) { l.Asked, l.RepoDigests = true, []string{repo + "@" + d.Digest.String()} })
}

func nearestOf(t *testing.T, c *Catalog) Held {
	t.Helper()
	e := refresh(t, c).ByID(strings.Repeat("c", 64))
	if e == nil {
		t.Fatal("the image is not there")
	}
	return e.Nearest()
}

func TestNearest(t *testing.T) {
	const unknown = -1
	for _, test := range []struct {
		name          string
		first, second []Listed // of two sources
		want          string
	}{
		{"only one", []Listed{far("a", 100)}, nil, "a"},
		{"the first that is here", []Listed{here("a"), far("b", 0)}, []Listed{here("c")}, "a"},
		{"what is here before a registry", []Listed{far("a", 100), far("b", 0)}, []Listed{here("c"), here("d")}, "c"},
		{"although the registry's is here as well", []Listed{far("a", 0)}, []Listed{here("b")}, "b"},
		{"not if that is damaged", []Listed{far("a", 100), far("b", 0)}, []Listed{damaged(here("c")), here("d")}, "d"},
		{"nor of another config", []Listed{far("a", 100)}, []Listed{otherConfig(here("c"))}, "a"},
		{"the least of those in registries", []Listed{far("a", 100), far("b", 40)}, []Listed{far("c", 10)}, "c"},
		{"of two the first", []Listed{far("a", 100), far("b", 10)}, []Listed{far("c", 10)}, "b"},
		{"a table of contents", []Listed{far("a", 100), far("b", 0), far("c", 0)}, nil, "b"},
		{"not for a little", []Listed{far("a", 100), far("b", 51)}, nil, "a"},
		{"half", []Listed{far("a", 100), far("b", 50), far("c", 49)}, nil, "c"},
		{"of two that need nothing the first", []Listed{far("a", 0), far("b", 0)}, nil, "a"},
		{"one that cannot be read", []Listed{far("a", unknown), far("b", unknown), far("c", 1<<60)}, nil, "c"},
		{"none that can", []Listed{far("a", unknown), far("b", unknown)}, nil, "a"},
		{"a damaged one", []Listed{far("a", 100), damaged(far("b", 0))}, nil, "a"},
		{"of another config", []Listed{far("a", 100), otherConfig(far("b", 0))}, nil, "a"},
		{"of other layers", []Listed{layered(far("a", 100), "1", "2"), layered(far("b", 0), "1"), layered(far("c", 0), "3", "4")}, nil, "c"},
		{"that somebody has asked for", []Listed{far("a", 100)}, []Listed{asked(far("b", 0), "r/ap"), asked(far("c", 0), "other/app"), asked(far("d", 0), "r/app")}, "d"},
		{"all of them", nil, []Listed{asked(far("a", 100), "r/app"), asked(far("b", 0), "evil/app"), asked(far("c", 10), "r/app")}, "c"},
	} {
		first, second := &fakeSource{name: "first"}, &fakeSource{name: "second"}
		first.set(nil, test.first...)
		second.set(nil, test.second...)
		c := NewCatalog(slog.New(slog.DiscardHandler), first, second)
		if got := nearestOf(t, c); got.Desc().Digest != digest.FromString(test.want) {
			t.Errorf("%s: %s, want %s", test.name, got.Desc().Digest, digest.FromString(test.want))
		}
	}
}

// What was chosen stays, unless it is gone or something is nearer.
func TestNearestStays(t *testing.T) {
	first, second := &fakeSource{name: "first"}, &fakeSource{name: "second"}
	c := NewCatalog(slog.New(slog.DiscardHandler), first, second)
	a, b, none := far("a", 100), far("b", 0), far("d", 0)
	expect := func(what, want string) {
		t.Helper()
		if got := nearestOf(t, c); got.Desc().Digest != digest.FromString(want) {
			t.Errorf("%s: %s, want %s", what, got.Desc().Digest, digest.FromString(want))
		}
	}
	second.set(nil, a)
	expect("alone", "a")
	*a.Image.(farImage).lacks = 0
	second.set(nil, a, b)
	expect("it was fetched, and another needs nothing", "a")
	*a.Image.(farImage).lacks = 100
	second.set(nil, a, b)
	expect("it was thrown out of the cache", "b")
	*a.Image.(farImage).lacks = 0
	second.set(nil, none, a, b)
	expect("others need nothing now", "b")
	*b.Image.(farImage).lacks = 10
	second.set(nil, none, a, b)
	expect("they need nothing, and it does", "d")
	first.set(nil, b)
	second.set(nil, none, a)
	expect("it has come to stand for the image, and needs more", "d")
	second.set(nil, a)
	expect("it is gone, and the first needs more than another", "a")
	second.set(nil, a, here("e"))
	expect("one has come here", "e")
	second.set(nil, a, here("f"), here("e"))
	expect("another has come here", "e")
	second.set(nil, a, here("f"), damaged(here("e")))
	expect("it is damaged", "f")
	second.set(nil, a)
	expect("none is here any more", "a")
	second.set(nil)
	expect("the image has one manifest", "b")
}
