package registry

import (
	"context"
	"math"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/layer"
)

var _ imgsrc.Remote = (*image)(nil)

// Local says whether layer n can be read without the network: its blob or its tar is in the cache. It costs a stat(2) or
// two.
func (m *image) Local(n int) bool {
	layers := m.layerFacts()
	return n >= 0 && n < len(layers) && m.source.isLocal(layers[n])
}

func (s *Source) isLocal(l imgsrc.LayerFacts) bool {
	return l.Digest.Validate() == nil && (s.blobs.hasBlob(l.Digest) || s.blobs.hasDiff(l))
}

// Lacks implements imgsrc.Remote. It costs a stat(2) or two for each layer.
func (m *image) Lacks() (bytes int64, ok bool) {
	layers := m.layerFacts()
	seen := map[digest.Digest]bool{}
	for _, l := range layers {
		switch {
		case l.Digest.Validate() != nil || layer.CheckMediaType(l.MediaType) != nil:
			return 0, false
		case seen[l.Digest] || m.source.isLazy(l) || m.source.isLocal(l): // the cheapest first
		case isForeign(l) || l.Size < 0 || l.Size > math.MaxInt64-bytes:
			return 0, false
		default:
			bytes += max(l.Size-m.source.blobs.arrived(l.Digest), 0)
		}
		seen[l.Digest] = true
	}
	return bytes, layers != nil || m.layers.Load() != nil
}

// isLazy says whether a layer's files can be had without the rest of it: it has a table of contents, and nobody has found
// that of no use.
func (s *Source) isLazy(l imgsrc.LayerFacts) bool {
	ref, err := layer.FindTOC(l.Annotations, l.Size)
	if err != nil {
		return false
	}
	s.lazyMu.Lock()
	z := s.lazies[lazyKey{l.Digest, ref}]
	s.lazyMu.Unlock()
	if z == nil {
		return true
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	return z.form != formTar
}

// layerFacts is what can be said of the layers without the network.
func (m *image) layerFacts() []imgsrc.LayerFacts {
	if !m.whole.Load() && m.desc.Config != "" && m.source.docs.has(m.desc.Config) && m.source.docs.has(m.desc.Digest) {
		if facts, err := imgsrc.Load(context.Background(), keptImage{m}); err == nil {
			m.keep(facts) // what is damaged is for its readers to meet
		}
	}
	if l := m.layers.Load(); l != nil {
		return *l
	}
	return nil
}

// A keptImage is an image as far as it is in the cache.
type keptImage struct{ *image }

func (m keptImage) Manifest(context.Context) ([]byte, error) { return m.kept(m.desc.Digest) }

func (m keptImage) Config(context.Context) ([]byte, error) { return m.kept(m.desc.Config) }

func (m keptImage) kept(d digest.Digest) ([]byte, error) {
	if b := m.source.docs.get(d); b != nil {
		return b, nil
	}
	return nil, errOffline
}
