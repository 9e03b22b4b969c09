package ops

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/imgfs/imgfs/imgsrc"
)

// tags carries out a write to an image's tags, or what else changes its names.
func (o *Ops) tags(ctx context.Context, r Request, change changeNames) error {
	op := operation{kind: "tag", doing: "tagging", request: r, start: time.Now(), hint: roomHint}
	add, remove, err := o.changed(ctx, r, change)
	if err != nil {
		return o.done(op, endedBy(ctx, err))
	}
	for _, name := range remove {
		op.kind, op.reference = "untag", name
		o.succeeded(op)
	}
	for _, name := range add {
		op.kind, op.reference = "tag", name
		o.succeeded(op)
	}
	if len(add)+len(remove) == 0 {
		o.errors.set(r.Image, "")
	}
	return nil
}

// endedBy is err, or why ctx ended. A source that was kept waiting for its lock says so itself.
func endedBy(ctx context.Context, err error) error {
	if ctx.Err() == nil || errors.Is(err, imgsrc.ErrLocked) {
		return err
	}
	return context.Cause(ctx)
}

// changeNames changes an image's names as lines say, and returns those that were added and removed.
type changeNames func(ctx context.Context, r Request, lines []tagLine, entry *imgsrc.Entry) (add, remove []string, err error)

// changed has change carry out a request on the image as it is now, and the tree show it.
func (o *Ops) changed(ctx context.Context, r Request, change changeNames) (add, remove []string, err error) {
	if err := o.refuse(r); err != nil {
		return nil, nil, err
	}
	lines, err := parseTags(r.Lines)
	if err != nil {
		return nil, nil, err
	}
	_, entry, err := o.image(ctx, r.Image)
	if err != nil {
		return nil, nil, err
	}
	if add, remove, err = change(ctx, r, lines, entry); err != nil || len(add)+len(remove) == 0 {
		return nil, nil, err
	}
	if _, err := o.opt.Catalog.Refresh(ctx); err != nil {
		o.log.Warn("listing after tagging", "image", r.Image, "error", redact(err.Error()))
	}
	return add, remove, nil
}

// tag changes the names, and returns those that were added and removed. The first source of the image whose names can be
// changed is the one whose names are, unless the lines are no names for it and are for another: a registry has names of its
// own only.
func (o *Ops) tag(ctx context.Context, _ Request, lines []tagLine, entry *imgsrc.Entry) (add, remove []string, err error) {
	var first error // why the first source did not take them
	asked := map[imgsrc.Source]bool{}
	for _, held := range entry.Held {
		tagger, ok := held.Source.(imgsrc.Tagger)
		if !ok || asked[held.Source] {
			continue
		}
		asked[held.Source] = true
		if _, far := held.Image.(imgsrc.Remote); far && errors.Is(first, imgsrc.ErrReadOnly) {
			continue // whoever tags in a store that is read-only does not mean the registry
		}
		add, remove, err = netEffect(lines, tagger, namesIn(entry, held.Source))
		if err == nil && len(add)+len(remove) == 0 {
			return nil, nil, nil
		}
		if err == nil {
			err = tagAll(ctx, tagger, entry, held, add, remove)
		}
		if errors.Is(err, imgsrc.ErrReadOnly) || errors.Is(err, imgsrc.ErrInvalid) { // another source may take it
			first = cmp.Or(first, err)
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		return add, remove, nil
	}
	if first == nil {
		first = fail(imgsrc.ErrUnsupported, "%s has no names that could be changed", entry.First().Source.Name())
	}
	return nil, nil, first
}

// tagAll gives one manifest of a source the names to be added, and takes each that is to be removed from the manifest that
// has it.
func tagAll(ctx context.Context, tagger imgsrc.Tagger, entry *imgsrc.Entry, first imgsrc.Held, add, remove []string) error {
	left := slices.Clone(remove)
	for _, held := range entry.Held {
		if held.Source != first.Source || held.Desc().Digest == first.Desc().Digest {
			continue
		}
		var its []string
		left = slices.DeleteFunc(left, func(name string) bool {
			if slices.Contains(namesOf(held), name) && !slices.Contains(namesOf(first), name) {
				its = append(its, name)
				return true
			}
			return false
		})
		if len(its) > 0 {
			if err := tagger.Tag(ctx, held.Desc(), nil, its); err != nil {
				return err
			}
		}
	}
	if len(add)+len(left) == 0 {
		return nil
	}
	return tagger.Tag(ctx, first.Desc(), add, left)
}

// namesIn returns the names that the image has in one source, whichever of its manifests has them.
func namesIn(entry *imgsrc.Entry, source imgsrc.Source) []string {
	var names []string
	for _, held := range entry.Held {
		if held.Source == source {
			names = append(names, namesOf(held)...)
		}
	}
	return names
}

// namesOf are the names that a source has for a manifest: those that it stores, or a registry's tags.
func namesOf(held imgsrc.Held) []string { return slices.Concat(held.Names, held.RemoteNames) }

// netEffect returns what the lines, one after the other, change in the names that there are: a name that is added and
// then removed is neither, and stays with the image that has it. Errors: imgsrc.ErrInvalid, and imgsrc.ErrNotFound for a
// name that is not there to be removed when its line's turn comes.
func netEffect(lines []tagLine, tagger imgsrc.Tagger, names []string) (add, remove []string, err error) {
	before := map[string]bool{}
	for _, name := range names {
		before[name] = true
	}
	after := map[string]bool{}
	var order []string // each name of the lines once, as they come
	for i, line := range lines {
		name, err := line.name, error(nil)
		if !line.remove || !before[name] { // a name that is there can go, whatever would be asked of a new one
			name, err = tagger.CheckName(line.name)
		}
		if err != nil {
			if redactWord(line.name) != line.name { // which the source's text would show
				err = fail(imgsrc.ErrInvalid, "%s is not a reference", quote(line.name))
			}
			return nil, nil, fmt.Errorf("line %d: %w", i+1, err)
		}
		has, seen := after[name]
		if !seen {
			has = before[name]
			order = append(order, name)
		}
		if line.remove && !has {
			return nil, nil, fail(imgsrc.ErrNotFound, "line %d: the image has no name %s", i+1, quote(name))
		}
		after[name] = !line.remove
	}
	changed := slices.DeleteFunc(order, func(name string) bool { return after[name] == before[name] })
	for _, name := range changed {
		if after[name] {
			add = append(add, name)
		} else {
			remove = append(remove, name)
		}
	}
	return add, remove, nil
}
