package imgsrc

import (
	"encoding/binary"
	"hash/fnv"
	"regexp"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
)

// What images have to do with each other: which one was made from which, and which says something about which.

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
	users     map[string]*layerUsers // by the layer's key; "" is that of images without layers
	referrers map[*Entry][]*Entry
}

// layerUsers are the images that have a layer.
type layerUsers struct {
	all  int
	tops kinGroup // those whose topmost layer it is
	next kinGroup // those whose topmost layer lies on it
}

// A kinGroup is some images, sorted by id, and a sum over them.
type kinGroup struct {
	entries []*Entry
	sum     uint64
}

func (g *kinGroup) add(e *Entry) {
	g.entries = append(g.entries, e)
	g.sum += idSum(e.ID)
}

func (s *Snapshot) related() *related {
	s.relatedOnce.Do(func() {
		r := &related{users: map[string]*layerUsers{}, referrers: s.findReferrers()}
		of := func(key string) *layerUsers {
			u := r.users[key]
			if u == nil {
				u = &layerUsers{}
				r.users[key] = u
			}
			return u
		}
		for _, e := range s.Entries {
			layers := e.First().Layers
			top, below, ok := topLayers(layers)
			of(top).tops.add(e)
			if ok {
				of(below).next.add(e)
			}
			for i, key := range layers {
				if !slices.Contains(layers[:i], key) {
					of(key).all++
				}
			}
		}
		s.relations = r
	})
	return s.relations
}

// topLayers are the keys of the topmost layer, "" if there is none, and of the one below it, if there is one.
func topLayers(layers []string) (top, below string, ok bool) {
	n := len(layers)
	if n > 0 {
		top = layers[n-1]
	}
	if n > 1 {
		return top, layers[n-2], true
	}
	return top, "", false
}

func idSum(id string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(id))
	return h.Sum64()
}

// Relations is a number that differs, as good as certainly, when the images differ that PerhapsParents, PerhapsChildren and
// Referrers return for e, or those that are there of what e lists.
func (s *Snapshot) Relations(e *Entry) uint64 {
	r := s.related()
	h := fnv.New64a()
	write := func(n uint64) { h.Write(binary.LittleEndian.AppendUint64(nil, n)) }
	top, below, ok := topLayers(e.First().Layers)
	write(r.users[top].tops.sum)
	write(r.users[top].next.sum)
	if ok {
		write(r.users[below].tops.sum)
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

// PerhapsParents returns the images that this one may have been made from in one step, by their layers, sorted by id.
func (s *Snapshot) PerhapsParents(e *Entry) []*Entry {
	var all []*Entry
	for _, key := range s.ParentLayers(e) {
		all = append(all, s.WithTopLayer(key)...)
	}
	return others(e, all)
}

// PerhapsChildren returns the images that may have been made from this one in one step, by their layers, sorted by id.
func (s *Snapshot) PerhapsChildren(e *Entry) []*Entry { return others(e, s.OnLayer(s.TopLayer(e))) }

// others sorts entries by id and leaves out e.
func others(e *Entry, all []*Entry) []*Entry {
	all = slices.DeleteFunc(all, func(o *Entry) bool { return o == e })
	slices.SortFunc(all, func(a, b *Entry) int { return strings.Compare(a.ID, b.ID) })
	return all
}

// ParentLayers returns the keys of the layers one of which is the topmost of the image that this one was made from in one
// step: its own topmost, and the one below it. Many images may have the same.
func (s *Snapshot) ParentLayers(e *Entry) (keys []string) {
	top, below, ok := topLayers(e.First().Layers)
	keys = append(keys, top)
	if ok && below != top {
		keys = append(keys, below)
	}
	return keys
}

// TopLayer returns the key of an image's topmost layer; "" if it has none.
func (s *Snapshot) TopLayer(e *Entry) string {
	key, _, _ := topLayers(e.First().Layers)
	return key
}

// WithTopLayer returns the images whose topmost layer has this key, sorted by id. The caller must not change the slice.
func (s *Snapshot) WithTopLayer(key string) []*Entry {
	if u := s.related().users[key]; u != nil {
		return u.tops.entries
	}
	return nil
}

// OnLayer returns the images whose topmost layer has this key, or lies on one that has, sorted by id.
func (s *Snapshot) OnLayer(key string) []*Entry {
	u := s.related().users[key]
	if u == nil {
		return nil
	}
	all := slices.Concat(u.tops.entries, u.next.entries)
	slices.SortFunc(all, func(a, b *Entry) int { return strings.Compare(a.ID, b.ID) })
	return slices.Compact(all)
}

// LayerUsers returns for each layer of an image, base first, how many images have it, this one included.
func (s *Snapshot) LayerUsers(e *Entry) []int {
	var all []int
	for _, key := range e.First().Layers {
		all = append(all, s.related().users[key].all)
	}
	return all
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
