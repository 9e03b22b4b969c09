package ops

import (
	"maps"
	"slices"
	"sync"

	"github.com/imgfs/imgfs/imgsrc"
)

// changes tells what others do to the sources from what this mount does itself: both show in the same listings. It keeps
// what the events have said so far, and compares each new listing with that. While an operation of this mount is under
// way, what it may be changing is not looked at; what it says that it has changed is then taken as it is, and what else is
// new is somebody else's.
type changes struct {
	report func(event)

	mu      sync.Mutex // events are added with it held
	latest  *imgsrc.Snapshot
	said    known
	holds   []*hold
	touched known // by the operations that are under way
}

// known is what is known of the images that are here, those that only registries have left out: what is in a registry is
// seen when somebody looks, and reading is no event.
type known struct {
	images map[string][]string // by id: the names
	names  map[string]string   // the id of the image that has a name
}

func newKnown() known { return known{map[string][]string{}, map[string]string{}} }

// knownOf returns what a snapshot says.
func knownOf(s *imgsrc.Snapshot) known {
	k := newKnown()
	for _, e := range s.Entries {
		local := slices.ContainsFunc(e.Held, func(h imgsrc.Held) bool { _, far := h.Image.(imgsrc.Remote); return !far })
		if !local && len(e.Names) == 0 {
			continue
		}
		k.images[e.ID] = e.Names
		for _, name := range e.Names {
			k.names[name] = e.ID
		}
	}
	return k
}

// A hold is an operation under way.
type hold struct{ names []string }

// may says whether the operation may be what changes this name, or brings an image of these names. One that does not say
// which names it works on may be behind everything.
func (h *hold) may(names ...string) bool {
	return h.names == nil || len(names) == 0 || slices.ContainsFunc(names, func(name string) bool { return slices.Contains(h.names, name) })
}

// hold says that an operation begins that may change these names and bring images of these names or of none; without
// names, anything. The function that it returns is to be called when the operation has said what it did.
func (c *changes) hold(names ...string) (release func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := &hold{names}
	c.holds = append(c.holds, h)
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.holds = slices.DeleteFunc(c.holds, func(other *hold) bool { return other == h })
		c.compare()
	}
}

// own says that this mount has brought or removed an image, or has changed these names. It counts while there is a hold.
func (c *changes) own(id string, names ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.holds) == 0 {
		return
	}
	if c.touched.images == nil {
		c.touched = newKnown()
	}
	if id != "" {
		c.touched.images[id] = nil
	}
	for _, name := range names {
		c.touched.names[name] = ""
	}
}

// look is told of each new snapshot of the catalog, in their order.
func (c *changes) look(s *imgsrc.Snapshot) {
	c.mu.Lock()
	defer c.mu.Unlock()
	first := c.latest == nil
	c.latest = s
	if first {
		c.said = knownOf(s)
		return
	}
	c.compare()
}

// compare reports each name and each image by itself: whether a listing shows an image that has just been made with its name
// or before it got one is chance.
//
// It reports what the latest snapshot has that has not been said, as far as no operation may be behind it. mu is held.
func (c *changes) compare() {
	if c.latest == nil {
		return
	}
	is := knownOf(c.latest)
	c.accept(is)
	held := func(names ...string) bool {
		return slices.ContainsFunc(c.holds, func(h *hold) bool { return h.may(names...) })
	}
	for _, name := range slices.Sorted(maps.Keys(c.said.names)) {
		if is.names[name] == "" && !held(name) {
			c.tell("untag", c.said.names[name], name)
			delete(c.said.names, name)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(c.said.images)) {
		if _, there := is.images[id]; !there && !held(c.said.images[id]...) {
			c.tell("remove", id, "")
			delete(c.said.images, id)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(is.images)) {
		if _, there := c.said.images[id]; !there && !held(is.images[id]...) {
			c.tell("add", id, "")
			c.said.images[id] = is.images[id]
		}
	}
	for _, name := range slices.Sorted(maps.Keys(is.names)) {
		if c.said.names[name] != is.names[name] && !held(name) {
			c.tell("tag", is.names[name], name)
			c.said.names[name] = is.names[name]
		}
	}
	for id := range c.said.images {
		if names, there := is.images[id]; there {
			c.said.images[id] = names
		}
	}
}

// accept takes what this mount has changed as it is now. mu is held.
func (c *changes) accept(is known) {
	for id := range c.touched.images {
		names, there := is.images[id]
		if _, was := c.said.images[id]; there && !was {
			for _, name := range names { // it came with them
				c.said.names[name] = id
			}
		} else if !there {
			for _, name := range c.said.images[id] {
				if c.said.names[name] == id && is.names[name] == "" {
					delete(c.said.names, name)
				}
			}
		}
		if c.said.images[id] = names; !there {
			delete(c.said.images, id)
		}
	}
	for name := range c.touched.names {
		if c.said.names[name] = is.names[name]; is.names[name] == "" {
			delete(c.said.names, name)
		}
	}
	if len(c.holds) == 0 {
		c.touched = known{}
	}
}

// tell reports a change. mu is held.
func (c *changes) tell(what, id, name string) {
	c.report(event{Type: what, Image: id, Reference: redactWord(name), Origin: "source"})
}
