package ops

import (
	"context"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/docker"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/image/v5/types"

	"github.com/imgfs/imgfs/imgsrc"
)

// The copying library takes an image of an index, and fails if that is an index in turn. So it is given the one that has the image.

// maxNested is how deep an index of indexes is searched for the image of a platform. One in another is all that tools make.
const maxNested = 8

// A nested error is that what an index lists for the platform that is meant is another index; or, without a digest, that it lists
// other indexes beside images.
type nested struct{ digest digest.Digest }

func (e *nested) Error() string {
	return fmt.Sprintf("%s: an index that lists indexes, more than %d of them in each other", imgsrc.ErrUnsupported, maxNested)
}

func (e *nested) Unwrap() error { return imgsrc.ErrUnsupported }

// unnested returns the index, of those in an index, that lists the image for the mount's platform; what is none, or has none, as
// it is: the library says what is wrong with it.
func (o *Ops) unnested(ctx context.Context, p pushJob, from func(imgsrc.Held) *source) (imgsrc.Held, error) {
	held := p.held
	for range maxNested {
		src := from(held)
		text, mediaType, err := src.GetManifest(ctx, nil)
		if err != nil || !manifest.MIMETypeIsMultiImage(mediaType) {
			return held, err
		}
		list, err := manifest.ListFromBlob(text, mediaType)
		if err != nil {
			return held, nil //nolint:nilerr // see above
		}
		d, err := list.ChooseInstance(o.platform())
		if err != nil {
			return held, nil //nolint:nilerr // see above
		}
		_, mediaType, err = src.GetManifest(ctx, &d)
		if err != nil || !manifest.MIMETypeIsMultiImage(mediaType) {
			return held, nil //nolint:nilerr // see above
		}
		img, err := src.image(ctx, &d)
		if err != nil {
			return held, err
		}
		inner, ok := img.(imgsrc.Held)
		if !ok {
			inner = imgsrc.Held{Listed: imgsrc.Listed{Image: img}, Source: held.Source}
		}
		held = inner
	}
	return held, &nested{}
}

// pullNested pulls by a reference, and of an index that lists another for the platform that is meant by that one's digest.
func pullNested(ref types.ImageReference, named reference.Named, pull func(types.ImageReference) error) error {
	for range maxNested {
		err := pull(ref)
		var inner *nested
		if !errors.As(err, &inner) || inner.digest == "" {
			return err
		}
		digested, err := reference.WithDigest(reference.TrimNamed(named), inner.digest)
		if err != nil {
			return err
		}
		if ref, err = docker.NewReference(digested); err != nil {
			return err
		}
	}
	return &nested{}
}
