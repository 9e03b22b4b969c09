package ops

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/types"

	"github.com/imgfs/imgfs/imgsrc"
)

// maxNested is how deep an index of indexes is searched for the image of a platform. One in another is all that tools make.
const maxNested = 8

// find returns what the listing has under a digest, or nil.
func (l *loadable) find(d digest.Digest) *imgsrc.Listed {
	for i := range l.list.Images {
		if l.list.Images[i].Desc().Digest == d {
			return &l.list.Images[i]
		}
	}
	return nil
}

// gather finds the images of an index that is loaded with all of them. One that lists other indexes is not: the copying
// library would take one image of each.
func (o *Ops) gather(ctx context.Context, l *loadable) error {
	facts, err := imgsrc.Load(ctx, l)
	if err != nil {
		return err
	}
	for _, c := range facts.Children {
		img := l.find(c.Digest)
		switch {
		case slices.ContainsFunc(l.below, func(h imgsrc.Held) bool { return h.Desc().Digest == c.Digest }):
		case img == nil && (c.Platform == nil || c.Platform.OS != "unknown"):
			l.missing = append(l.missing, c.Digest)
		case img == nil: // what was attested of one may have stayed where it was
		case img.Desc().Damaged != nil:
			return fmt.Errorf("image %s of the index: %w", c.Digest, img.Desc().Damaged)
		case img.Desc().Lists != nil:
			l.below, l.missing = nil, nil
			o.loadWarning("the index %s lists other indexes: of it only the image for the mount's platform is loaded", l)
			return nil
		default:
			l.below = append(l.below, imgsrc.Held{Listed: *img, Source: l.Source})
		}
	}
	return nil
}

// loadWarning says what is not as it was in what is loaded. The format has a place for how that is called.
func (o *Ops) loadWarning(format string, l *loadable) {
	what := string(l.Desc().Digest)
	if len(l.names) > 0 {
		what = quote(l.names[0])
	}
	text := fmt.Sprintf(format, what)
	o.log.Warn("loading", "error", text)
	o.Record("load-warning", "", text)
}

// parts are what is read of it, one by one.
func (l *loadable) parts() []loadable {
	if l.below == nil {
		return []loadable{*l}
	}
	all := make([]loadable, len(l.below))
	for i, held := range l.below {
		all[i] = loadable{Held: held, list: l.list}
	}
	return all
}

// isOCI says whether it is an index that a layout can keep as it is.
func (l *loadable) isOCI() bool {
	return l.below != nil && l.Desc().MediaType == imgspecv1.MediaTypeImageIndex &&
		!slices.ContainsFunc(l.below, func(h imgsrc.Held) bool { return h.Desc().MediaType != imgspecv1.MediaTypeImageManifest })
}

// digests are those of the images of an index that are there.
func (l *loadable) digests() []digest.Digest {
	var all []digest.Digest
	for _, held := range l.below {
		all = append(all, held.Desc().Digest)
	}
	return all
}

// hasAll says whether a source has an image, and all of the images of an index that are to come with it.
func (o *Ops) hasAll(ctx context.Context, to Receiver, img *loadable) bool {
	return o.has(ctx, to, img.Desc().ID) && !slices.ContainsFunc(img.below, func(h imgsrc.Held) bool { return !o.hasManifest(ctx, to, h) })
}

// hasManifest says whether a source has an image, by this very manifest.
func (o *Ops) hasManifest(ctx context.Context, to Receiver, img imgsrc.Image) bool {
	if !o.has(ctx, to, img.Desc().ID) {
		return false
	}
	entry := o.opt.Catalog.Snapshot().ByID(img.Desc().ID)
	return entry != nil && slices.ContainsFunc(entry.Held, func(h imgsrc.Held) bool {
		return h.Source.Name() == to.Name() && h.Desc().Digest == img.Desc().Digest
	})
}

// loadIndex loads the images of an index one by one, and then the index. What is no image (the attestations that builders put
// beside them) is left out, as with a pull.
func (o *Ops) loadIndex(ctx context.Context, img loadable, plan *blobPlan, to Receiver, into indexReceiver, t *task) (id string, err error) {
	ids := map[digest.Digest]string{}
	for _, part := range img.parts() {
		facts, err := imgsrc.Load(ctx, part)
		if err != nil {
			return "", err
		}
		if !unpackable(facts) {
			continue
		}
		d := part.Desc().Digest
		if ids[d], err = o.loadPart(ctx, part, plan, to, t); err != nil {
			return "", fmt.Errorf("image %s of the index: %w", d, err)
		}
	}
	if len(img.missing) > 0 {
		return o.loadedWithout(ctx, img, ids, to)
	}
	text, err := img.Manifest(ctx)
	if err != nil {
		return "", err
	}
	name, from := "", ""
	if len(img.names) > 0 {
		name = img.names[0]
		if named, err := reference.ParseNormalizedNamed(name); err == nil {
			from = "docker://" + named.Name()
		}
	}
	if id, err = into.AddIndex(ctx, name, text, ids, from); err != nil {
		return "", err
	}
	o.others.own(id, name)
	o.show(ctx, to, id, name)
	return id, o.addNames(ctx, to, id, img.names[min(1, len(img.names)):])
}

// loadPart loads an image of an index, under the manifest by which the index lists it.
func (o *Ops) loadPart(ctx context.Context, img loadable, plan *blobPlan, to Receiver, t *task) (string, error) {
	src, id := img.source(t), img.Desc().ID
	if o.hasManifest(ctx, to, img) {
		return id, o.allowed(ctx, src)
	}
	sys := &types.SystemContext{BlobInfoCacheDir: os.DevNull}
	made, err := o.receive(ctx, arrival{to: to, id: id, ref: src, sys: sys, known: plan, task: t, watch: new(watchdog)})
	return cmp.Or(made, id), err
}

// loadedWithout ends the load of an index that a store cannot keep, because images of it are missing: its names are those of
// the image for the mount's platform.
func (o *Ops) loadedWithout(ctx context.Context, img loadable, ids map[digest.Digest]string, to Receiver) (string, error) {
	o.show(ctx, to, "", "")
	sys := new(types.SystemContext)
	o.choose(sys, nil)
	held, err := o.platformOf(ctx, img.source(nil), img, sys)
	if err == nil && ids[held.Desc().Digest] != "" {
		o.loadWarning("the index %s was left out, its name is that of the image for the mount's platform: "+missingText(img), &img)
		id := ids[held.Desc().Digest]
		return id, o.addNames(ctx, to, id, img.names)
	}
	o.loadWarning("the index %s was left out: "+missingText(img), &img)
	for _, id := range ids {
		return id, nil
	}
	return "", nil
}

// missingText says which images of an index are not there.
func missingText(img loadable) string {
	var all []string
	for _, d := range img.missing {
		all = append(all, d.String())
	}
	return "the archive lacks " + strings.Join(all, " ") + " of it"
}
