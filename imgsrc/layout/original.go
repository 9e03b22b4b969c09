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
// layers; otherwise it is only known to have been there. Which of the two an index may be its images decide. What it has in common with m is looked at, so that
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
	}
	if same && facts.Kind != imgsrc.KindIndex {
		return
	}
	made := m.own.Desc()
	from := s.manifest(made)
	from.Original = func(context.Context) ([]byte, error) {
		b, _, err := s.store.Read(d, -1)
		return b, err
	}
	made.Original = d
	m.converted = blobs.NewImage(s.store, made, facts.ConfigSize(), from)
}

// shown is what m is listed as.
func (m *manifest) shown() variant {
	d := m.image.Desc()
	return variant{d.Digest, d.Original}
}

// choose decides which of them are listed as what they were made from: none that is listed anyhow, and an index only if the
// images below it that are there are, too. If they all know at least what they were, so does it.
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

// show decides what m is listed as, if it is there.
func (w *walk) show(m *manifest, depth int) {
	if m.own == nil || isMissing(m.own) || w.chosen[m] || depth > maxDepth {
		return
	}
	w.chosen[m] = true
	m.image = m.own
	if m.original != nil && w.taken[m.original.Desc().Digest] {
		return
	}
	switch are, were := w.below(m, depth); {
	case m.original != nil && are:
		m.image = m.original
		w.taken[m.image.Desc().Digest] = true
	case m.converted != nil && were:
		m.image = m.converted
	}
}

// below says whether the images of an index that are there are listed as those of its original, and whether they are or were.
func (w *walk) below(m *manifest, depth int) (are, were bool) {
	lists := map[digest.Digest]bool{}
	if m.original != nil {
		for _, d := range m.original.Desc().Lists {
			lists[d] = true
		}
	}
	are, were = true, true
	for _, c := range m.children {
		missing, is, was := true, false, false
		for _, child := range w.of(c) {
			if w.show(child, depth+1); child.image == nil || isMissing(child.image) {
				continue
			}
			d := child.image.Desc()
			missing, is, was = false, is || lists[d.Digest], was || lists[d.Original]
		}
		are, were = are && (missing || is), were && (missing || is || was)
	}
	return are, were
}

func isMissing(img *blobs.Image) bool { return errors.Is(img.Desc().Damaged, fs.ErrNotExist) }

// listed returns what is listed as img, or nil.
func (w *walk) listed(img imgsrc.Desc) *manifest {
	var same *manifest // by its digest
	for _, m := range w.order {
		if m.shown() == (variant{img.Digest, img.Original}) {
			return m
		}
		if same == nil && m.image.Desc().Digest == img.Digest {
			same = m
		}
	}
	return same
}
