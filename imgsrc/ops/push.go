package ops

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/manifest"

	"github.com/imgfs/imgfs/imgsrc"
)

// A pushJob is one push of one image.
type pushJob struct {
	line     pushLine
	snapshot *imgsrc.Snapshot
	entry    *imgsrc.Entry
	held     imgsrc.Held // the one of it that is pushed
	task     *task       // nil: nobody wants to know
}

// push carries out a write to an image's push.
func (o *Ops) push(ctx context.Context, r Request) error {
	op := operation{kind: "push", doing: "pushing", request: r, start: time.Now()}
	if err := o.refuse(r); err != nil {
		return o.done(op, err)
	}
	lines, err := parsePushes(r.Lines, o.resolver(r))
	if err != nil {
		return o.done(op, err)
	}
	snapshot, entry, err := o.image(ctx, r.Image)
	if err != nil {
		return o.done(op, err)
	}
	for i, line := range lines {
		to := line.dest.String()
		op := operation{kind: "push", doing: "pushing", to: to, reference: to, hint: line.dest.hint, request: r, start: time.Now()}
		if line.dest.kind().file {
			op.status = "save"
		}
		run := func(ctx context.Context, t *task) error {
			if name, here := nameHere(line.dest); here { // which may be a source of this mount, too
				defer o.others.hold(name)()
				defer o.showPushed(ctx, r.Image, line.dest, name)
			}
			if d, ok := line.dest.(*registry); ok {
				defer o.tellPushed(d.named.String())
			}
			return t.work(ctx, func() error { return o.copy(ctx, pushJob{line, snapshot, entry, entry.First(), t}) })
		}
		carryOut := o.waitFor
		if !line.wait {
			carryOut = o.background
		}
		err := carryOut(ctx, op, sameLine(op, to, r.Lines[i]), run)
		if err != nil {
			return err
		}
	}
	return nil
}

// nameHere returns the name that a push gives to an image on this machine; not here if it goes elsewhere, or into a file.
func nameHere(dest destination) (name string, here bool) {
	switch d := dest.(type) {
	case *storeName:
		return d.named.String(), true
	case *layoutDir:
		return d.name, true
	case *engine:
		return d.named.String(), true
	}
	return "", false
}

// showPushed makes visible in the tree what was pushed into one of its own sources, as this mount's doing.
func (o *Ops) showPushed(ctx context.Context, id string, dest destination, name string) {
	o.others.own(id, name)
	if _, isEngine := dest.(*engine); isEngine {
		for _, src := range o.opt.Catalog.Sources() {
			if told, ok := src.(interface{ Changed() }); ok { // it knows of what others do by events alone, which come later
				told.Changed()
			}
		}
	}
	if _, err := o.opt.Catalog.Refresh(context.WithoutCancel(ctx)); err != nil {
		o.log.Warn("listing after pushing", "image", id, "error", redact(err.Error()))
	}
}

// tellPushed tells the sources of a name that a registry has now, or may have: one of them may have asked for it in vain.
func (o *Ops) tellPushed(name string) {
	for _, src := range o.opt.Catalog.Sources() {
		if told, ok := src.(interface{ Pushed(names ...string) }); ok {
			told.Pushed(name)
		}
	}
}

// An instancer is a source that has images of an index that it does not list.
type instancer interface {
	// Instance returns the image d of an index. Error: imgsrc.ErrNotFound.
	Instance(ctx context.Context, index imgsrc.Desc, d digest.Digest) (imgsrc.Image, error)
}

// instance returns the image with this manifest, for an index: of the same source, or of any. Error: imgsrc.ErrNotFound.
func (p *pushJob) instance(ctx context.Context, d digest.Digest) (imgsrc.Image, error) {
	var other imgsrc.Image
	for _, entry := range p.snapshot.Entries {
		for _, held := range entry.Held {
			if held.Desc().Digest != d || held.Desc().Damaged != nil {
				continue
			}
			if held.Source == p.held.Source {
				return held, nil
			}
			other = held
		}
	}
	if other != nil {
		return other, nil
	}
	if source, ok := p.held.Source.(instancer); ok {
		return source.Instance(ctx, p.held.Desc(), d)
	}
	return nil, fail(imgsrc.ErrNotFound, "%s does not have it", p.held.Source.Name())
}

// maxNamed is how many images an error names.
const maxNamed = 5

// whole fails if the image is an index and some of its images cannot be had. Error: imgsrc.ErrNotFound.
func (p *pushJob) whole(ctx context.Context, src *source) error {
	facts, err := imgsrc.Load(ctx, p.held)
	if err != nil || facts.Kind != imgsrc.KindIndex {
		return err
	}
	var missing []string
	for _, child := range facts.Children {
		img, err := src.image(ctx, &child.Digest)
		switch {
		case err == nil && manifest.MIMETypeIsMultiImage(img.Desc().MediaType):
			return fail(imgsrc.ErrUnsupported, "all=true: the index lists another index, %s: push that one, or leave all=true out for the image of the mount's platform", child.Digest)
		case err == nil:
		case errors.Is(err, imgsrc.ErrNotFound):
			missing = append(missing, nameOf(child))
		default:
			return err
		}
	}
	if len(missing) == 0 {
		return nil
	}
	text := strings.Join(missing[:min(len(missing), maxNamed)], ", ")
	if more := len(missing) - maxNamed; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return fail(imgsrc.ErrNotFound, "all=true: %d of the index's %d images are not in %s: %s: leave all=true out, or get them first",
		len(missing), len(facts.Children), p.held.Source.Name(), text)
}

// nameOf is an image of an index in an error's text.
func nameOf(child imgsrc.Child) string {
	if child.Platform == nil || child.Platform.OS == "" {
		return string(child.Digest)
	}
	platform := child.Platform.OS + "/" + child.Platform.Architecture
	if child.Platform.Variant != "" {
		platform += "/" + child.Platform.Variant
	}
	return fmt.Sprintf("%s (%.19s)", platform, child.Digest)
}
