package ops

import (
	"context"
	"errors"
	"strings"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/types"
)

// What follows is what the library asks of a source as a reference, and of any source.

func (s *source) Reference() types.ImageReference { return s }
func (s *source) Close() error                    { return nil }
func (s *source) HasThreadSafeGetBlob() bool      { return true }

// GetSignatures returns none: sources have no way to offer them.
func (s *source) GetSignatures(context.Context, *digest.Digest) ([][]byte, error) { return nil, nil }

// Transport is the transport of the image's own source, so that the signature policy for it applies.
func (s *source) Transport() types.ImageTransport {
	name, _, _ := strings.Cut(s.held.Source.Name(), ":")
	return transport(name)
}

// StringWithinTransport names the source and the image's digest; it is for texts.
func (s *source) StringWithinTransport() string {
	_, place, _ := strings.Cut(s.held.Source.Name(), ":")
	return place + "@" + s.held.Desc().Digest.String()
}

func (s *source) DockerReference() reference.Named { return nil }

func (s *source) NewImageSource(context.Context, *types.SystemContext) (types.ImageSource, error) {
	return s, nil
}

var errOnlySource = errors.New("an image of the catalog is only copied from")

func (s *source) NewImage(context.Context, *types.SystemContext) (types.ImageCloser, error) {
	return nil, errOnlySource
}

func (s *source) NewImageDestination(context.Context, *types.SystemContext) (types.ImageDestination, error) {
	return nil, errOnlySource
}

func (s *source) DeleteImage(context.Context, *types.SystemContext) error { return errOnlySource }

// transport is the name of a source's transport.
type transport string

func (t transport) Name() string { return string(t) }
func (t transport) ParseReference(string) (types.ImageReference, error) {
	return nil, errOnlySource
}
func (t transport) ValidatePolicyConfigurationScope(string) error { return nil }
