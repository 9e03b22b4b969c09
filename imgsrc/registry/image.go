package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/flight"
	"github.com/imgfs/imgfs/imgsrc/layer"
)

// An image is one manifest or index of the registry.
type image struct {
	source     *Source
	repo       string // one that has it
	desc       imgsrc.Desc
	configSize *int64                              // as the manifest says; nil if it does not
	layers     atomic.Pointer[[]imgsrc.LayerFacts] // as the manifest says, with their diff ids once the config was read
	whole      atomic.Bool                         // it was
}

var _ imgsrc.Image = (*image)(nil)

func (m *image) Desc() imgsrc.Desc { return m.desc }

var errOffline = fmt.Errorf("it is not in the cache, and the mount is offline: %w", syscall.EHOSTUNREACH)

func (m *image) Manifest(ctx context.Context) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s, d := m.source, m.desc.Digest
	if d.Validate() == nil {
		if b := s.docs.get(d); b != nil {
			return b, nil
		}
	}
	doc, err := inTime(ctx, s, flightKey{"manifest in time from " + m.repo, d}, func(ctx context.Context) (Document, error) {
		return s.manifest(ctx, m.repo, d)
	})
	if err != nil {
		return nil, fmt.Errorf("reading manifest %s: %w", d, err)
	}
	return doc.Bytes, nil
}

// manifest returns a manifest from the cache, or else from the registry.
func (s *Source) manifest(ctx context.Context, repo string, d digest.Digest) (Document, error) {
	if err := d.Validate(); err != nil {
		return Document{}, fmt.Errorf("%w: digest %q: %w", imgsrc.ErrUnsupported, d, err)
	}
	if b := s.docs.get(d); b != nil {
		return Document{Digest: d, Size: int64(len(b)), Bytes: b}, nil
	}
	if s.offline {
		return Document{}, errOffline
	}
	return flight.Do(ctx, s.flights, flightKey{"manifest from " + repo, d}, func(ctx context.Context) (Document, error) {
		doc, err := s.client.Manifest(ctx, repo, d.String())
		if err == nil {
			s.docs.put(d, doc.Bytes)
		}
		return doc, err
	})
}

func (m *image) Config(ctx context.Context) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	d := m.desc.Config
	if d == "" {
		if m.desc.Damaged != nil {
			return nil, m.desc.Damaged
		}
		return nil, fmt.Errorf("reading config of %s: %w: the manifest names none", m.desc.Digest, imgsrc.ErrAbsent)
	}
	b, err := m.config(ctx, d)
	if err != nil {
		return nil, fmt.Errorf("reading config %s: %w", d, err)
	}
	return b, nil
}

// configKey is that of reading the config, which fails for one image and not for another that has it too.
func (m *image) configKey() flightKey {
	return flightKey{"config of " + m.repo + "@" + m.desc.Digest.String(), m.desc.Config}
}

func (m *image) config(ctx context.Context, d digest.Digest) ([]byte, error) {
	s := m.source
	b := s.docs.get(d)
	if b == nil && s.offline {
		return nil, errOffline
	}
	if b == nil {
		var err error
		b, err = inTime(ctx, s, m.configKey(), func(ctx context.Context) ([]byte, error) {
			b, err := s.fetchConfig(ctx, m.repo, d)
			if err != nil {
				return nil, m.gone(ctx, err)
			}
			s.docs.put(d, b)
			return b, nil
		})
		if err != nil {
			return nil, err
		}
	}
	if m.configSize != nil && *m.configSize != int64(len(b)) {
		return nil, fmt.Errorf("%w: it has %d bytes, and its descriptor says %d", imgsrc.ErrDamaged, len(b), *m.configSize)
	}
	return b, nil
}

// fetchConfig asks the mirrors too, and the registry itself if what they send is wrong.
func (s *Source) fetchConfig(ctx context.Context, repo string, d digest.Digest) ([]byte, error) {
	b, err := s.fetchDocument(ctx, repo, d, false)
	if errors.Is(err, imgsrc.ErrDamaged) && s.client.hasMirrors(repo, d) {
		return s.fetchDocument(ctx, repo, d, true)
	}
	return b, err
}

func (s *Source) fetchDocument(ctx context.Context, repo string, d digest.Digest, direct bool) ([]byte, error) {
	r := s.client.newBody(ctx, repo, d, 0, -1, direct)
	r.came = cameIn(ctx)
	defer r.Close()
	if err := r.connect(); err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(r, imgsrc.MaxManifest+1))
	switch {
	case err != nil:
		return nil, err
	case len(b) > imgsrc.MaxManifest:
		return nil, fmt.Errorf("%w: more than %d bytes", imgsrc.ErrDamaged, imgsrc.MaxManifest)
	}
	if got := d.Algorithm().FromBytes(b); got != d {
		return nil, fmt.Errorf("%w: the bytes from the registry are %s", imgsrc.ErrDamaged, got)
	}
	return b, nil
}

// gone makes of a blob that the registry does not have what that means: the image was removed, or it is not whole.
func (m *image) gone(ctx context.Context, err error) error {
	if !errors.Is(err, imgsrc.ErrNotFound) {
		return err
	}
	if _, removed := m.source.client.Head(ctx, m.repo, m.desc.Digest.String()); errors.Is(removed, imgsrc.ErrNotFound) {
		return fmt.Errorf("the image was removed from the registry: %w", removed)
	}
	return fmt.Errorf("%w: the registry does not have it: %s", imgsrc.ErrDamaged, err.Error()) // not ErrNotFound: the image is there
}

func (m *image) Blob(ctx context.Context, d digest.Digest) (imgsrc.Content, error) {
	layers, err := m.byManifest(ctx)
	if err != nil {
		return nil, fmt.Errorf("opening blob %s: %w", d, err)
	}
	for _, l := range layers {
		if l.Digest != d {
			continue
		}
		if err := m.usable(ctx, l); err != nil {
			return nil, fmt.Errorf("opening blob %s: %w", d, err)
		}
		return newContent(m, l), nil
	}
	return nil, fmt.Errorf("opening blob %s: %w: manifest %s has no such layer", d, imgsrc.ErrAbsent, m.desc.Digest)
}

// byManifest is what the manifest says of the layers, for which no config is waited.
func (m *image) byManifest(ctx context.Context) ([]imgsrc.LayerFacts, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if l := m.layers.Load(); l != nil {
		return *l, nil
	}
	facts, err := m.facts(ctx)
	if err != nil {
		return nil, err
	}
	return facts.Layers, nil
}

// facts reads what the image says of itself. Errors: also that the manifest cannot be read.
func (m *image) facts(ctx context.Context) (*imgsrc.Facts, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if f := m.source.lastFacts.Load(); f != nil && f.Digest == m.desc.Digest {
		return f, nil
	}
	facts, err := imgsrc.Load(ctx, m)
	if err != nil {
		return nil, err
	}
	if m.keep(facts) {
		m.source.lastFacts.Store(facts) // whoever opens one layer opens the others too
	}
	return facts, facts.ManifestErr
}

// keep keeps what facts say of the layers, unless something of them could not be read.
func (m *image) keep(facts *imgsrc.Facts) bool {
	if facts.ManifestErr != nil || facts.ConfigErr != nil && !errors.Is(facts.ConfigErr, imgsrc.ErrAbsent) {
		return false
	}
	m.layers.Store(&facts.Layers)
	m.whole.Store(true)
	return true
}

// usable fails for a layer whose bytes cannot be had: with imgsrc.ErrAbsent for one that registries need not hold and
// this one does not, with imgsrc.ErrUnsupported for a digest that cannot be checked.
func (m *image) usable(ctx context.Context, l imgsrc.LayerFacts) error {
	if err := l.Digest.Validate(); err != nil {
		return fmt.Errorf("%w: %w", imgsrc.ErrUnsupported, err)
	}
	if !isForeign(l) || m.source.blobs.hasBlob(l.Digest) {
		return nil
	}
	there, err := m.source.hasForeign(ctx, m.repo, l.Digest)
	if err == nil && !there {
		err = fmt.Errorf("%w: a layer of type %s, which is not in the registry", imgsrc.ErrAbsent, l.MediaType)
	}
	return err
}

// isForeign says whether registries need not hold a layer.
func isForeign(l imgsrc.LayerFacts) bool {
	return strings.Contains(l.MediaType, ".nondistributable.") || strings.Contains(l.MediaType, ".foreign.")
}

// hasForeign says whether the registry has a layer that it need not have. It is asked now and then.
func (s *Source) hasForeign(ctx context.Context, repo string, d digest.Digest) (bool, error) {
	type answer struct {
		there bool
		at    time.Time
	}
	key := flightKey{"has " + repo, d}
	if a, ok := s.foreign.Load(key); ok && time.Since(a.(answer).at) < s.every {
		return a.(answer).there, nil
	}
	if s.offline {
		return false, errOffline
	}
	return flight.Do(ctx, s.flights, key, func(ctx context.Context) (bool, error) {
		_, err := s.client.BlobRange(ctx, repo, d, 0, 1)
		if err != nil && !errors.Is(err, imgsrc.ErrNotFound) {
			return false, err
		}
		s.foreign.Store(key, answer{err == nil, time.Now()})
		return err == nil, nil
	})
}

// Diff asks nobody for the layer's bytes: the first Size or ReadAt does, unless they are in the cache.
func (m *image) Diff(ctx context.Context, n int) (imgsrc.Content, error) {
	l, err := m.layer(ctx, n)
	if err != nil {
		return nil, fmt.Errorf("opening layer %d of %s: %w", n, m.desc.Digest, err)
	}
	return m.diff(l), nil
}

func (m *image) diff(l imgsrc.LayerFacts) imgsrc.Content {
	if l.DiffID == l.Digest { // it is not compressed
		return newContent(m, l)
	}
	return m.source.cache.Diff(l.Digest, l.DiffID, func(ctx context.Context) (io.ReadCloser, error) { return m.stream(ctx, l) })
}

// layer returns what is known of layer n, if it can be read as a tar.
func (m *image) layer(ctx context.Context, n int) (l imgsrc.LayerFacts, err error) {
	facts, err := m.facts(ctx)
	switch {
	case err != nil:
		return l, err
	case facts.Kind != imgsrc.KindImage:
		return l, fmt.Errorf("%w: an %s has no layers", imgsrc.ErrAbsent, facts.Kind)
	case n < 0 || n >= len(facts.Layers):
		return l, fmt.Errorf("%w: there are %d", imgsrc.ErrAbsent, len(facts.Layers))
	}
	l = facts.Layers[n]
	if err := layer.CheckMediaType(l.MediaType); err != nil {
		return l, err
	}
	if _, err := imgsrc.LayerDiffID(facts, n); err != nil && !errors.Is(err, imgsrc.ErrAbsent) {
		return l, err // which bytes these should be is not known
	}
	if err := l.DiffID.Validate(); l.DiffID != "" && err != nil {
		return l, fmt.Errorf("%w: diff id %q: %w", imgsrc.ErrUnsupported, l.DiffID, err)
	}
	if err := m.usable(ctx, l); err != nil {
		return l, err
	}
	if m.source.cache == nil && l.DiffID != l.Digest {
		return l, fmt.Errorf("%w: a compressed layer without a cache", imgsrc.ErrUnsupported)
	}
	return l, nil
}

// Files implements imgsrc.Image: the entries of the tar that Diff opens, or those of a table of contents.
func (m *image) Files(ctx context.Context, n int) (imgsrc.Files, error) {
	l, err := m.layer(ctx, n)
	if err != nil {
		return nil, fmt.Errorf("opening layer %d of %s: %w", n, m.desc.Digest, err)
	}
	key := imgsrc.FilesKey{Form: layer.TarForm, Digest: l.DiffID}
	if key.Digest == "" {
		key.Digest = l.Digest
	}
	whole := &layerFiles{Files: layer.TarFiles(m.diff(l), key, nil), image: m, layer: l}
	if z := m.source.lazy(m.repo, l); z != nil {
		return &lazyFiles{image: m, lazy: z, tar: whole}, nil
	}
	return whole, nil
}

// layerFiles are the entries of the tar that Diff opens, of which the first can be had without all of it.
type layerFiles struct {
	imgsrc.Files
	image *image
	layer imgsrc.LayerFacts
}

// beginnings are how many bytes of a layer are asked for to find its first entry, one after the other.
var beginnings = []int64{16 << 10, 256 << 10}

// Root asks the registry for the layer's beginning, which is not verified, unless the layer is in the cache.
func (f *layerFiles) Root(ctx context.Context) (*imgsrc.File, error) {
	m, s := f.image, f.image.source
	if s.blobs.hasBlob(f.layer.Digest) || s.blobs.hasDiff(f.layer) || s.offline {
		return f.Files.Root(ctx)
	}
	for _, n := range beginnings {
		if n >= f.layer.Size {
			break
		}
		b, err := flight.Do(ctx, s.flights, flightKey{fmt.Sprint("the first ", n, " in ", m.repo), f.layer.Digest}, func(ctx context.Context) ([]byte, error) {
			return s.client.BlobRange(ctx, m.repo, f.layer.Digest, 0, n)
		})
		if err != nil {
			return nil, m.gone(ctx, err)
		}
		if root, ok := rootOf(b); ok {
			return root, nil
		}
	}
	return f.Files.Root(ctx)
}

// rootOf looks for the first entry in the beginning of a layer.
func rootOf(b []byte) (root *imgsrc.File, ok bool) {
	plain, _, err := layer.Decompress(bytes.NewReader(b))
	if err != nil {
		return nil, false
	}
	defer plain.Close()
	found := false
	root, err = layer.RootOf(func(emit func(*imgsrc.File) error) error {
		return layer.ScanTar(plain, func(f *imgsrc.File) error {
			found = true
			return emit(f)
		})
	})
	return root, err == nil && found
}

// Fetched is how many bytes of the image's manifest, config and layers have come from the registry since the source was
// opened. What it shares with other images counts for each of them.
func (m *image) Fetched() int64 {
	seen := map[digest.Digest]bool{"": true}
	var n int64
	add := func(d digest.Digest) {
		if !seen[d] {
			seen[d] = true
			n += m.source.fetchedOf(d)
		}
	}
	add(m.desc.Digest)
	add(m.desc.Config)
	for _, l := range m.layerFacts() {
		add(l.Digest)
	}
	return n
}
