package layout

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"runtime"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/imgfs/imgfs/imgsrc"
)

// Bounds of a listing. Neither is near to anything that is made by a tool: an index in an index in an index is rare.
const (
	maxDepth  = 8
	maxImages = 100_000
)

// A manifest is what is known of a manifest or index among the blobs.
type manifest struct {
	identity   identity // of its file; zero if there is none
	descriptor          // that led to it
	image      *image
	layers     []string     // their digests
	children   []descriptor // an index's
	problems   []error      // an index's entries that are none
}

// List lists the layout. Manifests that have not changed since the last time are not read again.
func (s *Source) List(ctx context.Context) (*imgsrc.Listing, error) {
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

	w := &walk{source: s, known: known, found: map[digest.Digest]*manifest{}}
	if err := w.run(ctx, ix.wanted(s.ref)); err != nil {
		return nil, fmt.Errorf("listing %s: %w", s.Name(), err)
	}
	names := map[digest.Digest][]string{}
	l := &imgsrc.Listing{ModTime: ix.modTime}
	for _, e := range ix.entries {
		switch {
		case e.err != nil:
			l.Problems = append(l.Problems, fmt.Errorf("index.json: %w", e.err))
		case e.name != "":
			names[e.digest] = append(names[e.digest], e.name)
		}
	}
	l.Problems = append(l.Problems, w.problems...)
	damaged := w.sparse
	for _, m := range w.order {
		l.Images = append(l.Images, imgsrc.Listed{Image: m.image, Names: unique(names[m.digest]), Layers: m.layers})
		damaged = damaged || m.image.desc.Damaged != nil
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
	source   *Source
	known    map[digest.Digest]*manifest
	found    map[digest.Digest]*manifest
	order    []*manifest
	problems []error
	sparse   bool // an index below index.json lists what is not there
}

func (w *walk) run(ctx context.Context, level []descriptor) error {
	for depth := 0; len(level) > 0; depth++ {
		if depth > maxDepth {
			w.problems = append(w.problems, fmt.Errorf("%w: index %s is more than %d indexes deep: leaving it out", imgsrc.ErrUnsupported, level[0].digest, maxDepth))
			return nil
		}
		var fresh []*manifest
		for _, d := range level {
			if w.found[d.digest] != nil {
				continue
			}
			if len(w.found) == maxImages {
				w.problems = append(w.problems, fmt.Errorf("%w: more than %d images: leaving out the rest", imgsrc.ErrUnsupported, maxImages))
				break
			}
			m := &manifest{descriptor: d}
			w.found[d.digest] = m
			fresh = append(fresh, m)
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
			if depth > 0 && errors.Is(m.image.desc.Damaged, fs.ErrNotExist) {
				w.sparse = true
				continue
			}
			w.order = append(w.order, m)
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
	if old := w.known[m.digest]; old != nil && old.identity != (identity{}) && old.descriptor == m.descriptor {
		if fi, err := s.root.Stat(blobPath(m.digest)); err == nil && identify(fi) == old.identity {
			*m = *old
			return nil
		}
	}
	desc := imgsrc.Desc{ID: idOf(m.digest), Digest: m.digest, MediaType: m.mediaType, Size: m.size}
	m.image = &image{source: s, desc: desc}
	b, fi, err := s.readBlob(m.descriptor)
	if fi != nil && (err == nil || errors.Is(err, imgsrc.ErrDamaged)) { // not if the disk failed
		m.identity = identify(fi)
	}
	if err != nil {
		m.image.desc.Damaged = fmt.Errorf("reading manifest %s: %w", m.digest, err)
		return nil
	}
	return m.parse(ctx, b)
}

// parse takes from a manifest's bytes what the listing says of it.
func (m *manifest) parse(ctx context.Context, b []byte) error {
	desc := &m.image.desc
	facts, err := imgsrc.Load(ctx, manifestOnly{*desc, b})
	if err != nil {
		return err
	}
	var own struct {
		MediaType string `json:"mediaType"`
		Config    struct {
			Digest digest.Digest `json:"digest"`
			Size   *int64        `json:"size"`
		} `json:"config"`
	}
	if desc.Damaged = facts.ManifestErr; desc.Damaged == nil {
		desc.Damaged = json.Unmarshal(b, &own)
	}
	if desc.Damaged != nil {
		return nil //nolint:nilerr // it is listed as damaged
	}
	if own.MediaType != "" {
		desc.MediaType = own.MediaType
	}
	desc.Subject = facts.Subject
	for _, c := range facts.Children {
		desc.Lists = append(desc.Lists, c.Digest)
	}
	for _, l := range facts.Layers {
		m.layers = append(m.layers, string(l.Digest))
	}
	if facts.Kind == imgsrc.KindIndex {
		if desc.MediaType == "" {
			desc.MediaType = v1.MediaTypeImageIndex
		}
		m.parseIndex(b)
		return nil
	}
	if desc.MediaType == "" {
		desc.MediaType = v1.MediaTypeImageManifest
	}
	// No config in schema 1, and in the artifact manifests of old.
	if d := own.Config.Digest; d != "" {
		if err := d.Validate(); err != nil {
			desc.Damaged = fmt.Errorf("reading manifest %s: config %q: %w: %w", m.digest, d, imgsrc.ErrDamaged, err)
			return nil
		}
		desc.Config, m.image.configSize = d, own.Config.Size
		if facts.Kind == imgsrc.KindImage {
			desc.ID = idOf(d)
		}
	}
	return nil
}

func (m *manifest) parseIndex(b []byte) {
	ix, err := parseIndex(b)
	if err != nil {
		m.image.desc.Damaged = damagedJSON("index "+m.digest.String(), err)
		return
	}
	for _, e := range ix.entries {
		if e.err != nil {
			m.problems = append(m.problems, fmt.Errorf("index %s: %w", m.digest, e.err))
			continue
		}
		m.children = append(m.children, e.descriptor)
	}
}

// idOf returns the id that stands for d: its hash, of which a longer one than SHA-256 is cut.
func idOf(d digest.Digest) string { return d.Encoded()[:64] }

// readBlob reads a manifest or config and verifies it. A FileInfo is returned for a file that could be read, whatever
// its bytes. Errors: imgsrc.ErrDamaged, with fs.ErrNotExist if the blob is missing.
func (s *Source) readBlob(d descriptor) ([]byte, fs.FileInfo, error) {
	path := blobPath(d.digest)
	b, fi, err := s.readFile(path, imgsrc.MaxManifest)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil, fmt.Errorf("%w: %s is missing from the layout: %w", imgsrc.ErrDamaged, path, fs.ErrNotExist)
	case err != nil:
		return nil, nil, err
	case d.size >= 0 && int64(len(b)) != d.size:
		return nil, fi, fmt.Errorf("%w: %s has %d bytes, and its descriptor says %d", imgsrc.ErrDamaged, path, len(b), d.size)
	}
	if got := d.digest.Algorithm().FromBytes(b); got != d.digest {
		return nil, fi, fmt.Errorf("%w: the bytes of %s are %s", imgsrc.ErrDamaged, path, got)
	}
	return b, fi, nil
}

// manifestOnly is an image of which only the manifest is looked at.
type manifestOnly struct {
	desc  imgsrc.Desc
	bytes []byte
}

func (m manifestOnly) Desc() imgsrc.Desc                        { return m.desc }
func (m manifestOnly) Manifest(context.Context) ([]byte, error) { return m.bytes, nil }
func (m manifestOnly) Config(context.Context) ([]byte, error)   { return nil, imgsrc.ErrAbsent }
func (m manifestOnly) Blob(context.Context, digest.Digest) (imgsrc.Content, error) {
	return nil, imgsrc.ErrAbsent
}
func (m manifestOnly) Diff(context.Context, int) (imgsrc.Content, error) {
	return nil, imgsrc.ErrAbsent
}

func (m manifestOnly) Files(context.Context, int) (imgsrc.Files, error) {
	return nil, imgsrc.ErrAbsent
}
