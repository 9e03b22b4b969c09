package fs

import (
	"log/slog"
	"slices"
	"testing"

	"github.com/imgfs/imgfs/imgsrc"
)

// engineImage is an image of an engine, whose layers come with all of it and may be thrown out again.
type engineImage struct {
	*sketchedImage
	evicted bool
}

func (i *engineImage) Local(int) bool { return *i.loads > 0 && !i.evicted }

// What takes a layer's bytes is listed when they are here, and no more when they have been thrown out.
func TestEngineImage(t *testing.T) {
	img := &engineImage{sketched(makeImage(t, "an author", "one", "two"), `{}`), false}
	f, _, _ := newTree(t, named(img, "web:1"))
	id := img.desc.ID
	layer := f.state.Load().byID[id].node(viewLayers, layerEntry(0, 0))
	is := func(listed bool) {
		t.Helper()
		inDir, _ := rowsOf(t, f, id)
		inLayer, _ := listOf(t, f, layer)
		for _, has := range []bool{slices.Contains(inDir, "rootfs"), slices.Contains(inLayer, "diff"), slices.Contains(inLayer, "diff.tar"), slices.Contains(inLayer, "changes")} {
			if has != listed {
				t.Errorf("listed are %v, and of a layer %v", inDir, inLayer)
			}
		}
	}
	changed := func(what func()) {
		t.Helper()
		dir := f.state.Load().byID[id].node(viewImage, 0)
		for n, was := range map[node]attr{dir: attrOf(t, f, dir), layer: attrOf(t, f, layer)} {
			defer func() {
				if is := attrOf(t, f, n); !is.live || !is.mtime.After(was.mtime) {
					t.Errorf("the kernel would keep the listing: %+v, was %+v", is, was)
				}
			}()
		}
		what()
	}
	is(false)
	if *img.loads > 0 {
		t.Fatal("it was read to be listed")
	}
	changed(func() {
		if _, _, err := lookUp(t, f, id, "layers/00/size"); err != nil {
			t.Fatal(err)
		}
	})
	is(true)
	changed(func() { img.evicted = true })
	is(false)
	for _, path := range []string{"rootfs/file", "layers/01/diff/file", "layers/01/diff.tar", "layers/01/changes"} {
		if _, _, err := lookUp(t, f, id, path); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func attrOf(t *testing.T, f *FS, n node) attr {
	t.Helper()
	a, err := f.view(n).attr(t.Context(), n, false)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// As long as an image has to be read to say what is in oci/, that is not listed, and found by its name.
func TestSketchOfOCI(t *testing.T) {
	one, two := makeImage(t, "one", "a"), makeImage(t, "two", "b")
	f, src, _ := newTree(t, named(sketched(one, `{}`), "web:1"))
	is := func(listed bool) {
		t.Helper()
		names, _ := listOf(t, f, rootNode)
		if slices.Contains(names, "oci") != listed {
			t.Errorf("listed are %v", names)
		}
		if _, err := f.view(rootNode).lookup(t.Context(), rootNode, "oci"); err != nil {
			t.Error(err)
		}
	}
	was := attrOf(t, f, rootNode)
	moved := func() {
		t.Helper()
		now := attrOf(t, f, rootNode)
		if !now.live || !now.mtime.After(was.mtime) {
			t.Errorf("the kernel would keep the listing: %+v, was %+v", now, was)
		}
		was = now
	}
	is(false)
	if *one.loads > 0 {
		t.Fatal("it was read to be listed")
	}
	index := func() {
		t.Helper()
		if a := attrOf(t, f, makeNode(0, viewOCI, ociIndex)); a.size == 0 {
			t.Error("an empty index")
		}
	}
	index()
	moved()
	is(true)
	broken := sketched(two, `{}`)
	src.set(named(sketched(one, `{}`), "web:1"), named(&brokenSketch{broken}, "web:2"))
	f.refresh(t.Context())
	moved()
	is(false)
	index()
	moved()
	is(true) // as whole as it gets
}

// A manifest that has no digest before its image is saved is not listed beside another.
func TestSketchBesideAnother(t *testing.T) {
	img := makeImage(t, "a", "one")
	unsaved := sketched(makeImage(t, "a", "one"), `{}`)
	unsaved.desc.Digest, unsaved.desc.Size = "", 0
	first, second := &fakeSource{}, &fakeSource{}
	first.set(named(img))
	second.set(named(unsaved))
	f := New(Options{
		Layers: layerCache(t), Catalog: imgsrc.NewCatalog(slog.New(slog.DiscardHandler), first, second), Ops: &fakeOps{},
		Log: slog.New(slog.DiscardHandler),
	})
	t.Cleanup(f.OnUnmount)
	f.refresh(t.Context())
	names, _ := rowsOf(t, f, img.desc.ID)
	if i := slices.Index(names, "export"); i != len(names)-1 || !slices.Contains(names, "rootfs") || *unsaved.loads > 0 {
		t.Errorf("listed are %v, %d reads", names, *unsaved.loads)
	}
}
