package imgsrc

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash"
	"hash/fnv"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// What images have to do with each other: which one was made from which, and which says something about which.

// A Lineage says what an image was made of, in a form that two images' can be compared in.
type Lineage struct {
	layers, below      lineageSum // the diff ids, all and all but the last
	history, beforeEnd lineageSum // the history, all and without the last step
	known              bool
}

type lineageSum [sha256.Size]byte

// Lineage returns an image's. An image without a config (schema 1 too: podman tells none of its parents), or of which diff
// ids or history cannot be read, has none.
func (f *Facts) Lineage() Lineage {
	if f.cfgErr != nil || f.schema1 || f.diffErr != nil && !errors.Is(f.diffErr, ErrAbsent) || len(f.Layers) > 0 && f.Layers[0].DiffID == "" {
		return Lineage{}
	}
	l := Lineage{known: true}
	h := sha256.New()
	for _, layer := range f.Layers {
		h.Sum(l.below[:0])
		writeText(h, string(layer.DiffID))
	}
	h.Sum(l.layers[:0])
	if len(f.Layers) == 0 {
		l.below = l.layers
	}
	h = sha256.New()
	for _, e := range f.history {
		h.Sum(l.beforeEnd[:0])
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
	h.Sum(l.history[:0])
	return l
}

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

// ByDigest returns the image that has a manifest of this digest, or nil; of several the first.
func (s *Snapshot) ByDigest(d digest.Digest) *Entry { return s.byDigest[d] }

// AllByDigest returns the images that have a manifest of this digest. One manifest is two images in a store that has
// an id of its own for some.
func (s *Snapshot) AllByDigest(d digest.Digest) []*Entry {
	if s.byDigest[d] == nil {
		return nil
	}
	return append([]*Entry{s.byDigest[d]}, s.moreByDigest[d]...)
}

// related is computed when it is first asked for.
type related struct {
	tops      map[string][]*Entry // by the key of the topmost layer; "" for images without layers
	byLayer   map[string][]*Entry
	referrers map[*Entry][]*Entry
	ids       map[string]uint64 // for each key of tops and byLayer, a sum over the images there
}

func (s *Snapshot) related() *related {
	s.relatedOnce.Do(func() {
		r := &related{tops: map[string][]*Entry{}, byLayer: map[string][]*Entry{}, referrers: s.findReferrers(), ids: map[string]uint64{}}
		for _, e := range s.Entries {
			layers := e.First().Layers
			id := idSum(e.ID)
			r.ids[top(layers)] += id
			r.tops[top(layers)] = append(r.tops[top(layers)], e)
			seen := map[string]bool{}
			for _, key := range layers {
				if !seen[key] {
					seen[key] = true
					r.byLayer[key] = append(r.byLayer[key], e)
					r.ids["in "+key] += id
				}
			}
		}
		s.relations = r
	})
	return s.relations
}

func idSum(id string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(id))
	return h.Sum64()
}

// Relations is a number that differs, as good as certainly, when the images differ that PerhapsParents, PerhapsChildren and
// Referrers return for e, or those that are there of what e lists.
func (s *Snapshot) Relations(e *Entry) uint64 {
	r, layers := s.related(), e.First().Layers
	h := fnv.New64a()
	write := func(n uint64) { h.Write(binary.LittleEndian.AppendUint64(nil, n)) }
	write(r.ids[top(layers)])
	if n := len(layers); n > 0 {
		write(r.ids[top(layers[:n-1])])
		write(r.ids["in "+layers[n-1]])
	}
	for _, other := range r.referrers[e] {
		write(idSum(other.ID))
	}
	for i, d := range e.First().Desc().Lists {
		if child := s.byDigest[d]; child != nil {
			write(uint64(i))
			write(idSum(child.ID))
		}
	}
	return h.Sum64()
}

func top(layers []string) string {
	if len(layers) == 0 {
		return ""
	}
	return layers[len(layers)-1]
}

// PerhapsParents returns the images that this one may have been made from in one step, by their layers.
func (s *Snapshot) PerhapsParents(e *Entry) []*Entry {
	layers := e.First().Layers
	all := s.related().tops[top(layers)]
	if len(layers) > 0 {
		all = slices.Concat(all, s.related().tops[top(layers[:len(layers)-1])])
	}
	return s.others(e, all)
}

// PerhapsChildren returns the images that may have been made from this one in one step, by their layers.
func (s *Snapshot) PerhapsChildren(e *Entry) []*Entry {
	layers := e.First().Layers
	if len(layers) == 0 {
		return s.others(e, s.related().tops[""])
	}
	n := len(layers)
	return s.others(e, slices.DeleteFunc(slices.Clone(s.related().byLayer[top(layers)]), func(c *Entry) bool {
		other := c.First().Layers
		return len(other) < n || len(other) > n+1 || other[n-1] != layers[n-1]
	}))
}

// LayerUsers returns for each layer of an image, base first, how many images have it, this one included.
func (s *Snapshot) LayerUsers(e *Entry) []int {
	var all []int
	for _, key := range e.First().Layers {
		all = append(all, len(s.related().byLayer[key]))
	}
	return all
}

// others sorts entries by id and leaves out e, and what is there twice.
func (s *Snapshot) others(e *Entry, all []*Entry) []*Entry {
	all = slices.DeleteFunc(slices.Clone(all), func(o *Entry) bool { return o == e })
	slices.SortFunc(all, func(a, b *Entry) int { return strings.Compare(a.ID, b.ID) })
	return slices.Compact(all)
}

// Referrers returns the images that say something about this one, sorted by id: those whose manifests name one of its
// manifests as their subject, and those whose tag does, as cosign's do. Where images refer to each other in a circle, and be
// it through an index, none of those references counts.
func (s *Snapshot) Referrers(e *Entry) []*Entry { return s.related().referrers[e] }

// cosignTag is a tag under which cosign keeps what belongs to the manifest of that digest.
var cosignTag = regexp.MustCompile(`(?:^|:)(sha256)-([0-9a-f]{64})\.(?:sig|att|sbom)$`)

func (s *Snapshot) findReferrers() map[*Entry][]*Entry {
	refers := map[*Entry][]*Entry{} // from the subject
	add := func(subject, referrer *Entry) {
		if subject != nil && subject != referrer && !slices.Contains(refers[subject], referrer) {
			refers[subject] = append(refers[subject], referrer)
		}
	}
	for _, e := range s.Entries {
		for _, h := range e.Held {
			if d := h.Desc().Subject; d != "" {
				add(s.byDigest[d], e)
			}
		}
		for _, name := range e.Names {
			if m := cosignTag.FindStringSubmatch(name); m != nil {
				add(s.byDigest[digest.Digest(m[1]+":"+m[2])], e)
			}
		}
	}
	if len(refers) == 0 {
		return nil
	}
	circle := s.circles(refers)
	for subject, all := range refers {
		refers[subject] = slices.DeleteFunc(all, func(e *Entry) bool { return circle[e] == circle[subject] })
	}
	return refers
}

// circles numbers the images so that those that lead to each other, by references from a subject and from an index to what
// it lists, have one number (Tarjan's strongly connected components).
func (s *Snapshot) circles(refers map[*Entry][]*Entry) map[*Entry]int {
	type frame struct {
		e    *Entry
		next []*Entry
	}
	index, low, number := map[*Entry]int{}, map[*Entry]int{}, map[*Entry]int{}
	var stack []*Entry
	for _, root := range s.Entries {
		if index[root] != 0 {
			continue
		}
		var frames []frame
		enter := func(e *Entry) {
			index[e] = len(index) + 1
			low[e] = index[e]
			stack = append(stack, e)
			frames = append(frames, frame{e, s.leadsTo(e, refers)})
		}
		for enter(root); len(frames) > 0; {
			f := &frames[len(frames)-1]
			if len(f.next) > 0 {
				to := f.next[0]
				f.next = f.next[1:]
				switch {
				case index[to] == 0:
					enter(to)
				case number[to] == 0:
					low[f.e] = min(low[f.e], index[to])
				}
				continue
			}
			e := f.e
			frames = frames[:len(frames)-1]
			if len(frames) > 0 {
				above := frames[len(frames)-1].e
				low[above] = min(low[above], low[e])
			}
			for low[e] == index[e] {
				last := stack[len(stack)-1]
				stack = stack[:len(stack)-1]
				number[last] = index[e]
				if last == e {
					break
				}
			}
		}
	}
	return number
}

// leadsTo are the images to which links lead from an image's directory.
func (s *Snapshot) leadsTo(e *Entry, refers map[*Entry][]*Entry) []*Entry {
	all := refers[e]
	for _, h := range e.Held {
		for _, d := range h.Desc().Lists {
			if child := s.byDigest[d]; child != nil && child != e {
				all = append(all[:len(all):len(all)], child)
			}
		}
	}
	return all
}
