package layout

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/layer"
)

// An image is one manifest or index of the layout.
type image struct {
	source     *Source
	desc       imgsrc.Desc
	configSize *int64 // as the manifest says; nil if it does not
}

var _ imgsrc.Image = (*image)(nil)

func (m *image) Desc() imgsrc.Desc { return m.desc }

func (m *image) Manifest(ctx context.Context) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	b, _, err := m.source.readBlob(descriptor{digest: m.desc.Digest, size: m.desc.Size})
	if errors.Is(err, fs.ErrNotExist) && m.desc.Damaged == nil && !m.source.mentions(ctx, m.desc.Digest) {
		err = fmt.Errorf("%w: it was removed from the layout", imgsrc.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("reading manifest %s: %w", m.desc.Digest, err)
	}
	return b, nil
}

// mentions says whether index.json still names d.
func (s *Source) mentions(ctx context.Context, d digest.Digest) bool {
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
	d := descriptor{digest: m.desc.Config, size: -1}
	if m.configSize != nil {
		d.size = *m.configSize
	}
	b, _, err := m.source.readBlob(d)
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
	for _, l := range facts.Layers {
		if l.Digest != d {
			continue
		}
		if err := m.source.usable(l); err != nil {
			return nil, fmt.Errorf("opening blob %s: %w", d, err)
		}
		return &blob{source: m.source, digest: d, size: l.Size}, nil
	}
	return nil, fmt.Errorf("opening blob %s: %w: manifest %s has no such layer", d, imgsrc.ErrAbsent, m.desc.Digest)
}

// facts reads what the image says of itself. Errors: also that the manifest cannot be read.
func (m *image) facts(ctx context.Context) (*imgsrc.Facts, error) {
	if f := m.source.lastFacts.Load(); f != nil && f.Digest == m.desc.Digest && ctx.Err() == nil {
		if _, err := m.source.root.Lstat(blobPath(f.Digest)); err == nil {
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

// usable fails for a layer whose bytes cannot be had here: with imgsrc.ErrAbsent for one that layouts need not hold,
// with imgsrc.ErrUnsupported for a digest that cannot be checked.
func (s *Source) usable(l imgsrc.LayerFacts) error {
	if err := l.Digest.Validate(); err != nil {
		return fmt.Errorf("%w: %w", imgsrc.ErrUnsupported, err)
	}
	if !strings.Contains(l.MediaType, ".nondistributable.") && !strings.Contains(l.MediaType, ".foreign.") {
		return nil
	}
	if _, err := s.root.Stat(blobPath(l.Digest)); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: a layer of type %s, which is not in the layout", imgsrc.ErrAbsent, l.MediaType)
	}
	return nil
}

// layerTypes are how the media types of layers begin. What follows is the compression, which is told by the bytes.
var layerTypes = []string{
	v1.MediaTypeImageLayer,
	"application/vnd.oci.image.layer.nondistributable.v1.tar",
	"application/vnd.docker.image.rootfs.diff.tar",
	"application/vnd.docker.image.rootfs.foreign.diff.tar",
}

// checkLayerType fails with imgsrc.ErrUnsupported if a layer of this media type is not a tar.
func checkLayerType(mediaType string) error {
	if strings.HasSuffix(mediaType, "+encrypted") {
		return fmt.Errorf("%w: the layer is encrypted", imgsrc.ErrUnsupported)
	}
	for _, t := range layerTypes {
		if strings.HasPrefix(mediaType, t) {
			return nil
		}
	}
	if mediaType == "" { // schema 1
		return nil
	}
	return fmt.Errorf("%w: a layer of type %q", imgsrc.ErrUnsupported, mediaType)
}

func (m *image) Diff(ctx context.Context, n int) (imgsrc.Content, error) {
	c, err := m.diff(ctx, n)
	if err != nil {
		return nil, fmt.Errorf("opening layer %d of %s: %w", n, m.desc.Digest, err)
	}
	return c, nil
}

func (m *image) diff(ctx context.Context, n int) (imgsrc.Content, error) {
	facts, err := m.facts(ctx)
	switch {
	case err != nil:
		return nil, err
	case facts.Kind != imgsrc.KindImage:
		return nil, fmt.Errorf("%w: an %s has no layers", imgsrc.ErrAbsent, facts.Kind)
	case n < 0 || n >= len(facts.Layers):
		return nil, fmt.Errorf("%w: there are %d", imgsrc.ErrAbsent, len(facts.Layers))
	}
	l := facts.Layers[n]
	if err := checkLayerType(l.MediaType); err != nil {
		return nil, err
	}
	if _, err := imgsrc.LayerDiffID(facts, n); err != nil && !errors.Is(err, imgsrc.ErrAbsent) {
		return nil, err // which bytes these should be is not known
	}
	s := m.source
	if err := s.usable(l); err != nil {
		return nil, err
	}
	if err := l.DiffID.Validate(); l.DiffID != "" && err != nil {
		return nil, fmt.Errorf("%w: diff id %q: %w", imgsrc.ErrUnsupported, l.DiffID, err)
	}
	kind, err := s.compression(l)
	if err != nil {
		return nil, err
	}
	if kind == layer.None {
		switch {
		case l.DiffID == "" || l.DiffID == l.Digest:
			return &blob{source: s, digest: l.Digest, size: l.Size}, nil
		case l.DiffID.Algorithm() == l.Digest.Algorithm():
			return nil, fmt.Errorf("%w: %s is not compressed, and its diff id is another, %s", imgsrc.ErrDamaged, l.Digest, l.DiffID)
		}
	}
	if s.cache == nil {
		return nil, fmt.Errorf("%w: a layer with %s compression, without a cache", imgsrc.ErrUnsupported, kind)
	}
	return s.cache.Diff(l.Digest, l.DiffID, func(context.Context) (io.ReadCloser, error) {
		f, _, err := s.openBlob(l.Digest, l.Size)
		return f, err
	}), nil
}

// Files implements imgsrc.Image: the entries of the tar that Diff opens.
func (m *image) Files(ctx context.Context, n int) (imgsrc.Files, error) {
	c, err := m.Diff(ctx, n)
	if err != nil {
		return nil, err
	}
	facts, err := m.facts(ctx)
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	key := imgsrc.FilesKey{Form: layer.TarForm, Digest: facts.Layers[n].DiffID}
	if key.Digest == "" {
		key.Digest = facts.Layers[n].Digest
	}
	l := facts.Layers[n]
	return layer.TarFiles(c, key, func(context.Context) (io.ReadCloser, error) {
		f, _, err := m.source.openBlob(l.Digest, l.Size)
		return f, err
	}), nil
}

// compression tells a layer's compression from its first bytes.
func (s *Source) compression(l imgsrc.LayerFacts) (layer.Compression, error) {
	f, _, err := s.openBlob(l.Digest, l.Size)
	if err != nil {
		return "", err
	}
	defer f.Close()
	head := make([]byte, layer.HeadLen)
	n, err := io.ReadFull(f, head)
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return "", fmt.Errorf("reading %s: %w", blobPath(l.Digest), err)
	}
	return layer.Detect(head[:n]), nil
}
