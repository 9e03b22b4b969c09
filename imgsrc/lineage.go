package imgsrc

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash"
	"time"
)

// A Lineage says what an image was made of, in a form that two images' can be compared in.
type Lineage struct {
	layers, below      lineageSum // the diff ids, all and all but the last
	history, beforeEnd lineageSum // the history, all and without the last step
	known              bool
}

type lineageSum [16]byte

// Lineage returns an image's. An image without a config (schema 1 too: podman tells none of its parents), or of which diff
// ids or history cannot be read, has none.
func (f *Facts) Lineage() Lineage {
	if f.cfgErr != nil || f.schema1 || f.diffErr != nil && !errors.Is(f.diffErr, ErrAbsent) || len(f.Layers) > 0 && f.Layers[0].DiffID == "" {
		return Lineage{}
	}
	l := Lineage{known: true}
	h := sha256.New()
	for _, layer := range f.Layers {
		l.below = sumSoFar(h)
		writeText(h, string(layer.DiffID))
	}
	l.layers = sumSoFar(h)
	if len(f.Layers) == 0 {
		l.below = l.layers
	}
	h = sha256.New()
	for _, e := range f.history {
		l.beforeEnd = sumSoFar(h)
		t := time.Time{}
		if e.Created != nil {
			t = e.Created.time.UTC()
		}
		writeText(h, t.Format(time.RFC3339Nano))
		for _, s := range []*string{e.CreatedBy, e.Author, e.Comment} {
			if s == nil {
				s = new(string)
			}
			writeText(h, *s)
		}
		if e.EmptyLayer {
			writeText(h, "empty")
		}
	}
	l.history = sumSoFar(h)
	return l
}

func sumSoFar(h hash.Hash) lineageSum { return lineageSum(h.Sum(nil)) }

func writeText(h hash.Hash, s string) {
	h.Write(binary.AppendUvarint(nil, uint64(len(s))))
	h.Write([]byte(s))
}

// IsParentOf says whether the other image was made from this one in one step, as podman tells it: it has the same layers or
// one more, and the same history and one step more.
func (l Lineage) IsParentOf(child Lineage) bool {
	return l.known && child.known && l.history == child.beforeEnd && l.history != child.history &&
		(l.layers == child.layers || l.layers == child.below)
}

// Kin finds out which of some images were made from which, without comparing each with each. The zero value is ready.
type Kin struct {
	whole  map[kinKey]*Entry   // by what an image was made of; of several the first that was added
	before map[kinKey][]*Entry // by what it was before the last step, and whichever layer that may have made
}

// A kinKey is layers and a history.
type kinKey struct{ layers, history lineageSum }

// Add adds an image.
func (k *Kin) Add(e *Entry, l Lineage) {
	if !l.known {
		return
	}
	if k.whole == nil {
		k.whole, k.before = map[kinKey]*Entry{}, map[kinKey][]*Entry{}
	}
	if key := (kinKey{l.layers, l.history}); k.whole[key] == nil {
		k.whole[key] = e
	}
	for _, key := range l.parents() {
		k.before[key] = append(k.before[key], e)
	}
}

// parents are what an image's parent may be made of.
func (l Lineage) parents() []kinKey {
	switch {
	case !l.known || l.history == l.beforeEnd: // not one step
		return nil
	case l.below == l.layers:
		return []kinKey{{l.layers, l.beforeEnd}}
	}
	return []kinKey{{l.layers, l.beforeEnd}, {l.below, l.beforeEnd}}
}

// Parent returns the image that one of this lineage was made from: of several the first that was added, nil if there is
// none. With two images, it is as IsParentOf says.
func (k *Kin) Parent(l Lineage) *Entry {
	for _, key := range l.parents() {
		if e := k.whole[key]; e != nil {
			return e
		}
	}
	return nil
}

// Children returns the images that were made from one of this lineage, in the order in which they were added. The caller must
// not change the slice.
func (k *Kin) Children(l Lineage) []*Entry {
	if !l.known {
		return nil
	}
	return k.before[kinKey{l.layers, l.history}]
}
