package ops

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/imgfs/imgfs/imgsrc"
)

// remove carries out the removal of an image, and of those without a name that it was made from, as podman rmi does.
func (o *Ops) remove(ctx context.Context, r Request) error {
	op := operation{kind: "remove", doing: "removing", request: r, start: time.Now(), hint: roomHint}
	if err := o.refuse(r); err != nil {
		return o.done(op, err)
	}
	snap, entry, err := o.image(ctx, r.Image)
	if err != nil {
		return o.done(op, err)
	}
	for parent := o.parentOf(ctx, snap, entry); ; {
		if err := o.removeEverywhere(ctx, entry); err != nil {
			return o.done(op, endedBy(ctx, err))
		}
		op.reference = strings.Join(namesOfAll(entry), " ")
		o.succeeded(op)
		if snap, err = o.opt.Catalog.Refresh(ctx); err != nil {
			o.log.Warn("listing after removing", "image", entry.ID, "error", redact(err.Error()))
		}
		if entry = snap.ByID(parent); entry == nil || !o.dangling(ctx, snap, entry) {
			return nil
		}
		op.request.Image, op.start = entry.ID, time.Now()
		parent = o.parentOf(ctx, snap, entry)
	}
}

// removeEverywhere removes an image from all its sources that images can be removed from. Where another one has it as well
// it is still there afterwards.
func (o *Ops) removeEverywhere(ctx context.Context, entry *imgsrc.Entry) error {
	for _, h := range entry.Held {
		if len(h.Containers) > 0 {
			return fail(imgsrc.ErrInUse, "container %s uses it: remove that first, with podman rm or buildah rm", strings.Join(h.Containers, ", "))
		}
	}
	removed := false
	var refused error
	asked := map[imgsrc.Source]bool{}
	for _, h := range entry.Held {
		if asked[h.Source] {
			continue
		}
		asked[h.Source] = true
		remover, ok := h.Source.(imgsrc.Remover)
		if !ok {
			refused = cmp.Or(refused, notRemovable(h.Source))
			continue
		}
		var manifests []imgsrc.Desc
		for _, other := range entry.Held {
			if other.Source == h.Source {
				manifests = append(manifests, other.Desc())
			}
		}
		switch err := remover.Remove(ctx, manifests, namesIn(entry, h.Source)); {
		case errors.Is(err, imgsrc.ErrReadOnly):
			refused = cmp.Or(refused, err)
		case err != nil:
			return err
		default:
			removed = true
		}
	}
	if removed {
		return nil
	}
	return refused
}

// notRemovable says what to do instead.
func notRemovable(src imgsrc.Source) error {
	instead := "remove the file or directory itself"
	switch kind, _, _ := strings.Cut(src.Name(), ":"); kind {
	case "docker-daemon":
		instead = "remove them with docker rmi"
	case "docker":
		instead = "remove them with the registry's own means"
	}
	return fail(imgsrc.ErrUnsupported, "images cannot be removed from %s: %s", src.Name(), instead)
}

// namesOfAll are the names that an image has in all its sources, each once.
func namesOfAll(entry *imgsrc.Entry) []string {
	var names []string
	for _, h := range entry.Held {
		names = append(names, h.Names...)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// parentOf returns the id of the image that this one was made from, if it may have to go as well; else nothing.
func (o *Ops) parentOf(ctx context.Context, snap *imgsrc.Snapshot, entry *imgsrc.Entry) string {
	candidates := slices.DeleteFunc(slices.Clone(snap.PerhapsParents(entry)), func(c *imgsrc.Entry) bool {
		return !keepsIntermediates(c) || !shareSource(c, entry)
	})
	if len(candidates) == 0 {
		return ""
	}
	mine, err := lineage(ctx, entry)
	if err != nil {
		return ""
	}
	for _, c := range candidates {
		if its, err := lineage(ctx, c); err == nil && its.IsParentOf(mine) {
			return c.ID
		}
	}
	return ""
}

// dangling says whether nobody needs an image any more: it has no name, and no container was made from it, nor an image in one of
// its sources. What others have in a registry or an archive needs nothing of a store. What cannot be told is no.
func (o *Ops) dangling(ctx context.Context, snap *imgsrc.Snapshot, entry *imgsrc.Entry) bool {
	if !keepsIntermediates(entry) || len(entry.TagNames()) > 0 {
		return false
	}
	for _, h := range entry.Held {
		if len(h.Containers) > 0 {
			return false
		}
	}
	mine, err := lineage(ctx, entry)
	if err != nil {
		return false
	}
	for _, c := range snap.PerhapsChildren(entry) {
		if !shareSource(c, entry) {
			continue
		}
		if its, err := lineage(ctx, c); err != nil || mine.IsParentOf(its) {
			return false
		}
	}
	return true
}

// keepsIntermediates says whether all sources of an image are of the kind that keeps what others were made from.
func keepsIntermediates(entry *imgsrc.Entry) bool {
	return !slices.ContainsFunc(entry.Held, func(h imgsrc.Held) bool {
		r, ok := h.Source.(imgsrc.Remover)
		return !ok || !r.Intermediates()
	})
}

// shareSource says whether one source has both images.
func shareSource(a, b *imgsrc.Entry) bool {
	return slices.ContainsFunc(a.Held, func(h imgsrc.Held) bool {
		return slices.ContainsFunc(b.Held, func(other imgsrc.Held) bool { return other.Source == h.Source })
	})
}

func lineage(ctx context.Context, entry *imgsrc.Entry) (imgsrc.Lineage, error) {
	facts, err := imgsrc.Load(ctx, entry.First().Image)
	if err != nil {
		return imgsrc.Lineage{}, err
	}
	return facts.Lineage(), nil
}
