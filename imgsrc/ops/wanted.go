package ops

import (
	"context"
	"encoding/json"
	"fmt"

	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/image"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/image/v5/signature"
	"go.podman.io/image/v5/types"

	"github.com/imgfs/imgfs/imgsrc"
)

// choose makes the library take a platform's image of an index.
func (o *Ops) choose(sys *types.SystemContext, platform *imgsrc.Platform) {
	if platform == nil {
		platform = &o.opt.Platform
	}
	sys.OSChoice, sys.ArchitectureChoice, sys.VariantChoice = platform.OS, platform.Architecture, platform.Variant
}

// askWhether asks whether an image could be pulled: for its manifest, whether the signature policy lets it in, whether it is for
// the only platform that is wanted, and whether it can be kept where it would go. all says that of an index all images would.
func (o *Ops) askWhether(ctx context.Context, ref types.ImageReference, sys *types.SystemContext, only *imgsrc.Platform, all bool, to Receiver) error {
	kept := func(text []byte, mediaType string) error {
		if isLayout(to) {
			return nil
		}
		return keepable(text, mediaType)
	}
	return o.withIndex(ctx, ref, sys, func(src types.ImageSource, policy *signature.PolicyContext, text []byte, mediaType string) error {
		if !manifest.MIMETypeIsMultiImage(mediaType) {
			if err := kept(text, mediaType); err != nil {
				return err
			}
			return isFor(ctx, src, sys, only)
		}
		list, err := manifest.ListFromBlob(text, mediaType)
		if err != nil {
			return fail(imgsrc.ErrDamaged, "reading the index: %s", err)
		}
		if _, apart := to.(indexReceiver); all && apart {
			images, _, err := instancesOf(ctx, src, list, to)
			for _, it := range images {
				if _, err := policy.IsRunningImageAllowed(ctx, image.UnparsedInstance(src, &it.digest)); err != nil {
					return err
				}
			}
			return err
		}
		instance, err := list.ChooseInstance(sys)
		if err != nil {
			return err
		}
		unparsed := image.UnparsedInstance(src, &instance)
		if _, err := policy.IsRunningImageAllowed(ctx, unparsed); err != nil {
			return err
		}
		if text, mediaType, err = unparsed.Manifest(ctx); err != nil {
			return err
		}
		if manifest.MIMETypeIsMultiImage(mediaType) {
			return &nested{instance}
		}
		return kept(text, mediaType)
	})
}

// An otherPlatform is the failure of a single image that is not for the platform that was asked for.
type otherPlatform struct{ is, wanted imgsrc.Platform }

func (e *otherPlatform) Error() string {
	return fmt.Sprintf("the image is for %s, and there is none for %s: leave platform= out", e.is, e.wanted)
}

func (e *otherPlatform) Unwrap() error { return imgsrc.ErrNotFound }

// isFor fails if a single image is for another platform than the wanted one. One that does not say for which it is, and what
// is no image, is for any; so is every image if none is wanted.
func isFor(ctx context.Context, src types.ImageSource, sys *types.SystemContext, wanted *imgsrc.Platform) error {
	if wanted == nil {
		return nil
	}
	img, err := image.FromUnparsedImage(ctx, sys, image.UnparsedInstance(src, nil))
	if err != nil {
		return err
	}
	config, err := img.OCIConfig(ctx)
	if isArtifact(err) {
		return nil
	}
	if err != nil {
		return err
	}
	return runsOn(&config.Platform, wanted)
}

func runsOn(is *imgspecv1.Platform, wanted *imgsrc.Platform) error {
	image := imgsrc.Platform{OS: is.OS, Architecture: is.Architecture, Variant: is.Variant}
	if wanted.Runs(image) {
		return nil
	}
	return &otherPlatform{image, *wanted}
}

// areFor is isFor for what is loaded, of which each must be for the platform. Of an index, it must have an image for it.
func (o *Ops) areFor(ctx context.Context, images []loadable, wanted *imgsrc.Platform) error {
	sys := new(types.SystemContext)
	o.choose(sys, wanted)
	for _, img := range images {
		switch {
		case wanted == nil, img.artifact:
			continue
		case img.Desc().Lists != nil:
			if _, err := o.platformOf(ctx, img.source(nil), img, sys); err != nil {
				return err
			}
			continue
		}
		facts, err := imgsrc.Load(ctx, img)
		if err != nil {
			return err
		}
		var config imgspecv1.Image
		if json.Unmarshal(facts.Config, &config) != nil {
			continue // whoever verifies it says what is wrong
		}
		if err := runsOn(&config.Platform, wanted); err != nil {
			return err
		}
	}
	return nil
}

// mayLoad asks whether images could be loaded, as far as the signature policy has a say.
func (o *Ops) mayLoad(ctx context.Context, images []loadable) error {
	for _, img := range images {
		if err := o.allowed(ctx, img.source(nil)); err != nil {
			return err
		}
	}
	return nil
}
