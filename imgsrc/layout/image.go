package layout

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
)

// An image is one manifest or index of the layout.
type image struct {
	source     *images
	desc       imgsrc.Desc
	configSize int64 // as the manifest says; -1 if it does not
}

var _ imgsrc.Image = (*image)(nil)

func (m *image) Desc() imgsrc.Desc { return m.desc }

func (m *image) Manifest(ctx context.Context) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	b, _, err := m.source.store.Read(m.desc.Digest, m.desc.Size)
	if errors.Is(err, fs.ErrNotExist) && m.desc.Damaged == nil && !m.source.mentions(ctx, m.desc.Digest) {
		err = fmt.Errorf("%w: it was removed from the layout", imgsrc.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("reading manifest %s: %w", m.desc.Digest, err)
	}
	return b, nil
}

// mentions says whether index.json still names d.
func (s *images) mentions(ctx context.Context, d digest.Digest) bool {
	ix, err := s.readIndex(ctx)
	return err == nil && bytes.Contains(ix.raw, []byte(d))
}

func (m *image) Config(ctx context.Context) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if m.desc.Config == "" {
		if m.desc.Damaged != nil {
			return nil, m.desc.Damaged
		}
		return nil, fmt.Errorf("reading config of %s: %w: the manifest names none", m.desc.Digest, imgsrc.ErrAbsent)
	}
	b, _, err := m.source.store.Read(m.desc.Config, m.configSize)
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

func (m *image) Blob(ctx context.Context, d digest.Digest) (imgsrc.Content, error) {
	facts, err := m.facts(ctx)
	if err != nil {
		return nil, fmt.Errorf("opening blob %s: %w", d, err)
	}
	c, err := m.source.store.Blob(facts, d)
	if err != nil {
		return nil, fmt.Errorf("opening blob %s: %w", d, err)
	}
	return c, nil
}

// facts reads what the image says of itself. Errors: also that the manifest cannot be read.
func (m *image) facts(ctx context.Context) (*imgsrc.Facts, error) {
	if f := m.source.lastFacts.Load(); f != nil && f.Digest == m.desc.Digest && ctx.Err() == nil {
		if _, err := m.source.store.Dir.Stat(blobPath(f.Digest)); err == nil {
			return f, nil
		}
	}
	facts, err := imgsrc.Load(ctx, m)
	if err != nil {
		return nil, err
	}
	if facts.ManifestErr == nil && (facts.ConfigErr == nil || errors.Is(facts.ConfigErr, imgsrc.ErrAbsent)) {
		m.source.lastFacts.Store(facts) // whoever opens one layer opens the others too
	}
	return facts, facts.ManifestErr
}

func (m *image) Diff(ctx context.Context, n int) (imgsrc.Content, error) {
	return openLayer(ctx, m, n, m.source.store.Diff)
}

func (m *image) Files(ctx context.Context, n int) (imgsrc.Files, error) {
	return openLayer(ctx, m, n, m.source.store.Files)
}

// openLayer opens layer n of an image in one of its forms.
func openLayer[T any](ctx context.Context, m *image, n int, open func(*imgsrc.Facts, int) (T, error)) (T, error) {
	facts, err := m.facts(ctx)
	var opened T
	if err == nil {
		opened, err = open(facts, n)
	}
	if err != nil {
		return opened, fmt.Errorf("opening layer %d of %s: %w", n, m.desc.Digest, err)
	}
	return opened, nil
}
