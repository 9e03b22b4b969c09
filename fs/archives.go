package fs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/export"
	"github.com/imgfs/imgfs/imgsrc/layer"
)

// archiveBytes is how much memory the archives that nobody reads may take: their headers, and where the files of a
// rootfs.tar begin.
const archiveBytes = 8 << 20

type archiveKey struct{ slot, entry uint32 }

// An archive is an image as a file in one state of the catalog. What it has of the image's names is at its end, so that
// somebody who reads it while they change has not read anything that has moved.
type archive struct {
	*export.Archive
	generation uint64
	entry      *imgsrc.Entry
	at         time.Time // when it last said something else
	until      time.Time // when to look again, because something is left out that may be repaired; zero: never
}

// isFor says whether the archive is of this state.
func (a *archive) isFor(e *imgsrc.Entry, s *state) bool {
	return a.entry == e && a.generation == s.snap.Generation && (a.until.IsZero() || time.Now().Before(a.until))
}

// archive returns oci.tar or docker.tar.
func (img *image) archive(ctx context.Context, entry uint32) (*archive, error) {
	e, err := img.current()
	if err != nil {
		return nil, err
	}
	s := img.f.state.Load()
	key := archiveKey{img.slot, entry}
	if a, ok := img.f.archives.get(key); ok && a.isFor(e, s) {
		return a, nil
	}
	res, err := img.shared(ctx, fmt.Sprintf("archive %d %d %d", img.slot, entry, s.snap.Generation), func(ctx context.Context) (any, error) {
		a := &archive{generation: s.snap.Generation, entry: e}
		var err error
		switch entry {
		case exportDocker:
			a.Archive, err = img.dockerTar(ctx, e)
		case exportOCI:
			a.Archive, a.until, err = img.ociTar(ctx, e, s)
		default:
			err = syscall.ENOENT
		}
		if err != nil {
			return nil, img.cannotBe(entry, err)
		}
		a.at = img.changedAt(1<<16|entry, a.Sum(), s, img.namesTime())
		img.f.archives.put(key, a, a.Memory())
		return a, nil
	})
	if err != nil {
		return nil, err
	}
	return res.(*archive), nil
}

// cannotBe makes an archive that cannot be had to the byte one that is not there.
func (img *image) cannotBe(entry uint32, err error) error {
	err = fmt.Errorf("making export/%s of image %s: %w", exportName(entry), img.id, err)
	if errors.Is(err, imgsrc.ErrAbsent) || errors.Is(err, imgsrc.ErrUnsupported) || errors.Is(err, imgsrc.ErrInvalid) {
		err = fmt.Errorf("%w: %w", imgsrc.ErrAbsent, err)
		img.f.log.Info("not exported", "image", img.id, "error", err)
	}
	return err
}

// exportNames are the names that an archive gives the image.
func exportNames(e *imgsrc.Entry) []string { return slices.Concat(e.Names, e.RemoteNames) }

// ociTar puts oci.tar together: of an index, with those of its images that are here. It reads no layer.
func (img *image) ociTar(ctx context.Context, e *imgsrc.Entry, s *state) (a *export.Archive, until time.Time, err error) {
	r, err := img.render(ctx)
	if err != nil {
		return nil, until, err
	}
	c := &ociForms{f: img.f, s: s, made: map[imgsrc.Image]*export.OCI{}, none: map[imgsrc.Image]error{}}
	o, err := c.convert(ctx, e, "")
	if err != nil {
		return nil, until, err
	}
	if c.lacking {
		until = time.Now().Add(damagedKept)
	}
	a, err = export.OCITar(o, exportNames(e), r.created)
	return a, until, err
}

// ociForms puts an image, and all that it lists, into OCI form, each once: as oci/ does, but of this image alone, and also if
// that was only followed.
type ociForms struct {
	f     *FS
	s     *state
	made  map[imgsrc.Image]*export.OCI
	none  map[imgsrc.Image]error // why others are left out: indexes may list one of those thousands of times
	depth int

	lacking bool // something that the catalog has is left out, because it is damaged
}

// candidates are the manifests of an entry that have this digest, the nearest first; without one, those that stand for it.
func (c *ociForms) candidates(e *imgsrc.Entry, d digest.Digest) []imgsrc.Image {
	for _, g := range c.f.groupsOf(e) {
		if d == "" || g.held[0].Desc().Digest == d {
			return g.held
		}
	}
	for _, h := range e.Held {
		if d == "" || h.Desc().Digest == d {
			return []imgsrc.Image{h.Image}
		}
	}
	return nil
}

// convert chooses as ociRun.group does.
func (c *ociForms) convert(ctx context.Context, e *imgsrc.Entry, d digest.Digest) (*export.OCI, error) {
	var best *export.OCI
	missing := fmt.Errorf("manifest %s: %w", d, imgsrc.ErrNotFound)
	for _, candidate := range c.candidates(e, d) {
		if _, far := candidate.(imgsrc.Remote); far && best != nil {
			break
		}
		o, err := c.one(ctx, e, candidate)
		switch {
		case err != nil && !export.IsLeftOut(err):
			return nil, err
		case err != nil:
			missing = err
		case o.Original == nil:
			return o, nil
		case best == nil:
			best = o
		}
	}
	if best == nil {
		return nil, missing
	}
	return best, nil
}

// one converts one manifest. The blobs of the one that stands for the image stay open from one read to the next.
func (c *ociForms) one(ctx context.Context, e *imgsrc.Entry, of imgsrc.Image) (_ *export.OCI, err error) {
	if o := c.made[of]; o != nil {
		return o, nil
	}
	if err := c.none[of]; err != nil {
		return nil, err
	}
	defer func() {
		if err != nil && export.IsLeftOut(err) {
			c.none[of] = err
		}
	}()
	facts, err := imgsrc.Load(ctx, of)
	if err != nil {
		return nil, err
	}
	o, err := export.Convert(ctx, of, facts, c.child)
	if err != nil {
		return nil, err
	}
	c.made[of] = o
	img := c.s.byID[e.ID]
	if img == nil || of != e.First().Image {
		return o, nil
	}
	near := img.nearest(e)
	for i := range o.Blobs {
		b := &o.Blobs[i]
		switch {
		case b.Open == nil:
		case b.From.Kind == export.Layer:
			b.Open = c.f.kept(img.contentKey(b.From.Layer, contentBlob, near), b.Open)
		case b.From.Kind == export.Diff && of == near.Image:
			b.Open = c.f.kept(img.contentKey(b.From.Layer, contentDiff, near), b.Open)
		}
	}
	return o, nil
}

// child converts what an index lists.
func (c *ociForms) child(ctx context.Context, d digest.Digest) (*export.OCI, error) {
	if c.depth++; c.depth > maxIndexDepth+1 {
		return nil, fmt.Errorf("manifest %s: %w: more than %d indexes in each other", d, imgsrc.ErrUnsupported, maxIndexDepth)
	}
	defer func() { c.depth-- }()
	missing := fmt.Errorf("manifest %s: %w", d, imgsrc.ErrNotFound)
	for _, e := range c.s.snap.AllByDigest(d) {
		o, err := c.convert(ctx, e, d)
		if err == nil || !export.IsLeftOut(err) {
			return o, err
		}
		missing = err
		c.lacking = c.lacking || errors.Is(err, imgsrc.ErrDamaged) || errors.Is(err, imgsrc.ErrNotFound)
	}
	return nil, missing
}

// kept is an open whose content stays open from one read to the next.
func (f *FS) kept(key contentKey, open func(context.Context) (imgsrc.Content, error)) func(context.Context) (imgsrc.Content, error) {
	return func(ctx context.Context) (imgsrc.Content, error) {
		c, err := f.contents.get(key, func() (imgsrc.Content, error) { return open(ctx) })
		if err != nil {
			return nil, err
		}
		return keptContent{c.it, c}, nil
	}
}

// A keptContent is released when it is closed.
type keptContent struct {
	imgsrc.Content
	o *opened[imgsrc.Content]
}

func (c keptContent) Close() error {
	c.o.release()
	return nil
}

// A rootfsTar is the layout of an image's rootfs.tar.
type rootfsTar struct {
	*export.RootfsTar
	keys []imgsrc.FilesKey // of the layers that it is of
}

func (img *image) rootfsTar(ctx context.Context) (*rootfsTar, error) {
	key := img.slot
	if t, ok := img.f.rootfsTars.get(key); ok {
		return t, nil
	}
	res, err := img.shared(ctx, fmt.Sprintf("rootfs.tar %d", key), func(ctx context.Context) (any, error) {
		t, err := img.tree(ctx, viewRootfs)
		if err != nil {
			return nil, err
		}
		layout, err := export.LayOutRootfs(ctx, t.Tree, t.mtime)
		if err != nil {
			return nil, img.cannotBe(exportRootfs, err)
		}
		rt := &rootfsTar{layout, t.keys}
		img.f.rootfsTars.put(key, rt, rt.Memory())
		return rt, nil
	})
	if err != nil {
		return nil, err
	}
	return res.(*rootfsTar), nil
}

func (img *image) readRootfsTar(ctx context.Context, dest []byte, off int64) (int, error) {
	rt, err := img.rootfsTar(ctx)
	if err != nil {
		return 0, err
	}
	t, err := img.tree(ctx, viewRootfs)
	if err != nil {
		return 0, err
	}
	if !slices.Equal(rt.keys, t.keys) {
		img.f.renew(img)
		return 0, fmt.Errorf("the layers of image %s are read otherwise now than before: %w", img.id, syscall.EAGAIN)
	}
	return rt.ReadAt(ctx, t.Tree, func(ctx context.Context, p layer.Place, b []byte, off int64) (int, error) {
		return t.read(ctx, p, b, off)
	}, dest, off)
}
