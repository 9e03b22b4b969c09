package fs

import (
	"errors"
	"log/slog"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
)

// treeOf is a tree of the images of several sources.
func treeOf(t testing.TB, sources ...*fakeSource) *FS {
	t.Helper()
	var all []imgsrc.Source
	for _, s := range sources {
		all = append(all, s)
	}
	return treeFrom(t, all...)
}

func treeFrom(t testing.TB, sources ...imgsrc.Source) *FS {
	t.Helper()
	f := New(Options{
		Layers: layerCache(t), Catalog: imgsrc.NewCatalog(slog.New(slog.DiscardHandler), sources...), Ops: &fakeOps{},
		Log: slog.New(slog.DiscardHandler),
	})
	t.Cleanup(f.OnUnmount)
	f.refresh(t.Context())
	return f
}

// find looks a path up, from a directory on.
func find(t testing.TB, f *FS, n node, path ...string) node {
	t.Helper()
	for _, name := range path {
		hit, err := f.view(n).lookup(t.Context(), n, name)
		if err != nil {
			t.Fatalf("looking up %s: %v", name, err)
		}
		n = hit.node
	}
	return n
}

// What somebody has open of an image stays what it is when its layers are read from another source, as long as the source
// that they were read from has them.
func TestReplaced(t *testing.T) {
	img := makeImage(t, "a", "one")
	far, near := &fakeSource{}, &fakeSource{}
	far.set(named(farImage{img, map[int]bool{}}, "localhost/a:1"))
	f := treeOf(t, far, near)
	id := img.desc.ID
	file, names := find(t, f, idsNode, id, "rootfs", "file"), find(t, f, idsNode, id, "names")
	text := func(n node) string {
		t.Helper()
		buf := make([]byte, 100)
		res, err := f.view(n).read(t.Context(), n, buf, 0)
		if err != nil {
			return err.Error()
		}
		b, _ := res.Bytes(buf)
		return string(b)
	}
	near.set(named(img, "localhost/b:1"))
	if is := find(t, f, idsNode, id, "rootfs", "file"); is == file || !slices.Contains(told(f), goneEntry{dir: idsNode, name: id}) {
		t.Error("the files may have other numbers, and have the same nodes")
	}
	if text(file) != "one" || text(names) != "localhost/a:1\nlocalhost/b:1\n" {
		t.Errorf("%q, %q", text(file), text(names))
	}
	was := find(t, f, idsNode, id, "rootfs", "file")
	near.set()
	f.refresh(t.Context())
	if _, err := f.view(was).attr(t.Context(), was, false); !errors.Is(err, imgsrc.ErrNotFound) {
		t.Errorf("of a source that has it no more: %v", err)
	}
	if text(file) != "one" || text(names) != "localhost/a:1\n" {
		t.Errorf("%q, %q", text(file), text(names))
	}
	for range 50 {
		near.set(named(img, "localhost/b:1"))
		f.refresh(t.Context())
		near.set()
		f.refresh(t.Context())
	}
	if s := f.state.Load(); len(s.replaced) != maxReplaced || f.slots.images.len != maxReplaced+1 || len(s.order) != 1 {
		t.Errorf("%d images, of which %d were replaced", f.slots.images.len, len(s.replaced))
	}
	far.set()
	f.refresh(t.Context())
	if n := f.slots.images.len; n != 0 {
		t.Errorf("%d images, and there is none", n)
	}
}

// Of an image that is not the newest of its id one learns as of the newest that its files have other numbers.
func TestReplacedIsRenewed(t *testing.T) {
	img := makeImage(t, "a", "one")
	far, near := &fakeSource{}, &fakeSource{}
	far.set(named(farImage{img, map[int]bool{}}))
	f := treeOf(t, far, near)
	was := f.image(find(t, f, idsNode, img.desc.ID).image())
	near.set(named(img))
	is := find(t, f, idsNode, img.desc.ID)
	f.renew(was)
	if s := f.state.Load(); len(s.replaced) != 0 || was.entry.Load() != nil || find(t, f, idsNode, img.desc.ID) != is {
		t.Errorf("%d replaced images", len(s.replaced))
	}
}

// While a store gets an image that is read from a registry, it may have it without a manifest for a moment.
func TestReplacedByDamaged(t *testing.T) {
	img := makeImage(t, "a", "one")
	store, far := &fakeSource{}, &fakeSource{}
	far.set(named(farImage{img, map[int]bool{}}))
	f := treeOf(t, store, far)
	id := img.desc.ID
	file, manifest := find(t, f, idsNode, id, "rootfs", "file"), find(t, f, idsNode, id, "manifest.json")
	broken := *img
	broken.desc = imgsrc.Desc{ID: id, Damaged: imgsrc.ErrDamaged}
	other := *img
	other.manifest = append(slices.Clone(img.manifest), '\n')
	other.desc.Digest = digest.FromBytes(other.manifest)
	for state, first := range []*fakeImage{&broken, img, &other} {
		store.set(named(first))
		f.refresh(t.Context())
		f.rendered = newRenderedCache(renderedBytes) // as if it had made room
		for n, want := range map[node]string{file: "one", manifest: string(img.manifest)} {
			buf := make([]byte, 10_000)
			res, err := f.view(n).read(t.Context(), n, buf, 0)
			if err != nil {
				t.Errorf("state %d: %v", state, err)
				continue
			}
			if got, _ := res.Bytes(buf); string(got) != want {
				t.Errorf("state %d: %q", state, got)
			}
		}
	}
}
