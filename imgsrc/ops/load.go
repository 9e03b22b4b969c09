package ops

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/image/v5/types"

	"github.com/imgfs/imgfs/imgsrc"
)

// load carries out a write to load.
func (o *Ops) load(ctx context.Context, r Request) error {
	op := operation{kind: "load", doing: "loading", request: r, start: time.Now()}
	resolve := o.resolver(r)
	lines, err := parseArrivals(r.Lines, loadKeys, resolve, func(p *pullLine, word string) (err error) {
		p.all = true
		if p.place, err = resolve.place(word); err != nil {
			return err
		}
		_, err = os.Stat(p.place)
		if transport, _, ok := strings.Cut(word, ":"); ok && errors.Is(err, fs.ErrNotExist) && isTransport(transport) {
			return fail(imgsrc.ErrInvalid, "%s is no path: write the path alone, or %s to pull", quote(word), quote(word))
		}
		return err
	})
	return o.arrivals(ctx, op, lines, err, o.loadPlace)
}

// loadPlace loads what is at a path, or in another place on this machine.
func (o *Ops) loadPlace(ctx context.Context, p pullLine, to Receiver, t *task) error {
	if info, err := os.Stat(p.place); err == nil && info.Mode().IsRegular() {
		root, err := findRootfs(ctx, p.place)
		if err != nil {
			return err
		}
		if root != nil {
			return o.importRootfs(ctx, p, root, to, t)
		}
	}
	src, err := o.opt.Open(ctx, p.place)
	if err != nil {
		return notLoadable(p.place, err)
	}
	defer src.Close()
	list, err := src.List(ctx)
	if err != nil { // whoever says what was loaded or pulled names the source
		return imgsrc.Of(err, errors.New(strings.TrimPrefix(err.Error(), "listing "+src.Name()+": ")))
	}
	if len(list.Problems) > 0 {
		return fmt.Errorf("nothing was loaded: %w", list.Problems[0])
	}
	if p.all {
		p.platform = nil
	}
	images, err := o.chosen(ctx, src, list, p, to)
	if err != nil {
		return err
	}
	if err := o.areFor(ctx, images, p.platform); err != nil {
		return err
	}
	if p.dryRun {
		return o.mayLoad(ctx, images)
	}
	plan := o.planLoad(ctx, images, p.platform, to, t)
	for _, img := range images {
		if err := o.verified(ctx, img, p.platform); err != nil {
			return fmt.Errorf("nothing was loaded: %w", err)
		}
	}
	for i, img := range images {
		id, err := o.loadOne(ctx, img, p.platform, plan, to, t)
		if id != "" { // also where it has come without all of its names
			t.came(id, p.text)
		}
		if err != nil && i > 0 && ctx.Err() == nil {
			return fmt.Errorf("after %d of %d images: %w", i, len(images), err)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// notLoadable says of a path that is no source that it is nothing to load either, and of a place with its transport that
// there is no such image.
func notLoadable(place string, err error) error {
	if !errors.Is(err, imgsrc.ErrNoSource) {
		return err
	}
	cond := imgsrc.ErrInvalid
	if !filepath.IsAbs(place) {
		cond = imgsrc.ErrNotFound
	}
	for _, errno := range []error{syscall.ECONNREFUSED, syscall.ETIMEDOUT, syscall.EHOSTUNREACH, fs.ErrPermission} { // an engine's
		if errors.Is(err, errno) {
			cond = errno
		}
	}
	return fail(cond, "%s", strings.TrimPrefix(err.Error(), imgsrc.ErrNoSource.Error()+": "))
}

// verified has every blob of an image checked before anything of it is written: sources verify a blob as a whole
// before they give the first of its bytes.
func (o *Ops) verified(ctx context.Context, img loadable, platform *imgsrc.Platform) error {
	for _, p := range img.below {
		if err := verifiedOne(ctx, p); err != nil {
			return img.damagedPart(p.as, p.platform, err)
		}
	}
	if img.below != nil {
		return nil
	}
	if lists := img.Desc().Lists; lists != nil && img.artifact {
		for _, other := range img.list.Images {
			if slices.Contains(lists, other.Desc().Digest) && other.Desc().Damaged == nil {
				if err := verifiedOne(ctx, other); err != nil {
					return err
				}
			}
		}
		return nil
	}
	held, err := o.meant(ctx, img, platform)
	if err != nil {
		return err
	}
	return verifiedOne(ctx, held)
}

// verifiedOne is verified for what has layers of its own.
func verifiedOne(ctx context.Context, img imgsrc.Image) error {
	facts, err := imgsrc.Load(ctx, img)
	if err != nil {
		return err
	}
	if err := errors.Join(facts.ManifestErr, ignoreAbsent(facts.ConfigErr)); err != nil {
		return err
	}
	for n, l := range facts.Layers {
		content, err := img.Blob(ctx, l.Digest)
		if errors.Is(err, imgsrc.ErrAbsent) {
			continue
		}
		if err == nil {
			_, err = content.ReadAt(ctx, make([]byte, 1), 0)
			if errors.Is(err, io.EOF) {
				err = nil
			}
			err = errors.Join(err, content.Close())
		}
		if err != nil {
			return fmt.Errorf("layer %d (%s): %w", n, l.Digest, err)
		}
	}
	return nil
}

func ignoreAbsent(err error) error {
	if errors.Is(err, imgsrc.ErrAbsent) {
		return nil
	}
	return err
}

// source is the image as a copy takes it.
func (l *loadable) source(t *task) *source {
	return &source{held: l.Held, task: t, several: true, only: l.digests(), reading: func() func() { return func() {} }, instance: func(_ context.Context, d digest.Digest) (imgsrc.Image, error) {
		if other := l.find(d); other != nil {
			return *other, nil
		}
		return nil, fail(imgsrc.ErrNotFound, "%s does not have it", l.Source.Name())
	}}
}

// loadOne loads one image under all its names. The id that it returns is that of an image that is there, also with an error.
func (o *Ops) loadOne(ctx context.Context, img loadable, platform *imgsrc.Platform, plan *blobPlan, to Receiver, t *task) (id string, err error) {
	src := img.source(t)
	if id = img.Desc().ID; o.hasAll(ctx, to, &img) {
		// The same config and the same layers, by their digests: another manifest of them would only change the digest that
		// the image has there.
		if err := o.allowed(ctx, src); err != nil {
			return "", err
		}
		return id, o.addNamesOf(ctx, to, id, img.Desc().Digest, img.names)
	}
	if into, apart := to.(indexReceiver); apart && img.below != nil {
		return o.loadIndex(ctx, img, plan, to, into, t)
	}
	a := arrival{to: to, id: id, ref: src, instances: src.only, sys: &types.SystemContext{BlobInfoCacheDir: os.DevNull}, known: plan, task: t, watch: new(watchdog)}
	a.all, a.exact = img.artifact, img.artifact
	o.choose(a.sys, platform)
	var later []string
	a.name, later = nameOrder(img.names, to)
	if img.below == nil && !img.artifact {
		if src.held, err = o.meant(ctx, img, platform); err != nil {
			return "", err
		}
		a.id = src.held.Desc().ID
		if a.text, err = original(ctx, src.held); err != nil {
			return "", err
		}
	}
	if err := o.loadOthers(ctx, img, plan, to, t); err != nil {
		return "", err
	}
	src.toOCI = isLayout(to)
	if isLayout(to) && src.held.Unpacked == 0 { // see shape
		if _, a.blobs, err = src.blobs(ctx); err != nil {
			a.blobs = false
		}
		a.exact = a.exact || a.blobs && img.isOCI() // the library would annotate what is compressed with zstd
	}
	if id, err = o.receive(ctx, a); err != nil {
		return "", err
	}
	if id = o.show(ctx, to, id, a.name); id == "" {
		id = a.id
	}
	return id, o.addNames(ctx, to, id, later)
}

// nameOrder returns the name that an image comes with, and those that it is given then. A store puts these before the one that
// it has, so it comes with the last.
func nameOrder(names []string, to Receiver) (name string, later []string) {
	switch n := len(names) - 1; {
	case n < 0:
		return "", nil
	case isLayout(to):
		return names[0], names[1:]
	default:
		return names[n], names[:n]
	}
}

// has says whether a source has the image with this id already, whole.
func (o *Ops) has(ctx context.Context, to Receiver, id string) bool {
	snapshot, err := o.opt.Catalog.Refresh(ctx)
	if err != nil {
		o.log.Debug("listing before loading", "error", redact(err.Error()))
	}
	entry := snapshot.ByID(id)
	return entry != nil && slices.ContainsFunc(entry.Held, func(h imgsrc.Held) bool { return h.Source.Name() == to.Name() && isWhole(ctx, h.Image) })
}

// meant returns what is loaded of what does not come with all of its images: of an index the image for the platform that is
// meant.
func (o *Ops) meant(ctx context.Context, img loadable, platform *imgsrc.Platform) (imgsrc.Held, error) {
	src, sys := img.source(nil), new(types.SystemContext)
	o.choose(sys, platform)
	for depth := 0; src.held.Desc().Lists != nil && depth < maxNested; depth++ {
		var err error
		if src.held, err = o.platformOf(ctx, src, img, sys); err != nil {
			return imgsrc.Held{}, err
		}
	}
	return src.held, nil
}

// platformOf returns the image of an index for the platform that is meant.
func (o *Ops) platformOf(ctx context.Context, src *source, img loadable, sys *types.SystemContext) (imgsrc.Held, error) {
	text, mediaType, err := src.GetManifest(ctx, nil)
	if err != nil {
		return imgsrc.Held{}, err
	}
	list, err := manifest.ListFromBlob(text, mediaType)
	if err != nil {
		return imgsrc.Held{}, fail(imgsrc.ErrDamaged, "reading index %s: %s", img.Desc().Digest, err)
	}
	d, err := list.ChooseInstance(sys)
	if err != nil {
		return imgsrc.Held{}, err
	}
	if other := img.find(d); other != nil {
		return imgsrc.Held{Listed: *other, Source: img.Source}, nil
	}
	return imgsrc.Held{}, fail(imgsrc.ErrNotFound, "image %s of the index is not in it", d)
}

// addNames gives names to an image that has been put into a source.
func (o *Ops) addNames(ctx context.Context, to Receiver, id string, names []string) error {
	return o.addNamesOf(ctx, to, id, "", names)
}

// addNamesOf gives names to an image that is in a source: to the manifest with this digest, if it has that, or to its first.
func (o *Ops) addNamesOf(ctx context.Context, to Receiver, id string, d digest.Digest, names []string) error {
	if len(names) == 0 {
		return nil
	}
	var its []imgsrc.Held
	if entry := o.opt.Catalog.Snapshot().ByID(id); entry != nil {
		its = slices.DeleteFunc(slices.Clone(entry.Held), func(h imgsrc.Held) bool { return h.Source.Name() != to.Name() })
	}
	err := error(fail(imgsrc.ErrNotFound, "%s does not list the image any more", to.Name()))
	if len(its) > 0 {
		same := slices.IndexFunc(its, func(h imgsrc.Held) bool { return h.Desc().Digest == d })
		err = o.addNamesTo(ctx, to, its[max(same, 0)], names)
	}
	if err != nil {
		return fmt.Errorf("the image is there, but does not have %s: %w", strings.Join(names, " "), err)
	}
	return nil
}

func (o *Ops) addNamesTo(ctx context.Context, to Receiver, held imgsrc.Held, names []string) error {
	names = slices.DeleteFunc(slices.Clone(names), func(name string) bool { return slices.Contains(held.Names, name) })
	if len(names) == 0 { // a store writes all of its list anew for each image
		return nil
	}
	tagger, ok := to.(imgsrc.Tagger)
	if !ok {
		return fail(imgsrc.ErrUnsupported, "%s takes one name for an image", to.Name())
	}
	o.others.own("", names...)
	if err := tagger.Tag(ctx, held.Desc(), names, nil); err != nil {
		return err
	}
	o.show(ctx, to, held.Desc().ID, "")
	return nil
}

// arrivalLocalHint says what to do about an error of loading.
func arrivalLocalHint(err error) string {
	var part *damagedPart
	switch {
	case errors.As(err, &part):
		return part.hint
	case rejected(err):
		return "the signature policy (policy.json) does not let this image in"
	case errors.Is(err, syscall.ENOSPC):
		return "make room where the images are, or where TMPDIR is (/var/tmp)"
	case errors.Is(err, fs.ErrPermission):
		return "it must be readable for the user of the mount"
	}
	return ""
}
