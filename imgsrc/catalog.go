package imgsrc

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sort"
	"sync"
	"sync/atomic"
	"time"
)

// A Catalog is all the images of several sources as one list: an image that two sources have is one entry. It keeps the
// last listing of each source and asks again only where the source's stamp has moved.
type Catalog struct {
	log     *slog.Logger
	sources []Source

	mu     sync.Mutex // serialises Refresh; guards stamps and lists
	stamps []Stamp
	lists  []*Listing

	current atomic.Pointer[Snapshot]
}

// A Snapshot is the state of a catalog at one moment. It is immutable.
type Snapshot struct {
	// Generation counts the snapshots of one catalog, from 1. Two with the same number are the same.
	Generation uint64
	// Entries are the images, sorted by id.
	Entries []*Entry
	// ModTime is when the youngest of the sources' listings changed, as far as they record it.
	ModTime time.Time

	byID   map[string]*Entry
	byName map[string]*Entry
}

// An Entry is one image, with all the manifests that share its id.
type Entry struct {
	ID string
	// Held are the manifests, in the order of the sources and of their listings; the first stands for the image.
	Held []Held
	// Names are the names under which this image is found, each once, in listed order: a name that two images claim
	// belongs to the one that is listed first.
	Names []string
}

// Held is an image and the source that has it.
type Held struct {
	Listed
	Source Source
}

// First is the manifest that stands for the image.
func (e *Entry) First() Held { return e.Held[0] }

// NewCatalog returns a catalog of sources. It is empty until the first Refresh.
func NewCatalog(log *slog.Logger, sources ...Source) *Catalog {
	c := &Catalog{
		log:     log,
		sources: sources,
		stamps:  make([]Stamp, len(sources)),
		lists:   make([]*Listing, len(sources)),
	}
	c.current.Store(&Snapshot{})
	return c
}

// Sources returns the sources, in their order.
func (c *Catalog) Sources() []Source { return c.sources }

// Snapshot returns the state that the last Refresh found. It does no I/O.
func (c *Catalog) Snapshot() *Snapshot { return c.current.Load() }

// Refresh looks at the sources' stamps, lists those that have moved, and returns the current snapshot: the one that
// there was if nothing changed. A source that cannot be listed keeps its last listing; the first such error is returned
// beside the snapshot, once for each stamp.
func (c *Catalog) Refresh(ctx context.Context) (*Snapshot, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var firstErr error
	changed := false
	for i, src := range c.sources {
		stamp := src.Stamp() // before List: a change in between is seen at the next Refresh
		if c.lists[i] != nil && c.stamps[i] == stamp {
			continue
		}
		list, err := src.List(ctx)
		if err != nil {
			if firstErr == nil {
				firstErr = fmt.Errorf("listing %s: %w", src.Name(), err)
			}
			if ctx.Err() == nil && c.lists[i] != nil {
				c.stamps[i] = stamp
			}
			continue
		}
		for _, p := range list.Problems {
			c.log.Warn("listing image", "source", src.Name(), "error", p)
		}
		c.stamps[i], c.lists[i] = stamp, list
		changed = true
	}
	if changed {
		c.current.Store(c.merge())
	}
	return c.current.Load(), firstErr
}

func (c *Catalog) merge() *Snapshot {
	s := &Snapshot{
		Generation: c.current.Load().Generation + 1,
		byID:       map[string]*Entry{},
		byName:     map[string]*Entry{},
	}
	for i, list := range c.lists {
		if list == nil {
			continue
		}
		if list.ModTime.After(s.ModTime) {
			s.ModTime = list.ModTime
		}
		for _, img := range list.Images {
			id := img.Desc().ID
			e := s.byID[id]
			if e == nil {
				e = &Entry{ID: id}
				s.byID[id] = e
				s.Entries = append(s.Entries, e)
			}
			e.Held = append(e.Held, Held{Listed: img, Source: c.sources[i]})
			for _, name := range img.Names {
				if s.byName[name] == nil {
					s.byName[name] = e
					e.Names = append(e.Names, name)
				}
			}
		}
	}
	slices.SortFunc(s.Entries, func(a, b *Entry) int {
		if a.ID < b.ID {
			return -1
		}
		return 1
	})
	return s
}

// ByID returns the image with this id, or nil.
func (s *Snapshot) ByID(id string) *Entry { return s.byID[id] }

// ByName returns the image with this name, exactly as a source stores it, or nil.
func (s *Snapshot) ByName(name string) *Entry { return s.byName[name] }

// ByPrefix returns the only image whose id begins with prefix, or nil if there is none or more than one.
func (s *Snapshot) ByPrefix(prefix string) *Entry {
	i := sort.Search(len(s.Entries), func(i int) bool { return s.Entries[i].ID >= prefix })
	match := func(i int) bool {
		return i < len(s.Entries) && len(s.Entries[i].ID) >= len(prefix) && s.Entries[i].ID[:len(prefix)] == prefix
	}
	if !match(i) || match(i+1) {
		return nil
	}
	return s.Entries[i]
}

// EachName calls f with every name and its image, in no order.
func (s *Snapshot) EachName(f func(name string, e *Entry)) {
	for name, e := range s.byName {
		f(name, e)
	}
}

// Watch watches all the sources and calls changed after each change, until ctx ends. Sources that cannot be watched are
// logged and left to Refresh.
func (c *Catalog) Watch(ctx context.Context, changed func()) {
	var wg sync.WaitGroup
	for _, src := range c.sources {
		wg.Go(func() {
			if err := src.Watch(ctx, changed); err != nil && ctx.Err() == nil {
				c.log.Warn("watching source", "source", src.Name(), "error", err)
			}
		})
	}
	wg.Wait()
}
