package layout

import (
	"context"
	"errors"
	"io/fs"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/blobs"
)

// readOriginal reads the manifest that m was made from. It may be listed in m's place if it has the same config and the same
// layers, or is an index; otherwise it is only known to have been there. What it has in common with m is looked at, so that
// no layout makes one image look like another. Facts are m's.
func (s *images) readOriginal(m *manifest, facts *imgsrc.Facts) {
	d := m.descriptor.original
	b, _, err := s.store.Read(d, -1)
	if err != nil {
		m.lacksOriginal = true
		if errors.Is(err, fs.ErrNotExist) {
			m.identity = blobs.Identity{} // to look again at the next listing
		}
		return
	}
	desc := imgsrc.Desc{Digest: d}
	was := imgsrc.Describe(&desc, b)
	same := len(was.Layers) == len(facts.Layers) && slices.EqualFunc(was.Layers, facts.Layers, func(a, b imgsrc.LayerFacts) bool { return a.Digest == b.Digest })
	switch {
	case desc.Damaged != nil || was.Kind != facts.Kind || len(was.Layers) != len(facts.Layers),
		desc.Config != "" && desc.Config != m.own.Desc().Config:
		return
	case same:
		m.original = s.newImage(desc, was.ConfigSize())
		return
	}
	from := s.manifest(m.own.Desc())
	from.Original = func(context.Context) ([]byte, error) {
		b, _, err := s.store.Read(d, -1)
		return b, err
	}
	m.own = blobs.NewImage(s.store, m.own.Desc(), facts.ConfigSize(), from)
	m.image = m.own
}

// choose decides which of them are listed as what they were made from: none that is listed anyhow, and an index only if the
// images below it that are there are, too.
func (w *walk) choose() {
	w.chosen = map[*manifest]bool{}
	w.taken = map[digest.Digest]bool{}
	for _, m := range w.order {
		w.taken[m.digest] = true
	}
	for _, m := range w.order {
		w.show(m, 0)
	}
}

// show returns the digest under which m is listed; empty if it is not there.
func (w *walk) show(m *manifest, depth int) digest.Digest {
	switch {
	case m.own == nil || errors.Is(m.own.Desc().Damaged, fs.ErrNotExist):
		return ""
	case w.chosen[m] || depth > maxDepth:
		return m.image.Desc().Digest
	}
	w.chosen[m] = true
	m.image = m.own
	if m.original == nil || w.taken[m.original.Desc().Digest] {
		return m.digest
	}
	lists := map[digest.Digest]bool{}
	for _, d := range m.original.Desc().Lists {
		lists[d] = true
	}
	for _, c := range m.children {
		if child := w.found[c.digest]; child != nil {
			if d := w.show(child, depth+1); d != "" && !lists[d] {
				return m.digest
			}
		}
	}
	m.image = m.original
	d := m.image.Desc().Digest
	w.taken[d] = true
	return d
}

// listed returns what is listed under a digest, or nil.
func (w *walk) listed(d digest.Digest) *manifest {
	for _, m := range w.found {
		if m.image != nil && m.image.Desc().Digest == d {
			return m
		}
	}
	return nil
}
