package ops

import (
	"context"
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/signature"
	"go.podman.io/image/v5/signature/sigstore"
	"go.podman.io/image/v5/types"

	"github.com/imgfs/imgfs/imgsrc"
)

// A signer is what a push is signed with, one of the two.
type signer struct {
	key  string // of gpg, for a simple signature
	file string // a sigstore private key without a passphrase
}

// sigstorePrefix begins a sign-by= that names a file.
const sigstorePrefix = "sigstore:"

func parseSigner(value string, resolve pathResolver) (*signer, error) {
	if path, ok := strings.CutPrefix(value, sigstorePrefix); ok {
		file, err := resolve.file(path)
		return &signer{file: file}, err
	}
	if value == "" {
		return nil, fail(imgsrc.ErrInvalid, "sign-by= names no key: write one that gpg has, or %sPATH", sigstorePrefix)
	}
	return &signer{key: value}, nil
}

// check fails if the destination keeps no signatures, or not of a push like this one.
func (s *signer) check(p *pushLine) error {
	kind := p.dest.kind()
	switch {
	case !kind.signs:
		return fail(imgsrc.ErrUnsupported, "sign-by=: %s keeps no signatures; %s and %s do", kind.name, registryKind.name, dirKind.name)
	case s.file != "" && (p.plain || kind.preserves && p.compression != nil): // the library's own form of them does not get through
		return fail(imgsrc.ErrUnsupported, "sign-by=%sPATH cannot be had together with compression= here: push without one of the two", sigstorePrefix)
	}
	return nil
}

// identity is the reference that a signature is for: the destination's, or where that is none the image's first full name.
func (p *pushJob) identity() (reference.Named, error) {
	if d, ok := p.line.dest.(*registry); ok {
		return d.named, nil
	}
	for _, name := range append(p.entry.Names, p.entry.RemoteNames...) {
		if named, err := reference.ParseNormalizedNamed(name); err == nil && named.String() == name && !reference.IsNameOnly(named) {
			return named, nil
		}
	}
	return nil, fail(imgsrc.ErrInvalid, "sign-by=: %s has no reference to sign, and neither has the image: tag it first", p.line.dest)
}

// sign makes a copying one that signs.
func (s *signer) sign(ctx context.Context, c *copying, p pushJob) error {
	identity, err := p.identity()
	if err != nil {
		return err
	}
	if d, ok := p.line.dest.(*registry); ok {
		if err := s.mayKeep(c.options.DestinationCtx, d.ref); err != nil {
			return err
		}
	}
	if s.file != "" {
		if err := checkSigstore(s.file); err != nil {
			return err
		}
		c.options.SignBySigstorePrivateKeyFile, c.options.SignSigstorePrivateKeyPassphrase = s.file, []byte{}
		c.options.SignIdentity = identity
		return nil
	}
	mechanism, err := newGPG(ctx, s.key)
	if err != nil {
		return err
	}
	c.to = &signed{c.to, func(manifest []byte) ([]byte, error) {
		return signature.SignDockerManifest(manifest, identity.String(), mechanism, s.key)
	}}
	return nil
}

// checkSigstore fails if a file has no key that can be used.
func checkSigstore(file string) error {
	signs, err := sigstore.NewSigner(sigstore.WithPrivateKeyFile(file, []byte{}))
	switch {
	case err == nil:
		return signs.Close()
	case strings.Contains(err.Error(), "decrypt"):
		return fail(imgsrc.ErrDenied, "signing with %s: the key has a passphrase, and nobody can be asked for it here: make one without", quote(file))
	}
	return fmt.Errorf("signing with %s: %w", quote(file), err)
}

// signed is a destination that gets a simple signature with each manifest
// (https://github.com/containers/image/blob/main/docs/containers-signature.5.md).
type signed struct {
	types.ImageReference
	sign func(manifest []byte) (signature []byte, err error)
}

func (s *signed) NewImageDestination(ctx context.Context, sys *types.SystemContext) (types.ImageDestination, error) {
	dest, err := s.ImageReference.NewImageDestination(ctx, sys)
	if err != nil {
		return nil, err
	}
	if err := dest.SupportsSignatures(ctx); err != nil {
		_ = dest.Close()
		return nil, fail(imgsrc.ErrUnsupported, "sign-by=: %s", err)
	}
	return &signedDestination{dest, s}, nil
}

type signedDestination struct {
	types.ImageDestination
	*signed
}

func (d *signedDestination) Reference() types.ImageReference { return d.ImageDestination.Reference() }

// PutManifest signs before anything is stored, so that nothing is stored that could not be signed.
func (d *signedDestination) PutManifest(ctx context.Context, manifest []byte, instance *digest.Digest) error {
	text, err := d.sign(manifest)
	if err != nil {
		return err
	}
	if err := d.ImageDestination.PutManifest(ctx, manifest, instance); err != nil {
		return err
	}
	return d.ImageDestination.PutSignatures(ctx, [][]byte{text}, instance)
}

// PutSignatures is called by the library with those of the source, of which there are none.
func (d *signedDestination) PutSignatures(context.Context, [][]byte, *digest.Digest) error {
	return nil
}
