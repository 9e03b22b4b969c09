package blobs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
)

// An Image is one manifest whose blobs are in a store.
type Image struct {
	store *Store
	desc  imgsrc.Desc
	from  Manifest
	// configSize is the manifest's word for it; -1 if it has none.
	configSize int64
}

// A Manifest is where an image's manifest comes from.
type Manifest struct {
	// Bytes returns the verified bytes. Error: imgsrc.ErrNotFound if the image has been removed since it was listed.
	Bytes func(ctx context.Context) ([]byte, error)
	// Here says whether it is there, at the price of a stat(2).
	Here func() bool
	// Original returns the verified bytes of the manifest that this one was made from. Nil: it was made from none.
	Original func(ctx context.Context) ([]byte, error)
}

var (
	_ imgsrc.Converted = (*Image)(nil)
	_ imgsrc.Peeker    = (*Image)(nil)
)

// NewImage returns the image of a manifest that was described by imgsrc.Describe.
func NewImage(s *Store, desc imgsrc.Desc, configSize int64, from Manifest) *Image {
	return &Image{store: s, desc: desc, configSize: configSize, from: from}
}

// Desc implements [imgsrc.Image].
func (m *Image) Desc() imgsrc.Desc { return m.desc }

// Manifest implements [imgsrc.Image].
func (m *Image) Manifest(ctx context.Context) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	b, err := m.from.Bytes(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading manifest %s: %w", m.desc.Digest, err)
	}
	return b, nil
}

// Original implements [imgsrc.Converted].
func (m *Image) Original(ctx context.Context) ([]byte, error) {
	if m.from.Original == nil {
		return nil, fmt.Errorf("manifest %s was made from no other: %w", m.desc.Digest, imgsrc.ErrAbsent)
	}
	b, err := m.from.Original(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading the manifest that %s was made from: %w", m.desc.Digest, err)
	}
	return b, nil
}

// Config implements [imgsrc.Image].
func (m *Image) Config(ctx context.Context) ([]byte, error) {
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case m.desc.Config == "" && m.desc.Damaged != nil:
		return nil, m.desc.Damaged
	case m.desc.Config == "":
		return nil, fmt.Errorf("reading config of %s: %w: the manifest names none", m.desc.Digest, imgsrc.ErrAbsent)
	}
	b, _, err := m.store.Read(m.desc.Config, m.configSize)
	if errors.Is(err, fs.ErrNotExist) {
		if _, gone := m.Manifest(ctx); errors.Is(gone, imgsrc.ErrNotFound) {
			err = gone
		}
	}
	if err != nil {
		return nil, fmt.Errorf("reading config %s: %w", m.desc.Config, err)
	}
	return b, nil
}

// Blob implements [imgsrc.Image].
func (m *Image) Blob(ctx context.Context, d digest.Digest) (imgsrc.Content, error) {
	f, err := m.known(ctx)
	var c imgsrc.Content
	if err == nil {
		c, err = m.store.Blob(f, d)
	}
	if err != nil {
		return nil, fmt.Errorf("opening blob %s: %w", d, err)
	}
	return c, nil
}

// Diff implements [imgsrc.Image].
func (m *Image) Diff(ctx context.Context, n int) (imgsrc.Content, error) {
	return openLayer(ctx, m, n, m.store.Diff)
}

// Files implements [imgsrc.Image].
func (m *Image) Files(ctx context.Context, n int) (imgsrc.Files, error) {
	return openLayer(ctx, m, n, m.store.Files)
}

// Peek implements [imgsrc.Peeker].
func (m *Image) Peek(ctx context.Context, n int, p []byte) (int, error) {
	return openLayer(ctx, m, n, func(f *imgsrc.Facts, n int) (int, error) {
		if n < 0 || n >= len(f.Layers) {
			return 0, fmt.Errorf("%w: there are %d", imgsrc.ErrAbsent, len(f.Layers))
		}
		if err := m.store.usable(f.Layers[n]); err != nil {
			return 0, err
		}
		return m.store.peek(f.Layers[n], p)
	})
}

// openLayer opens layer n of an image in one of its forms.
func openLayer[T any](ctx context.Context, m *Image, n int, open func(*imgsrc.Facts, int) (T, error)) (T, error) {
	f, err := m.known(ctx)
	var opened T
	if err == nil {
		opened, err = open(f, n)
	}
	if err != nil {
		return opened, fmt.Errorf("opening layer %d of %s: %w", n, m.desc.Digest, err)
	}
	return opened, nil
}

// known returns what the image says of itself. Errors: also that the manifest cannot be read.
func (m *Image) known(ctx context.Context) (*imgsrc.Facts, error) {
	if f := m.store.lastFacts.Load(); f != nil && f.Digest == m.desc.Digest && ctx.Err() == nil && m.from.Here() {
		return f, nil
	}
	f, err := imgsrc.Load(ctx, m)
	if err != nil {
		return nil, err
	}
	if f.ManifestErr == nil && (f.ConfigErr == nil || errors.Is(f.ConfigErr, imgsrc.ErrAbsent)) {
		m.store.lastFacts.Store(f) // whoever opens one layer opens the others too
	}
	return f, f.ManifestErr
}
