package layout

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"slices"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/blobs"
)

// Bounds of a listing. Neither is near to anything that is made by a tool: an index in an index in an index is rare.
const (
	maxDepth  = 8
	maxImages = 100_000
)

// A manifest is what is known of a manifest or index among the blobs.
type manifest struct {
	identity   blobs.Identity // of its file; zero if there is none
	descriptor                // that led to it
	image      *blobs.Image   // that is listed: one of the next three
	own        *blobs.Image   // of its own bytes
	original   *blobs.Image   // of the manifest that it was made from, if that may be listed in its place; else nil
	converted  *blobs.Image   // own, which knows its original, if it may be listed so; else nil
	layers     []string       // their digests
	children   []descriptor   // an index's
	problems   []error        // an index's entries that are none

	lacksOriginal bool // the manifest that it was made from is not there
}

// List lists the layout. Manifests that have not changed since the last time are not read again.
func (s *images) List(ctx context.Context) (*imgsrc.Listing, error) {
	ix, err := s.readIndex(ctx)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, fmt.Errorf("listing %s: %w", s.Name(), err)
	}
	s.mu.Lock()
	known := s.known
	s.mu.Unlock()

	w := newWalk(s, known, ix)
	if err := w.run(ctx, ix.wanted(s.ref)); err != nil {
		return nil, fmt.Errorf("listing %s: %w", s.Name(), err)
	}
	names := map[variant][]string{}
	l := &imgsrc.Listing{ModTime: ix.modTime}
	for _, e := range ix.entries {
		switch {
		case e.err != nil:
			l.Problems = append(l.Problems, fmt.Errorf("index.json: %w", e.err))
		case e.name != "":
			names[e.variant()] = append(names[e.variant()], e.name)
		}
	}
	l.Problems = append(l.Problems, w.problems...)
	damaged := w.sparse
	at := map[variant]int{} // where there are two that are listed as the same, as if one had lost its original
	for _, m := range w.order {
		damaged = damaged || m.image.Desc().Damaged != nil
		if i, there := at[m.shown()]; there {
			l.Images[i].Names = unique(append(l.Images[i].Names, names[m.variant()]...))
			continue
		}
		at[m.shown()] = len(l.Images)
		l.Images = append(l.Images, imgsrc.Listed{Image: m.image, Names: unique(names[m.variant()]), Layers: m.layers})
	}
	s.mu.Lock()
	s.known = w.found
	s.mu.Unlock()
	s.damaged.Store(damaged)
	return l, nil
}

// wanted are the manifests that ref asks for, empty for all of them.
func (ix *index) wanted(ref string) []descriptor {
	var list []descriptor
	for _, e := range ix.entries {
		if e.err == nil && (ref == "" || e.isNamed(ref)) {
			list = append(list, e.descriptor)
		}
	}
	return list
}

// unique drops names that come again.
func unique(names []string) []string {
	var list []string
	seen := map[string]bool{}
	for _, name := range names {
		if !seen[name] {
			seen[name] = true
			list = append(list, name)
		}
	}
	return list
}

// A walk goes through manifests and what is below them, one level of nesting after the other: each is met once, which
// also ends cycles.
type walk struct {
	source   *images
	known    map[variant]*manifest
	found    map[variant]*manifest
	order    []*manifest
	problems []error
	sparse   bool // an index below index.json lists what is not there, or an original is not there

	originals map[digest.Digest][]digest.Digest // as index.json says
	chosen    map[*manifest]bool                // those of which it is decided what they are listed as
	taken     map[digest.Digest]bool            // what is listed
}

func newWalk(s *images, known map[variant]*manifest, ix *index) *walk {
	w := &walk{source: s, known: known, found: map[variant]*manifest{}, originals: map[digest.Digest][]digest.Digest{}}
	for _, e := range ix.entries {
		if e.err == nil && e.original != "" && !slices.Contains(w.originals[e.digest], e.original) {
			w.originals[e.digest] = append(w.originals[e.digest], e.original)
		}
	}
	return w
}

// variants returns what an entry of an index leads to: an index below index.json does not say what its images were made from.
func (w *walk) variants(d descriptor) []descriptor {
	if d.original != "" || len(w.originals[d.digest]) == 0 {
		return []descriptor{d}
	}
	var all []descriptor
	for _, original := range w.originals[d.digest] {
		d.original = original
		all = append(all, d)
	}
	return all
}

// of returns what was found under a digest.
func (w *walk) of(d descriptor) []*manifest {
	var all []*manifest
	for _, v := range w.variants(d) {
		if m := w.found[v.variant()]; m != nil {
			all = append(all, m)
		}
	}
	return all
}

func (w *walk) run(ctx context.Context, level []descriptor) error {
	defer w.choose()
	for depth := 0; len(level) > 0; depth++ {
		if depth > maxDepth {
			w.problems = append(w.problems, fmt.Errorf("%w: index %s is more than %d indexes deep: leaving it out", imgsrc.ErrUnsupported, level[0].digest, maxDepth))
			return nil
		}
		var fresh []*manifest
	entries:
		for _, entry := range level {
			for _, d := range w.variants(entry) {
				if w.found[d.variant()] != nil {
					continue
				}
				if len(w.found) == maxImages {
					w.problems = append(w.problems, fmt.Errorf("%w: more than %d images: leaving out the rest", imgsrc.ErrUnsupported, maxImages))
					break entries
				}
				m := &manifest{descriptor: d}
				w.found[d.variant()] = m
				fresh = append(fresh, m)
			}
		}
		g, gctx := errgroup.WithContext(ctx)
		g.SetLimit(2 * runtime.GOMAXPROCS(0))
		for _, m := range fresh {
			g.Go(func() error { return w.read(gctx, m) })
		}
		if err := g.Wait(); err != nil {
			return err
		}
		level = nil
		for _, m := range fresh {
			// A layout need not have all that an index lists; what index.json itself names it should have.
			if depth > 0 && errors.Is(m.image.Desc().Damaged, fs.ErrNotExist) {
				w.sparse = true
				continue
			}
			w.order = append(w.order, m)
			w.sparse = w.sparse || m.lacksOriginal
			w.problems = append(w.problems, m.problems...)
			level = append(level, m.children...)
		}
	}
	return nil
}

// read fills in m, from the last listing if its file is the same. Damage is in m; the error is ctx's.
func (w *walk) read(ctx context.Context, m *manifest) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s := w.source
	if old := w.known[m.variant()]; old != nil && old.identity != (blobs.Identity{}) && old.descriptor == m.descriptor {
		if id, err := s.store.Dir.Stat(blobPath(m.digest)); err == nil && id == old.identity {
			*m = *old
			return nil
		}
	}
	desc := imgsrc.Desc{ID: idOf(m.digest), Digest: m.digest, MediaType: m.mediaType, Size: m.size}
	b, id, err := s.store.Read(m.digest, m.size)
	if err == nil || errors.Is(err, imgsrc.ErrDamaged) { // not if the disk failed
		m.identity = id
	}
	if err != nil {
		desc.Damaged = fmt.Errorf("reading manifest %s: %w", m.digest, err)
		m.own = s.newImage(desc, -1)
		m.image = m.own
		return nil
	}
	facts := imgsrc.Describe(&desc, b)
	for _, l := range facts.Layers {
		m.layers = append(m.layers, string(l.Digest))
	}
	if desc.Damaged == nil && facts.Kind == imgsrc.KindIndex {
		desc.Damaged = m.parseIndex(b)
		if m.descriptor.original == m.digest {
			desc.Original = m.digest
		}
	}
	m.own = s.newImage(desc, facts.ConfigSize())
	m.image = m.own
	if m.digest != m.descriptor.original && m.descriptor.original != "" && desc.Damaged == nil {
		s.readOriginal(m, facts)
	}
	return nil
}

// parseIndex takes its entries from an index. Error: that it is damaged as a whole.
func (m *manifest) parseIndex(b []byte) error {
	ix, err := parseIndex(b)
	if err != nil {
		return damagedJSON("index "+m.digest.String(), err)
	}
	for _, e := range ix.entries {
		if e.err != nil {
			m.problems = append(m.problems, fmt.Errorf("index %s: %w", m.digest, e.err))
			continue
		}
		m.children = append(m.children, e.descriptor)
	}
	return nil
}

// idOf returns the id that stands for d: its hash, of which a longer one than SHA-256 is cut.
func idOf(d digest.Digest) string { return d.Encoded()[:64] }
