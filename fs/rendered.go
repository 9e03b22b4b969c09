package fs

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	iofs "io/fs"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/imgfs/imgfs/imgsrc"
)

// renderedBytes is how much memory the rendered images may take together. What is thrown out is computed again, to the
// same bytes.
const renderedBytes = 24 << 20

// What a rendering takes beside its files: a manifest and a config take some times their length when they are decoded.
const (
	renderedBase    = 4 << 10
	renderedDecoded = 3
)

// damagedKept is how long an image of which something cannot be read stays so, before it is looked at again: it may have
// been repaired, and to look at it for each request would be slow.
const damagedKept = time.Second

// rendered is all that is computed from an image's manifest and config: the files of its directory as they are read.
type rendered struct {
	facts       *imgsrc.Facts
	created     time.Time
	files       [][]byte // by row id
	errs        []error
	annotations []keyed
	labels      []keyed
	noKeys      map[uint16]error // why there are no annotations or labels, by view
	damaged     bool             // some of it could not be had: not to be kept for long
	sketched    bool             // it is of a sketch
	until       time.Time
	bytes       int
	ahead       aheadOf // which files the kernel has been given
	layersAhead []aheadOf

	platform *imgsrc.Child            // of an index, the entry that is meant where none is named
	full     atomic.Pointer[rendered] // the same with diff ids, if they had to be found out
}

// keyed is one annotation or label as a file.
type keyed struct {
	name  string
	value []byte
}

// isRendered says whether the image's files are there without work.
func (img *image) isRendered() bool { return img.f.rendered.get(img.slot) != nil }

// render returns the image's files. It is done once for all who ask at the same time, and goes on if the one who asked
// leaves.
func (img *image) render(ctx context.Context) (*rendered, error) {
	if r := img.f.rendered.get(img.slot); r != nil {
		return r, nil
	}
	res, err := img.shared(ctx, fmt.Sprintf("render %d", img.slot), func(ctx context.Context) (any, error) { return img.doRender(ctx) })
	if err != nil {
		return nil, err
	}
	return res.(*rendered), nil
}

func (img *image) doRender(ctx context.Context) (*rendered, error) {
	img.bare.begin()
	defer img.bare.end()
	e, err := img.current()
	if err != nil {
		return nil, err
	}
	facts, err := loadFacts(ctx, img.firstOf(e))
	if err != nil {
		return nil, err
	}
	r := img.renderFacts(facts)
	if r.damaged {
		r.until = time.Now().Add(damagedKept)
	} else {
		created := r.created // not r's, which would keep all of r
		img.mu.Lock()
		img.createdAt = &created
		img.mu.Unlock()
	}
	img.mend(r)
	img.sayUnread(r)
	img.f.rendered.put(img.slot, r)
	img.noteRead(r, e)
	return r, nil
}

// loadFacts reads what an image's own bytes say.
func loadFacts(ctx context.Context, of imgsrc.Held) (*imgsrc.Facts, error) {
	facts, err := imgsrc.Load(ctx, of)
	if err != nil {
		return nil, err
	}
	// What the source has recorded costs nothing; to read the layers for it is another matter.
	if _, ok := of.Image.(imgsrc.DiffIDer); ok && facts.LacksDiffIDs() {
		if ids, err := imgsrc.FindDiffIDs(ctx, of.Image, len(facts.Layers)); err == nil {
			facts = facts.WithDiffIDs(ids)
		}
	}
	return facts, nil
}

// isDamaged says whether something of an image could not be read: it may be there when it is read again.
func isDamaged(facts *imgsrc.Facts) bool {
	for _, err := range []error{facts.ManifestErr, facts.ConfigErr} {
		if err != nil && !errors.Is(err, imgsrc.ErrAbsent) {
			return true
		}
	}
	return false
}

// mend moves the time of the listing when an image of which something could not be read has other files now than then.
func (img *image) mend(r *rendered) {
	shape := r.shape()
	img.mu.Lock()
	defer img.mu.Unlock()
	if was := img.damagedShape; was != "" && was != shape {
		img.listing = later(img.listing, time.Now())
		img.mendedAt = img.listing
	}
	img.damagedShape = ""
	if r.damaged {
		img.damagedShape = shape
	}
}

// renderFacts computes the files that say what the image's own bytes say.
func (img *image) renderFacts(facts *imgsrc.Facts) *rendered {
	last := table[len(table)-1].id
	r := &rendered{facts: facts, files: make([][]byte, last+1), errs: make([]error, last+1), damaged: isDamaged(facts)}
	if facts.Kind == imgsrc.KindIndex {
		r.platform = imgsrc.Choose(facts.Children, img.f.platform)
	}
	r.bytes = renderedBase + renderedDecoded*(len(facts.Manifest)+len(facts.Config))
	r.layersAhead = make([]aheadOf, len(facts.Layers))
	r.created, _ = facts.Created()
	for i := range table {
		row := &table[i]
		if row.body != nil {
			file, err := row.body(facts)
			if cap(file) > len(file)+len(file)/8 { // it was written into a buffer that has grown
				file = append(make([]byte, 0, len(file)), file...)
			}
			r.files[row.id], r.errs[row.id] = file, asUnread(err)
			r.bytes += cap(file)
		}
	}
	r.noKeys = map[uint16]error{}
	r.annotations = r.keyedOf(viewAnnotations, imgsrc.Annotations)
	r.labels = r.keyedOf(viewLabels, imgsrc.Labels)
	return r
}

func (r *rendered) keyedOf(view uint16, of func(*imgsrc.Facts) (map[string]string, error)) []keyed {
	m, err := of(r.facts)
	if err != nil {
		r.noKeys[view] = asUnread(err)
		return nil
	}
	var all []keyed
	for key, value := range m {
		name, ok := imgsrc.EscapeKey(key)
		if !ok {
			continue // it is in the .json
		}
		if value != "" {
			value += "\n"
		}
		all = append(all, keyed{name, []byte(value)})
		r.bytes += len(name) + len(value) + 64
	}
	slices.SortFunc(all, func(a, b keyed) int { return strings.Compare(a.name, b.name) })
	return all
}

// withDiffIDs returns the rendering of an image whose layers were asked for their diff ids: r itself, if one of them is
// not to be had. If it is only not there, this may change.
func (img *image) withDiffIDs(ctx context.Context, r *rendered) (*rendered, error) {
	if full := r.full.Load(); full != nil {
		return full, nil
	}
	res, err := img.shared(ctx, fmt.Sprintf("diff ids %d", img.slot), func(ctx context.Context) (any, error) {
		e, err := img.current()
		if err != nil {
			return nil, err
		}
		full := r
		ids, err := imgsrc.FindDiffIDs(ctx, img.firstOf(e).Image, len(r.facts.Layers))
		switch {
		case errors.Is(err, iofs.ErrNotExist):
			return r, nil
		case err == nil:
			full = img.renderFacts(r.facts.WithDiffIDs(ids))
		case !errors.Is(err, imgsrc.ErrAbsent) && !errors.Is(err, imgsrc.ErrUnsupported):
			return nil, err
		}
		r.full.Store(full)
		return full, nil
	})
	if err != nil {
		return nil, err
	}
	return res.(*rendered), nil
}

// renderedCache keeps the most recently used renderings.
type renderedCache struct {
	mu     sync.Mutex
	limit  int
	bytes  int
	order  *list.List // of cachedRendering, most recent first
	bySlot map[uint32]*list.Element
}

type cachedRendering struct {
	slot uint32
	r    *rendered
}

func newRenderedCache(limit int) *renderedCache {
	return &renderedCache{limit: limit, order: list.New(), bySlot: map[uint32]*list.Element{}}
}

func (c *renderedCache) get(slot uint32) *rendered {
	c.mu.Lock()
	defer c.mu.Unlock()
	el := c.bySlot[slot]
	if el == nil {
		return nil
	}
	r := el.Value.(cachedRendering).r
	if r.damaged && time.Now().After(r.until) {
		c.drop(el)
		return nil
	}
	c.order.MoveToFront(el)
	return r
}

func (c *renderedCache) put(slot uint32, r *rendered) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.bySlot[slot] != nil {
		return
	}
	c.bySlot[slot] = c.order.PushFront(cachedRendering{slot, r})
	c.bytes += r.bytes
	for c.bytes > c.limit && c.order.Len() > 1 {
		c.drop(c.order.Back())
	}
}

func (c *renderedCache) forget(slot uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if el := c.bySlot[slot]; el != nil {
		c.drop(el)
	}
}

// drop throws a rendering out. The cache is locked.
func (c *renderedCache) drop(el *list.Element) {
	old := c.order.Remove(el).(cachedRendering)
	delete(c.bySlot, old.slot)
	c.bytes -= old.r.bytes
}
