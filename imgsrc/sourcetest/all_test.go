package sourcetest_test

import (
	"errors"
	"log/slog"
	"path/filepath"
	"testing"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/layer"
	"github.com/imgfs/imgfs/imgsrc/sourcetest"
	"github.com/imgfs/imgfs/test/images"
)

var discard = slog.New(slog.DiscardHandler)

func cacheIn(t *testing.T, dir string) *layer.Cache {
	t.Helper()
	c, err := layer.OpenCache(dir, 0, discard)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func cacheOf(t *testing.T) *layer.Cache {
	t.Helper()
	return cacheIn(t, t.TempDir())
}

// A sample is the images that every source is tested with, and the layout that they were made in.
type sample struct {
	dir    string
	images []*sourcetest.Image
}

// newSample is what every source is tested with.
func newSample(t *testing.T) *sample {
	t.Helper()
	return sampleOf(t, images.Varied)
}

func sampleOf(t *testing.T, fill ...func(*images.Layout) error) *sample {
	t.Helper()
	s := &sample{dir: filepath.Join(t.TempDir(), "layout")}
	l, err := images.Create(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range fill {
		err = errors.Join(err, f(l))
	}
	if err := errors.Join(err, l.Close()); err != nil {
		t.Fatal(err)
	}
	if s.images, err = sourcetest.ReadLayout(s.dir); err != nil {
		t.Fatal(err)
	}
	return s
}

// A place holds images of the sample, in one form.
type place struct {
	images []*sourcetest.Image
	open   func(t *testing.T) imgsrc.Source
	names  func(*sourcetest.Image) []string // nil: the form's
	// newName is one that no image has. Empty: names cannot be changed there, or not all of them back.
	newName  string
	badNames []string // which cannot be names there
}

// A form is one that a source reads images in, with what it inherently lacks: in all else every source gives the same.
type form struct {
	name string
	// make puts the images into this form, at one place or at several.
	make maker
	// lacks says of an image that there cannot be such a one. Nil: there can be all.
	lacks func(*sourcetest.Image) bool
	// names are those under which an image is in this form. Nil: its own.
	names func(*sourcetest.Image) []string
	// unpacked: the layers are kept uncompressed only.
	unpacked bool
	// ownManifests: no manifests are kept.
	ownManifests bool
	// noSparse: the tar of a layer with a sparse file cannot be put together again.
	noSparse bool
	// toc: layers are shown by their tables of contents.
	toc bool
}

// of are the images that this form can have. Where no manifests are kept, two manifests over one config are one image.
func (f form) of(all []*sourcetest.Image) []*sourcetest.Image {
	var list []*sourcetest.Image
	byID := map[string]*sourcetest.Image{}
	for _, img := range all {
		if f.lacks != nil && f.lacks(img) {
			continue
		}
		if first := byID[img.ID]; first != nil && f.ownManifests {
			first.Names = append(first.Names, img.Names...)
			continue
		}
		own := *img
		byID[img.ID] = &own
		list = append(list, &own)
	}
	return list
}

// expect is what a place has to have.
func (f form) expect(p place) sourcetest.Expect {
	want := sourcetest.Expect{Images: len(p.images), Blobs: !f.unpacked, Same: p.images, OwnManifests: f.ownManifests, NoSparse: f.noSparse, TOC: f.toc,
		NewName: p.newName, BadNames: p.badNames}
	names := func(img *sourcetest.Image) []string { return img.Names }
	for _, other := range []func(*sourcetest.Image) []string{f.names, p.names} {
		if other != nil {
			names = other
		}
	}
	for _, img := range p.images {
		want.Names = append(want.Names, names(img)...)
		want.Diffs += len(img.Layers)
	}
	return want
}

// TestAll runs the suite over the same images in every form that there is a source for.
func TestAll(t *testing.T) {
	s := newSample(t)
	for _, f := range forms {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel() // most of the time is waiting for programs
			for _, p := range f.make(t, s, f.of(s.images)) {
				sourcetest.Run(t, p.open, f.expect(p))
			}
		})
	}
}
