package ops

import (
	"context"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/image"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/image/v5/types"
)

// simpleSigning is the format of signatures that every destination of the library can be given.
const simpleSigning = "simple-signing"

// otherSignatures says whether an image, or the one that is chosen of an index, has signatures of another format. A
// destination that is not the library's own cannot be given those: a copy would end with the last step but one. What has
// been seen of the one that is chosen is left to plans.
func otherSignatures(ctx context.Context, ref types.ImageReference, sys *types.SystemContext, plans *planner) (bool, error) {
	src, err := ref.NewImageSource(ctx, sys)
	if err != nil {
		return false, err
	}
	defer func() { _ = src.Close() }()
	look := func(instance *digest.Digest) (other bool, text []byte, mediaType string, err error) {
		img := image.UnparsedInstance(src, instance)
		if text, mediaType, err = img.Manifest(ctx); err != nil {
			return false, nil, "", err
		}
		signatures, err := img.UntrustedSignatures(ctx)
		for _, s := range signatures {
			other = other || string(s.FormatID()) != simpleSigning
		}
		return other, text, mediaType, err
	}
	other, text, mediaType, err := look(nil)
	if err != nil || other || !manifest.MIMETypeIsMultiImage(mediaType) {
		return other, err
	}
	list, err := manifest.ListFromBlob(text, mediaType)
	if err != nil {
		return false, err
	}
	instance, err := list.ChooseInstance(sys)
	if err != nil {
		return false, err
	}
	other, text, mediaType, err = look(&instance)
	if err == nil {
		plans.remember(instance, planOf(text, mediaType))
	}
	return other, err
}
