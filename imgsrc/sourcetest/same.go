package sourcetest

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/layer"
)

// RunSame tests that the source that open opens has just the images of want.Same, each of them whole and the same to the
// byte, and what is damaged in them damaged in the same way. It is a part of Run, and can be called alone where the other parts
// would stumble over damage.
func RunSame(t *testing.T, open func(t *testing.T) imgsrc.Source, want Expect) {
	src := open(t)
	t.Cleanup(func() {
		if err := src.Close(); err != nil {
			t.Errorf("closing: %v", err)
		}
	})
	(&suite{T: t, src: src, want: want}).same()
}

func (s *suite) same() {
	missing := map[*Image]bool{}
	for _, want := range s.want.Same {
		missing[want] = true
	}
	for _, img := range s.images() {
		d := img.Desc()
		i := slices.IndexFunc(s.want.Same, func(want *Image) bool {
			return want.ID == d.ID && (s.want.OwnManifests || want.Digest == d.Digest)
		})
		if i < 0 {
			s.Errorf("image %s with the manifest %s is none of those that were put there", d.ID, d.Digest)
			continue
		}
		want := s.want.Same[i]
		if !missing[want] {
			s.Errorf("image %s is listed twice", d.ID)
			continue
		}
		delete(missing, want)
		s.sameImage(img, want)
	}
	for want := range missing {
		s.Errorf("image %s %q with the manifest %s is not listed", want.ID, want.Names, want.Digest)
	}
}

func (s *suite) sameImage(img imgsrc.Listed, want *Image) {
	d := img.Desc()
	if d.Damaged != nil {
		s.Errorf("image %s is listed as damaged: %v", want.ID, d.Damaged)
		return
	}
	manifest, err := img.Manifest(s.Context())
	if err != nil {
		s.Errorf("image %s: %v", want.ID, err)
		return
	}
	// A source that says it has no manifests, and has them, is to say so.
	if same := bytes.Equal(manifest, want.Manifest); same == s.want.OwnManifests {
		s.Errorf("image %s: the manifest is\n%s\nand the image's own\n%s", want.ID, manifest, want.Manifest)
	}
	config, err := img.Config(s.Context())
	if want.Config == nil && !errors.Is(err, imgsrc.ErrAbsent) || want.Config != nil && (err != nil || !bytes.Equal(config, want.Config) || d.Config != want.form.Config.Digest) {
		s.Errorf("image %s: %v, the config %s is\n%s\nwant\n%s", want.ID, err, d.Config, config, want.Config)
	}
	if !s.want.OwnManifests && (d.MediaType != want.MediaType || d.Size != want.Size) {
		s.Errorf("image %s: %d bytes of %s, want %d of %s", want.ID, d.Size, d.MediaType, want.Size, want.MediaType)
	}
	var lists []digest.Digest
	for _, child := range want.Lists {
		lists = append(lists, child.Digest)
	}
	if !slices.Equal(d.Lists, lists) {
		s.Errorf("image %s lists %v, want %v", want.ID, d.Lists, lists)
	}
	f := s.facts(img)
	s.sameFacts(f, want)
	// The files come first: what they are taken from may depend on what else of a layer was read before.
	s.sameFiles(img, want)
	for n := range want.Layers {
		l := &want.Layers[n]
		lost := l.DiffErr
		if s.want.NoSparse && l.isSparse() {
			lost = imgsrc.ErrDamaged
		}
		got, err := s.whole(img.Diff(s.Context(), n))
		s.sameBytes(want, n, "tar", got, err, l.Diff, lost)
		got, err = s.whole(img.Blob(s.Context(), l.Digest))
		switch {
		case s.want.Blobs:
			s.sameBytes(want, n, "blob", got, err, l.Blob, l.BlobErr)
		case l.Digest == l.DiffID:
			s.sameBytes(want, n, "blob", got, err, l.Blob, lost)
		default:
			s.sameBytes(want, n, "blob", got, err, nil, imgsrc.ErrAbsent)
		}
	}
	if _, err := img.Diff(s.Context(), len(want.Layers)); !errors.Is(err, imgsrc.ErrAbsent) {
		s.Errorf("image %s: a layer more than it has is %v", want.ID, err)
	}
}

// sameBytes compares what came of a layer with what has to, which is an error if wantErr is one.
func (s *suite) sameBytes(img *Image, n int, what string, got []byte, err error, want []byte, wantErr error) {
	s.Helper()
	switch {
	case wantErr != nil:
		if kind := kindOf(wantErr); !errors.Is(err, kind) {
			s.Errorf("image %s, the %s of layer %d: %d bytes and the error %v, want %v", img.ID, what, n, len(got), err, wantErr)
		}
	case err != nil || !bytes.Equal(got, want):
		s.Errorf("image %s, the %s of layer %d: %d bytes %s, %v, want %d bytes %s", img.ID, what, n, len(got), digest.FromBytes(got), err, len(want), digest.FromBytes(want))
	}
}

// kindOf is the condition in an error.
func kindOf(err error) error {
	for _, kind := range []error{imgsrc.ErrDamaged, imgsrc.ErrAbsent, imgsrc.ErrUnsupported, imgsrc.ErrNotFound} {
		if errors.Is(err, kind) {
			return kind
		}
	}
	return err
}

// whole reads a content that was opened, in pieces, and closes it.
func (s *suite) whole(c imgsrc.Content, err error) ([]byte, error) {
	s.Helper()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err := c.Close(); err != nil {
			s.Errorf("closing: %v", err)
		}
	}()
	return ReadAll(s.Context(), c)
}

// sameFiles compares the entries of each layer, and then what they are when merged.
func (s *suite) sameFiles(img imgsrc.Image, want *Image) {
	s.Helper()
	var all []imgsrc.Files
	var indexes []*layer.Index
	sound := true
	for n := range want.Layers {
		l := &want.Layers[n]
		files, err := img.Files(s.Context(), n)
		if err != nil && l.TarErr != nil { // a source may know it from the beginning
			sound = false
			s.sameBytes(want, n, "list of files", nil, err, nil, l.TarErr)
			continue
		}
		if err != nil {
			s.Errorf("image %s, the files of layer %d: %v", want.ID, n, err)
			return
		}
		defer func() {
			if err := files.Close(); err != nil {
				s.Errorf("closing: %v", err)
			}
		}()
		if l.TarErr != nil {
			sound = false
			err := files.Entries(s.Context(), func(*imgsrc.File) error { return nil })
			s.sameBytes(want, n, "list of files", nil, err, nil, l.TarErr)
			continue
		}
		byTOC := s.want.TOC && len(l.Annotations) > 0
		if form := files.Key().Form; byTOC != (form == layer.TOCForm) {
			s.Errorf("image %s, layer %d: the files are of the form %q", want.ID, n, form)
		}
		if !byTOC { // a table of contents has another order, and only files
			s.compareFiles(files, l.entries)
		}
		x, err := layer.BuildIndex(s.Context(), files)
		if err != nil {
			s.Errorf("image %s, indexing layer %d: %v", want.ID, n, err)
			return
		}
		all, indexes = append(all, files), append(indexes, x)
	}
	if !sound || len(all) == 0 {
		return
	}
	t, err := layer.Merge(s.Context(), indexes)
	if err != nil {
		s.Errorf("image %s: %v", want.ID, err)
		return
	}
	got, rootfs := s.describeTree(t, all), merge(want.Layers).describe()
	for name, line := range rootfs {
		if got[name] != line {
			s.Errorf("image %s: %q in its root file system is\n%s\nwant\n%s", want.ID, name, got[name], line)
		}
	}
	for name, line := range got {
		if _, ok := rootfs[name]; !ok {
			s.Errorf("image %s: %q is in its root file system, and should not be: %s", want.ID, name, line)
		}
	}
}
