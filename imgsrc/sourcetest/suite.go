// Package sourcetest is the test that every imgsrc.Source must pass, whatever it reads and whoever made the images: what
// the interfaces promise, checked from outside. A backend's own tests call Run with places that only it has.
//
// Of images whose bytes are known it also tests that they come out of the source as they went in (Expect.Same): manifest and
// config, what they say, each layer as blob, as tar and as files, and the merged root file system. What they must be is read
// from an OCI layout by ReadLayout, without any of the code under test. The tests of this package make one such layout, put
// its images into every form that there is a source for, and run all of it over each: a table (forms) says what a form
// inherently lacks, and in all else no source may differ from another.
package sourcetest

import (
	"context"
	"encoding/json"
	"errors"
	"reflect"
	"regexp"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
)

// Expect is what the source holds that Run is given.
type Expect struct {
	// Images is how many entries the listing has, Damaged how many of them have Desc.Damaged.
	Images, Damaged int
	// Names are all names of all images, in any order.
	Names []string
	// Diffs is how many layers can be read as tars, counted once for each image that has them. Of the others Diff is
	// ErrAbsent or ErrUnsupported.
	Diffs int
	// Blobs says whether the source keeps layers as the manifest names them. If not, Blob is ErrAbsent for all that are
	// compressed.
	Blobs bool
	// Same are the images that are there, whatever form they have been given. Nil: the test does not know them.
	Same []*Image
	// OwnManifests says that the source keeps no manifests, and shows some that it has made.
	OwnManifests bool
	// NoSparse says that the source cannot put together again the tar of a layer with a sparse file.
	NoSparse bool
	// TOC says that layers which come with a table of contents are shown by it, and not as their tar.
	TOC bool
	// NewName is a name that no image has, as CheckName returns it. Empty if the images must not be tagged.
	NewName string
	// BadNames cannot be names in this source.
	BadNames []string
}

// Run tests the source that open opens, which it calls for each part of the test and closes. It reads every byte of
// every layer. With Expect.NewName it also changes names, and leaves them as they were.
func Run(t *testing.T, open func(t *testing.T) imgsrc.Source, want Expect) {
	tests := map[string]func(*suite){
		"List": (*suite).list, "Documents": (*suite).documents, "Diff": (*suite).diffs, "Blob": (*suite).blobs, "Files": (*suite).files,
		"Absent": (*suite).absent, "Exports": (*suite).exports, "Cancelled": (*suite).cancelled, "Catalog": (*suite).catalog,
	}
	if want.Same != nil {
		tests["Same"] = (*suite).same
	}
	if want.NewName != "" {
		tests["Tag"], tests["Watch"], tests["TagAndList"] = (*suite).tag, (*suite).watch, (*suite).tagAndList
	}
	if len(want.BadNames) > 0 {
		tests["BadNames"] = (*suite).badNames
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			src := open(t)
			t.Cleanup(func() {
				if err := src.Close(); err != nil {
					t.Errorf("closing: %v", err)
				}
			})
			test(&suite{T: t, src: src, want: want})
		})
	}
}

type suite struct {
	*testing.T
	src  imgsrc.Source
	want Expect
}

func (s *suite) images() []imgsrc.Listed {
	s.Helper()
	l, err := s.src.List(s.Context())
	if err != nil {
		s.Fatal(err)
	}
	return l.Images
}

// sound are the images that are not damaged.
func (s *suite) sound() []imgsrc.Listed {
	s.Helper()
	return slices.DeleteFunc(s.images(), func(img imgsrc.Listed) bool { return img.Desc().Damaged != nil })
}

// names returns who has which name.
func (s *suite) names() map[string]string {
	s.Helper()
	names := map[string]string{}
	for _, img := range s.images() {
		for _, name := range slices.Concat(img.Names, img.RemoteNames) {
			if other, ok := names[name]; ok && other != img.Desc().ID {
				s.Errorf("two images have the name %s: %s and %s", name, other, img.Desc().ID)
			}
			names[name] = img.Desc().ID
		}
	}
	return names
}

var idPattern = regexp.MustCompile(`^[0-9a-f]{64}$`)

func (s *suite) list() {
	stamp := s.src.Stamp()
	images := s.images()
	if len(images) != s.want.Images {
		s.Errorf("%d images, want %d", len(images), s.want.Images)
	}
	damaged := 0
	seen := map[digest.Digest]bool{}
	for _, img := range images {
		d := img.Desc()
		if seen[d.Digest] {
			s.Errorf("manifest %s is listed twice", d.Digest)
		}
		seen[d.Digest] = true
		if !idPattern.MatchString(d.ID) {
			s.Errorf("id %q is not 64 hex digits", d.ID)
		}
		if err := d.Digest.Validate(); err != nil {
			s.Errorf("image %s: digest %q: %v", d.ID, d.Digest, err)
		}
		if d.Damaged != nil {
			damaged++
		}
	}
	if damaged != s.want.Damaged {
		s.Errorf("%d images are damaged, want %d", damaged, s.want.Damaged)
	}
	var got []string
	for name := range s.names() {
		got = append(got, name)
	}
	slices.Sort(got)
	if want := slices.Sorted(slices.Values(s.want.Names)); !slices.Equal(got, want) {
		s.Errorf("names %q, want %q", got, want)
	}
	// Reading changes nothing.
	again := s.images()
	if !slices.EqualFunc(images, again, func(a, b imgsrc.Listed) bool {
		x, y := a.Desc(), b.Desc()
		x.Damaged, y.Damaged = nil, nil
		return reflect.DeepEqual(x, y) && slices.Equal(a.Names, b.Names) && slices.Equal(a.RepoDigests, b.RepoDigests)
	}) {
		s.Error("a second listing is another")
	}
	if damaged == 0 && s.src.Stamp() != stamp {
		s.Error("the stamp has moved without a change")
	}
	if s.src.Name() == "" {
		s.Error("the source has no name")
	}
}

// documents checks manifests and configs.
func (s *suite) documents() {
	for _, img := range s.images() {
		d := img.Desc()
		manifest, err := img.Manifest(s.Context())
		if d.Damaged != nil {
			_, configErr := img.Config(s.Context())
			if f, loadErr := imgsrc.Load(s.Context(), img); loadErr != nil || err == nil && configErr == nil && f.ManifestErr == nil && f.ConfigErr == nil {
				s.Errorf("image %s is listed as damaged (%v), and nothing is wrong with it: %v", d.ID, d.Damaged, loadErr)
			}
			continue
		}
		if err != nil {
			s.Errorf("image %s: %v", d.ID, err)
			continue
		}
		if got := d.Digest.Algorithm().FromBytes(manifest); got != d.Digest || int64(len(manifest)) != d.Size {
			s.Errorf("image %s: a manifest of %d bytes with the digest %s, want %d and %s", d.ID, len(manifest), got, d.Size, d.Digest)
		}
		var own struct{ MediaType string }
		if err := json.Unmarshal(manifest, &own); err != nil {
			s.Errorf("image %s: %v", d.ID, err)
		} else if own.MediaType != "" && own.MediaType != d.MediaType || d.MediaType == "" {
			s.Errorf("image %s: media type %q, and the manifest says %q", d.ID, d.MediaType, own.MediaType)
		}
		config, err := img.Config(s.Context())
		switch {
		case d.Config == "" && !errors.Is(err, imgsrc.ErrAbsent):
			s.Errorf("image %s has no config, and reading it is %v, want ErrAbsent", d.ID, err)
		case d.Config != "" && err != nil:
			s.Errorf("image %s: %v", d.ID, err)
		case d.Config != "" && d.Config.Algorithm().FromBytes(config) != d.Config:
			s.Errorf("image %s: the config is not %s", d.ID, d.Config)
		}
	}
}

// absent asks for what no image has.
func (s *suite) absent() {
	for _, img := range s.sound() {
		d := img.Desc()
		if c, err := img.Blob(s.Context(), digest.FromString("no such blob")); !errors.Is(err, imgsrc.ErrAbsent) {
			s.Errorf("image %s: an unknown blob is %v, %v, want ErrAbsent", d.ID, c, err)
		}
		for _, n := range []int{-1, len(s.facts(img).Layers), 1 << 30} {
			if c, err := img.Diff(s.Context(), n); !errors.Is(err, imgsrc.ErrAbsent) {
				s.Errorf("image %s: layer %d is %v, %v, want ErrAbsent", d.ID, n, c, err)
			}
			if f, err := img.Files(s.Context(), n); !errors.Is(err, imgsrc.ErrAbsent) {
				s.Errorf("image %s: the files of layer %d are %v, %v, want ErrAbsent", d.ID, n, f, err)
			}
		}
	}
}

func (s *suite) facts(img imgsrc.Image) *imgsrc.Facts {
	s.Helper()
	f, err := imgsrc.Load(s.Context(), img)
	if err == nil {
		err = f.ManifestErr
	}
	if err != nil {
		s.Fatal(err)
	}
	return f
}

// cancelled calls everything with a context that has ended.
func (s *suite) cancelled() {
	images := s.sound()
	ctx, cancel := context.WithCancel(s.Context())
	cancel()
	check := func(what string, err error) {
		s.Helper()
		if !errors.Is(err, context.Canceled) {
			s.Errorf("%s with a cancelled context: %v", what, err)
		}
	}
	_, err := s.src.List(ctx)
	check("List", err)
	for _, img := range images {
		_, err := img.Manifest(ctx)
		check("Manifest", err)
		if img.Desc().Config != "" {
			_, err = img.Config(ctx)
			check("Config", err)
		}
		for n, l := range s.facts(img).Layers {
			if f, err := img.Files(s.Context(), n); err == nil {
				check("Files, Entries", f.Entries(ctx, func(*imgsrc.File) error { return nil }))
				if err := f.Close(); err != nil {
					s.Errorf("Files, Close: %v", err)
				}
			}
			for what, open := range map[string]func() (imgsrc.Content, error){
				"Diff": func() (imgsrc.Content, error) { return img.Diff(s.Context(), n) },
				"Blob": func() (imgsrc.Content, error) { return img.Blob(s.Context(), l.Digest) },
			} {
				c, err := open()
				if err != nil {
					continue // what may fail is for the other parts to say
				}
				_, err = c.ReadAt(ctx, make([]byte, 1), 0)
				check(what+", ReadAt", err)
				_, err = c.Size(ctx)
				check(what+", Size", err)
				if err := c.Close(); err != nil {
					s.Errorf("%s, Close: %v", what, err)
				}
			}
		}
	}
}

// catalog lists the source as the tree does.
func (s *suite) catalog() {
	c := imgsrc.NewCatalog(discard, s.src)
	first, err := c.Refresh(s.Context())
	if err != nil {
		s.Fatal(err)
	}
	for _, img := range s.images() {
		if e := first.ByID(img.Desc().ID); e == nil {
			s.Errorf("image %s is not in the catalog", img.Desc().ID)
		}
	}
	for _, name := range s.want.Names {
		if first.ByName(name) == nil && first.ByRemoteName(name) == nil {
			s.Errorf("the name %s is not in the catalog", name)
		}
	}
}
