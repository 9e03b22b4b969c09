package fs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/export"
)

// maxIndexDepth is how many indexes may lie in each other.
const maxIndexDepth = 8

// ociImage is what is kept of one manifest in OCI form, or why there is none.
type ociImage struct {
	img      imgsrc.Image
	desc     v1.Descriptor
	blobs    []ociBlob
	children map[digest.Digest]*ociImage // of an index, as they were then; nil: not there
	diffIDs  []digest.Digest             // of schema 1, where they had to be found out
	remote   bool

	err   error
	until time.Time // when to try again; zero: never
}

// ociBlob is one of an image's blobs.
type ociBlob struct {
	number uint32
	layer  int32
	size   int64
	kind   export.OriginKind
}

// isFollowed says whether a source has only what somebody has followed below registry/.
func (f *FS) isFollowed(src imgsrc.Source) bool {
	followed, ok := f.remotes.(imgsrc.Source)
	return ok && src == followed
}

// An ociGroup is the manifests of one digest, and made from the same one, that are one image, with the names that lead to them.
type ociGroup struct {
	held  []imgsrc.Image // the nearest first
	from  []imgsrc.Source
	names []string
}

// groupsOf are an entry's manifests. The index that an image was pulled by lies beside the image in a store; it is none of
// them.
func (f *FS) groupsOf(e *imgsrc.Entry) []*ociGroup {
	var all []*ociGroup
	type form struct{ digest, original digest.Digest }
	byForm := map[form]*ociGroup{}
	byName := map[string]*ociGroup{}
	var first *imgsrc.Desc
	for _, h := range e.Held {
		if f.isFollowed(h.Source) {
			continue
		}
		d := h.Desc()
		if first == nil {
			first = &d
		}
		if first.Lists == nil && d.Lists != nil {
			continue
		}
		g := byForm[form{d.Digest, d.Original}]
		if g == nil || d.Digest == "" {
			g = &ociGroup{}
			byForm[form{d.Digest, d.Original}] = g
			all = append(all, g)
		}
		at := len(g.held)
		if far := slices.IndexFunc(g.held, isRemote); far >= 0 && !isRemote(h.Image) {
			at = far
		}
		g.held, g.from = slices.Insert(g.held, at, h.Image), slices.Insert(g.from, at, h.Source)
		for _, name := range slices.Concat(h.Names, h.RemoteNames) {
			if byName[name] == nil {
				byName[name] = g
			}
		}
	}
	for _, name := range slices.Concat(e.Names, e.RemoteNames) {
		if g := byName[name]; g != nil && !slices.Contains(g.names, name) {
			g.names = append(g.names, name)
		}
	}
	return all
}

// ociRun is one pass over a snapshot.
type ociRun struct {
	t    *ociTree
	snap *imgsrc.Snapshot

	mu   sync.Mutex
	done map[imgsrc.Image]*ociImage
}

// ociEntries are what there is in OCI form, one for each of the other.
type ociEntries struct {
	index  []export.Entry
	images []*ociImage
}

// convertAll puts all images into OCI form, which takes what is known of them from the last time. Error: that it cannot be
// told of one of them whether it can be had.
func (r *ociRun) convertAll(ctx context.Context) (*ociEntries, error) {
	entries := slices.Clone(r.snap.Entries)
	slices.SortStableFunc(entries, func(a, b *imgsrc.Entry) int { return cmp.Compare(ociOrder(a), ociOrder(b)) })
	groups := make([][]*ociGroup, len(entries))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(2 * runtime.GOMAXPROCS(0))
	for i, e := range entries {
		groups[i] = r.t.f.groupsOf(e)
		for _, group := range groups[i] {
			if !slices.ContainsFunc(group.held, isIndex) {
				g.Go(func() error {
					_, err := r.group(gctx, group, 0)
					return err
				})
			}
		}
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	all := &ociEntries{}
	for _, its := range groups {
		if err := r.add(ctx, all, its); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// ociOrder is what the images are listed by: their ids, but for an index, whose id a store makes up.
func ociOrder(e *imgsrc.Entry) string {
	d := e.First().Desc()
	switch {
	case d.Lists == nil:
		return e.ID
	case d.Original != "":
		return d.Original.Encoded()
	}
	return d.Digest.Encoded()
}

// add adds an image of the catalog: its manifests, in their order, each with its names.
func (r *ociRun) add(ctx context.Context, all *ociEntries, groups []*ociGroup) error {
	first := len(all.images)
	var homeless []string
	for _, group := range groups {
		img, err := r.group(ctx, group, 0)
		if err != nil {
			return err
		}
		if img.err != nil {
			homeless = append(homeless, group.names...)
			continue
		}
		if i := slices.IndexFunc(all.images[first:], func(o *ociImage) bool { return sameDesc(o.desc, img.desc) }); i >= 0 {
			e := &all.index[first+i]
			e.Names = append(e.Names, group.names...)
			continue
		}
		all.images = append(all.images, img)
		all.index = append(all.index, export.Entry{Desc: img.desc, Names: group.names})
	}
	if first < len(all.index) { // a name finds the image, be it by another of its manifests
		e := &all.index[first]
		e.Names = append(e.Names, homeless...)
	}
	return nil
}

func isIndex(img imgsrc.Image) bool { return img.Desc().Lists != nil }

func isRemote(img imgsrc.Image) bool {
	_, ok := img.(imgsrc.Remote)
	return ok
}

// sameDesc says whether two manifests became the same, and were.
func sameDesc(a, b v1.Descriptor) bool {
	return a.Digest == b.Digest && a.Annotations[export.AnnotationOriginal] == b.Annotations[export.AnnotationOriginal]
}

// group returns the form that a manifest has: where several sources have it, the one that keeps its bytes, if one does; from a
// registry only if no other has it. The image that is returned may have an err; the error is that this cannot be told.
func (r *ociRun) group(ctx context.Context, g *ociGroup, depth int) (*ociImage, error) {
	var best *ociImage
	for i := range g.held {
		if isRemote(g.held[i]) && best != nil && best.err == nil {
			break
		}
		img, err := r.image(ctx, g.held[i], g.from[i], depth)
		switch {
		case err != nil:
			return nil, err
		case img.err == nil && img.desc.Annotations[export.AnnotationOriginal] == "":
			return img, nil
		case best == nil || best.err != nil && img.err == nil:
			best = img
		}
	}
	return best, nil
}

// image puts one image into OCI form, unless that is known.
func (r *ociRun) image(ctx context.Context, img imgsrc.Image, from imgsrc.Source, depth int) (*ociImage, error) {
	r.mu.Lock()
	o := r.done[img]
	r.mu.Unlock()
	if o != nil {
		return o, nil
	}
	old := r.t.known[img]
	if old != nil && (old.until.IsZero() || time.Now().Before(old.until)) {
		same, err := r.sameChildren(ctx, old, depth)
		if err != nil {
			return nil, err
		}
		if same {
			r.put(img, old)
			return old, nil
		}
	}
	o, err := r.convert(ctx, img, depth)
	if err != nil {
		return nil, err
	}
	if o.err != nil && (old == nil || old.err == nil || old.err.Error() != o.err.Error()) {
		r.t.f.log.Warn("leaving an image out of oci/", "image", img.Desc().ID, "source", from.Name(), "error", o.err)
	}
	r.put(img, o)
	return o, nil
}

func (r *ociRun) put(img imgsrc.Image, o *ociImage) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.done[img] = o
}

// sameChildren says whether what an index lists is what it was.
func (r *ociRun) sameChildren(ctx context.Context, o *ociImage, depth int) (bool, error) {
	for d, was := range o.children {
		is, err := r.child(ctx, d, depth+1)
		if err != nil {
			return false, err
		}
		if is != was {
			return false, nil
		}
	}
	return true, nil
}

// child returns what the catalog has under a digest that an index lists; nil if that is nothing.
func (r *ociRun) child(ctx context.Context, d digest.Digest, depth int) (*ociImage, error) {
	if depth > maxIndexDepth {
		return nil, nil
	}
	for _, e := range r.snap.AllByDigest(d) {
		for _, g := range r.t.f.groupsOf(e) {
			if g.held[0].Desc().Digest != d {
				continue
			}
			if img, err := r.group(ctx, g, depth); err != nil || img.err == nil {
				return img, err
			}
		}
	}
	return nil, nil
}

// convert puts one image into OCI form.
func (r *ociRun) convert(ctx context.Context, img imgsrc.Image, depth int) (o *ociImage, err error) {
	defer func() { // in a goroutine of the tree's own, it would end the mount
		if p := recover(); p != nil {
			o, err = nil, fmt.Errorf("putting image %s into OCI form: panic: %v", img.Desc().ID, p)
		}
	}()
	o = &ociImage{img: img, remote: isRemote(img)}
	made, err := r.t.make(ctx, o, func(ctx context.Context, d digest.Digest) (*export.OCI, error) {
		child, err := r.child(ctx, d, depth+1)
		if err != nil {
			return nil, err
		}
		if o.children == nil {
			o.children = map[digest.Digest]*ociImage{}
		}
		if o.children[d] = child; child == nil {
			return nil, fmt.Errorf("manifest %s: %w", d, imgsrc.ErrNotFound)
		}
		return &export.OCI{Desc: child.desc}, nil
	})
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil && export.IsLeftOut(err):
		o.err = err
		if errors.Is(err, imgsrc.ErrDamaged) || errors.Is(err, imgsrc.ErrNotFound) {
			o.until = time.Now().Add(damagedKept) // it may be repaired
		}
		return o, nil
	case err != nil:
		return nil, err
	}
	o.desc = made.Desc
	for _, b := range made.Files() {
		o.blobs = append(o.blobs, ociBlob{number: r.t.numbers.number(b.Desc.Digest), layer: int32(b.From.Layer), size: b.Desc.Size, kind: b.From.Kind})
	}
	o.blobs = slices.Clip(o.blobs)
	return o, nil
}

// make makes the OCI form of an image. Twice it is the same.
func (t *ociTree) make(ctx context.Context, o *ociImage, child export.ChildFunc) (*export.OCI, error) {
	facts, err := imgsrc.Load(ctx, o.img)
	if err != nil {
		return nil, err
	}
	if facts.ManifestErr == nil && facts.LacksDiffIDs() {
		if o.remote {
			return nil, farSchema1(facts)
		}
		if o.diffIDs == nil {
			if o.diffIDs, err = imgsrc.FindDiffIDs(ctx, o.img, len(facts.Layers)); err != nil {
				return nil, err
			}
		}
		facts = facts.WithDiffIDs(o.diffIDs)
	}
	return export.Convert(ctx, o.img, facts, child)
}

// again makes the OCI form of an image that is known once more.
func (t *ociTree) again(ctx context.Context, o *ociImage) (*export.OCI, error) {
	return t.make(ctx, o, func(_ context.Context, d digest.Digest) (*export.OCI, error) {
		child := o.children[d]
		if child == nil {
			return nil, fmt.Errorf("manifest %s: %w", d, imgsrc.ErrNotFound)
		}
		return &export.OCI{Desc: child.desc}, nil
	})
}
