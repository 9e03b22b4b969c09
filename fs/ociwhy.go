package fs

import (
	"context"
	"errors"
	"fmt"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/export"
)

// errFollowed: the image is not in oci/ because nobody has asked for more than to see it.
var errFollowed = errors.New("it was only followed below registry/: a backup has what the mount's sources have")

// whyNot says why an image is not in oci/; nil if it is, or if that cannot be told. For this neither the images of an index are
// looked at nor the layers of schema 1 read.
func (t *ociTree) whyNot(ctx context.Context, s *standing) error {
	groups := t.f.groupsOf(s.e)
	if len(groups) == 0 {
		return errFollowed
	}
	var why error
	for _, g := range groups {
		for _, img := range g.held {
			if sketchOf(img) != nil {
				return nil // for this it is not read
			}
			facts := s.facts
			if img != s.e.First().Image {
				facts = nil
			}
			err := tryMake(ctx, img, facts)
			if err == nil || !export.IsLeftOut(err) {
				return nil
			}
			why = err
		}
	}
	return why
}

// tryMake looks whether an image can be put into OCI form. Its facts are loaded if they are nil.
func tryMake(ctx context.Context, img imgsrc.Image, facts *imgsrc.Facts) error {
	if facts == nil {
		var err error
		if facts, err = imgsrc.Load(ctx, img); err != nil {
			return err
		}
	}
	switch {
	case facts.ManifestErr == nil && facts.Kind == imgsrc.KindIndex:
		return nil
	case facts.ManifestErr == nil && facts.LacksDiffIDs() && isRemote(img):
		return farSchema1(facts)
	case facts.ManifestErr == nil && facts.LacksDiffIDs():
		for _, l := range facts.Layers {
			c, err := img.Blob(ctx, l.Digest)
			if err == nil {
				err = c.Close()
			}
			if err != nil && !errors.Is(err, imgsrc.ErrAbsent) {
				return err
			}
		}
		return nil
	}
	_, err := export.Convert(ctx, img, facts, nil)
	return err
}

func farSchema1(facts *imgsrc.Facts) error {
	return fmt.Errorf("image %s is of schema 1, and all its layers would have to be fetched to say what its config is: push it to where it is to be kept: %w", facts.ID, imgsrc.ErrUnsupported)
}
