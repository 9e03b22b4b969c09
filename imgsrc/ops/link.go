package ops

import (
	"cmp"
	"context"
	"errors"
	"slices"

	"github.com/imgfs/imgfs/imgsrc"
)

// Names are also changed by ln, mv and rm. What is asked for is the same as with tags, lines with + and -, but where the
// link stands says which sources can be meant.

// CheckName returns a name as the source stores it that would take it for the image with this id: a registry if remote is
// set, and only other sources if not. Without an id it is whichever source takes it. Errors: imgsrc.ErrInvalid if it can
// be a name in none of them, imgsrc.ErrUnsupported if there is none, imgsrc.ErrNotFound if there is no such image.
func (o *Ops) CheckName(id, name string, remote bool) (string, error) {
	var held []imgsrc.Held
	snap := o.opt.Catalog.Snapshot()
	if id != "" {
		entry := snap.ByID(id)
		if entry == nil {
			return "", fail(imgsrc.ErrNotFound, "the image is not there any more")
		}
		held = entry.Held
	} else {
		for _, src := range o.opt.Catalog.Sources() {
			held = append(held, imgsrc.Held{Source: src})
		}
	}
	var first error
	for _, t := range taggersOf(held, remote) {
		full, err := t.CheckName(name)
		if err == nil {
			return full, nil
		}
		first = cmp.Or(first, err)
	}
	return "", cmp.Or(first, noNames(held, remote))
}

// taggersOf returns the sources whose names can be changed, each once.
func taggersOf(held []imgsrc.Held, remote bool) []imgsrc.Tagger {
	var all []imgsrc.Tagger
	for _, h := range held {
		tagger, ok := h.Source.(imgsrc.Tagger)
		_, far := h.Image.(imgsrc.Remote)
		if ok && far == remote && !slices.Contains(all, tagger) {
			all = append(all, tagger)
		}
	}
	return all
}

// noNames says why there is no source whose names could be changed.
func noNames(held []imgsrc.Held, remote bool) error {
	switch {
	case remote:
		return fail(imgsrc.ErrReadOnly, "no registry that is a source of this mount has it: write to push instead")
	case len(held) == 0:
		return fail(imgsrc.ErrUnsupported, "this mount has no source whose names could be changed")
	}
	return fail(imgsrc.ErrUnsupported, "%s has no names that could be changed: copy the image to a store or a layout first, with push", held[0].Source.Name())
}

// link is tag for names of one kind. They are changed in the first source that has all those that are to be removed and
// takes the others; what is removed goes from the image's other sources as well, or its link would still be there.
func (o *Ops) link(ctx context.Context, r Request, lines []tagLine, entry *imgsrc.Entry) (add, remove []string, err error) {
	var first error // why the first source did not take them
	taggers := taggersOf(entry.Held, r.Remote)
	for i, tagger := range taggers {
		if add, remove, err = netEffect(lines, tagger, namesIn(entry, tagger)); err == nil && len(add)+len(remove) > 0 {
			err = tagAll(ctx, tagger, entry, heldBy(entry, tagger), add, remove)
		}
		if errors.Is(err, imgsrc.ErrReadOnly) || errors.Is(err, imgsrc.ErrInvalid) || errors.Is(err, imgsrc.ErrNotFound) {
			first = cmp.Or(first, err)
			continue
		}
		for _, other := range taggers[i+1:] {
			if err != nil {
				break
			}
			has := namesIn(entry, other)
			its := slices.DeleteFunc(slices.Clone(remove), func(name string) bool { return !slices.Contains(has, name) })
			if len(its) > 0 {
				err = tagAll(ctx, other, entry, heldBy(entry, other), nil, its)
			}
		}
		if err != nil {
			return nil, nil, err
		}
		return add, remove, nil
	}
	return nil, nil, cmp.Or(first, noNames(entry.Held, r.Remote))
}

// heldBy is an image's first manifest in one of its sources.
func heldBy(entry *imgsrc.Entry, source imgsrc.Source) imgsrc.Held {
	return entry.Held[slices.IndexFunc(entry.Held, func(h imgsrc.Held) bool { return h.Source == source })]
}
