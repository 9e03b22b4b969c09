package ops

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/image/v5/types"

	"github.com/imgfs/imgfs/imgsrc"
)

// find returns what the listing has under a digest, or nil.
func (l *loadable) find(d digest.Digest) *imgsrc.Listed {
	for i := range l.list.Images {
		if l.list.Images[i].Desc().Digest == d {
			return &l.list.Images[i]
		}
	}
	return nil
}

// A part is an image of an index that is loaded with all of them.
type part struct {
	imgsrc.Held
	as       digest.Digest    // its manifest's, by which the index lists it
	text     []byte           // that manifest; nil: its own
	platform *imgsrc.Platform // as the index has it; nil if it has none
}

// isAttestation says whether an entry of an index is what a builder has put there about another one.
func isAttestation(platform *imgsrc.Platform) bool {
	return platform != nil && platform.OS == "unknown"
}

// gather finds the images of an index that is loaded with all of them. One that lists other indexes is not: the copying
// library would take one image of each. restored says that the images, and the index, are to be what they were.
func (o *Ops) gather(ctx context.Context, l *loadable, restored bool) error {
	facts, err := imgsrc.Load(ctx, l)
	if err != nil {
		return err
	}
	for _, c := range facts.Children {
		img := l.find(c.Digest)
		switch {
		case slices.ContainsFunc(l.below, func(p part) bool { return p.as == c.Digest }):
		case img == nil && !isAttestation(c.Platform):
			l.missing = append(l.missing, c.Digest)
		case img == nil: // it may have stayed where it was
		case img.Desc().Damaged != nil:
			return l.damagedPart(c.Digest, c.Platform, img.Desc().Damaged)
		case img.Desc().Lists != nil:
			l.below, l.missing = nil, nil
			o.loadWarning("the index %s lists other indexes: of it only the image for the mount's platform is loaded", l)
			return nil
		default:
			l.below = append(l.below, part{Held: imgsrc.Held{Listed: *img, Source: l.Source}, as: c.Digest, platform: c.Platform})
		}
	}
	if !restored {
		return nil
	}
	if d := l.Desc(); d.Original == d.Digest { // it did not have them before either
		l.missing = nil
	}
	return l.restore(ctx)
}

// restore has an index be loaded as what it was before oci/ made it anew, with the manifests that its images had, unless one of
// them does not know which that was. What comes last stands for an image in a store, and what is listed first did.
func (l *loadable) restore(ctx context.Context) error {
	text, err := originalText(ctx, l.Held)
	if text == nil || err != nil {
		return err
	}
	list, err := manifest.ListFromBlob(text, manifest.GuessMIMEType(text))
	if err != nil {
		return nil // nothing that oci/ would write: the index is what it is
	}
	var below []part
	for _, p := range l.below {
		known := len(below)
		for _, img := range slices.Backward(l.list.Images) {
			d := img.Desc()
			if d.Digest != p.as {
				continue
			}
			one := part{Held: imgsrc.Held{Listed: img, Source: l.Source}, as: d.Digest, platform: p.platform}
			if slices.Contains(list.Instances(), d.Original) {
				one.as = d.Original
				if one.text, err = original(ctx, one.Held); err != nil {
					return err
				}
			}
			if (one.text != nil || one.as == d.Digest && slices.Contains(list.Instances(), d.Digest)) && !slices.ContainsFunc(below, func(b part) bool { return b.as == one.as }) {
				below = append(below, one)
			}
		}
		if len(below) == known {
			return nil
		}
	}
	l.text, l.below = text, below
	return nil
}

// originalText returns the manifest or index that an image had before oci/ made another of it; nil if it is the image's own.
func originalText(ctx context.Context, img imgsrc.Held) ([]byte, error) {
	converted, ok := img.Image.(imgsrc.Converted)
	if !ok {
		return nil, nil
	}
	text, err := converted.Original(ctx)
	if errors.Is(err, imgsrc.ErrAbsent) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the original manifest of %s: %w", img.Desc().Digest, err)
	}
	return text, nil
}

// original is originalText of an image, and nil also where that is not of the same config and as many layers.
func original(ctx context.Context, img imgsrc.Held) ([]byte, error) {
	text, err := originalText(ctx, img)
	if text == nil || err != nil {
		return nil, err
	}
	facts, err := imgsrc.Load(ctx, img)
	if err != nil {
		return nil, err
	}
	was, err := manifest.FromBlob(text, manifest.GuessMIMEType(text))
	if err != nil || was.ConfigInfo().Digest != img.Desc().Config || len(was.LayerInfos()) != len(facts.Layers) {
		return nil, nil //nolint:nilerr // an index, schema 1, or nothing that oci/ would write: the image is what it is
	}
	return text, nil
}

// loadWarning says what is not as it was in what is loaded. The format has a place for how that is called.
func (o *Ops) loadWarning(format string, l *loadable) {
	what := string(l.Desc().Digest)
	if len(l.names) > 0 {
		what = quote(l.names[0])
	}
	text := strings.Replace(format, "%s", what, 1) // there may be a path in it, with any signs
	o.log.Warn("loading", "error", text)
	o.Record("load-warning", "", text)
}

// parts are what is read of it, one by one.
func (l *loadable) parts() []loadable {
	if l.below == nil {
		return []loadable{*l}
	}
	all := make([]loadable, len(l.below))
	for i, p := range l.below {
		all[i] = loadable{Held: p.Held, list: l.list}
	}
	return all
}

// isOCI says whether it is an index that a layout can keep as it is.
func (l *loadable) isOCI() bool {
	return l.below != nil && l.Desc().MediaType == imgspecv1.MediaTypeImageIndex &&
		!slices.ContainsFunc(l.below, func(p part) bool { return p.Desc().MediaType != imgspecv1.MediaTypeImageManifest })
}

// digests are those of the images of an index that are there.
func (l *loadable) digests() []digest.Digest {
	var all []digest.Digest
	for _, p := range l.below {
		all = append(all, p.Desc().Digest)
	}
	return all
}

// hasAll says whether a source has an image, and all of the images of an index that are to come with it.
func (o *Ops) hasAll(ctx context.Context, to Receiver, img *loadable) bool {
	return o.has(ctx, to, img.Desc().ID) && !slices.ContainsFunc(img.below, func(p part) bool { return !o.hasManifest(ctx, to, p) })
}

// hasManifest says whether a source has an image, by the very manifest that it is to have, and that one whole.
func (o *Ops) hasManifest(ctx context.Context, to Receiver, p part) bool {
	if !o.has(ctx, to, p.Desc().ID) {
		return false
	}
	entry := o.opt.Catalog.Snapshot().ByID(p.Desc().ID)
	return entry != nil && slices.ContainsFunc(entry.Held, func(h imgsrc.Held) bool {
		return h.Source.Name() == to.Name() && h.Desc().Digest == p.as && isWhole(ctx, h.Image)
	})
}

// loadIndex loads the images of an index one by one, and then the index. What is no image (the attestations that builders put
// beside them) is left out, as with a pull.
func (o *Ops) loadIndex(ctx context.Context, img loadable, plan *blobPlan, to Receiver, into indexReceiver, t *task) (id string, err error) {
	ids := map[digest.Digest]string{}
	for _, p := range img.below {
		facts, err := imgsrc.Load(ctx, p)
		if err != nil {
			return "", err
		}
		if !unpackable(facts) {
			if !isAttestation(p.platform) {
				o.loadWarning("of the index %s "+artifactText(p.as, to), &img)
			}
			continue
		}
		if id, err = o.loadPart(ctx, p, img.list, plan, to, t); err != nil {
			return "", fmt.Errorf("image %s of the index: %w", p.as, err)
		}
		ids[p.as], ids[p.Desc().Digest] = id, id
	}
	if len(img.missing) > 0 {
		return o.loadedWithout(ctx, img, ids, to)
	}
	text := img.text
	if text == nil {
		if text, err = img.Manifest(ctx); err != nil {
			return "", err
		}
	}
	from := ""
	name, later := nameOrder(img.names, to)
	if named, err := reference.ParseNormalizedNamed(name); err == nil {
		from = "docker://" + named.Name()
	}
	if id, err = into.AddIndex(ctx, name, text, ids, from); err != nil {
		return "", err
	}
	o.others.own(id, name)
	o.show(ctx, to, id, name)
	return id, o.addNames(ctx, to, id, later)
}

// artifactText says of an artifact in an index that a store cannot keep it.
func artifactText(d digest.Digest, to Receiver) string {
	return fmt.Sprintf("the artifact %s was left out: %s holds images alone", d, to.Name())
}

// loadPart loads an image of an index, under the manifest by which the index lists it.
func (o *Ops) loadPart(ctx context.Context, p part, list *imgsrc.Listing, plan *blobPlan, to Receiver, t *task) (string, error) {
	one := loadable{Held: p.Held, list: list}
	src, id := one.source(t), p.Desc().ID
	if o.hasManifest(ctx, to, p) {
		return id, o.allowed(ctx, src)
	}
	sys := &types.SystemContext{BlobInfoCacheDir: os.DevNull}
	made, err := o.receive(ctx, arrival{to: to, id: id, ref: src, sys: sys, known: plan, text: p.text, task: t, watch: new(watchdog)})
	return cmp.Or(made, id), err
}

// loadOthers loads what else the image was, beside what stands for it, into a store that does not have it yet.
func (o *Ops) loadOthers(ctx context.Context, img loadable, plan *blobPlan, to Receiver, t *task) error {
	if _, keeps := to.(manifestReceiver); !keeps {
		return nil
	}
	for _, held := range slices.Backward(img.others) {
		p := part{Held: held, as: held.Desc().Original}
		text, err := original(ctx, held)
		if err != nil {
			return err
		}
		if p.text = text; text == nil {
			p.as = held.Desc().Digest
		}
		if _, err := o.loadPart(ctx, p, img.list, plan, to, t); err != nil {
			return err
		}
	}
	return nil
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

// A damagedPart is the failure of an image of an index that cannot be loaded with the others.
type damagedPart struct {
	error
	hint string
}

func (e *damagedPart) Unwrap() error { return e.error }

// damagedPart says which image of the index is damaged, and how the others are loaded without it.
func (l *loadable) damagedPart(d digest.Digest, platform *imgsrc.Platform, err error) error {
	which, place := string(d), l.Source.Name()
	if platform != nil {
		which += " (" + platform.String() + ")"
	}
	if len(l.Names) > 0 && !strings.HasSuffix(place, ":"+l.Names[0]) {
		place += ":" + l.Names[0]
	}
	hint := fmt.Sprintf("get it anew; the image of another platform can be loaded alone: echo %s platform=OS/ARCHITECTURE >pull", quote(place))
	return &damagedPart{fmt.Errorf("image %s of the index: %w", which, err), hint}
}
