package imgsrc

import (
	"cmp"
	"log/slog"
	"slices"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
)

// A Catalog is all the images of several sources as one list: an image that two sources have is one entry. It keeps the
// last listing of each source and asks again only where the source's stamp has moved.
type Catalog struct {
	log     *slog.Logger
	sources []Source

	turn     chan struct{} // holds one element while somebody uses what follows
	stamps   []Stamp
	lists    []*Listing
	failed   []*Stamp        // at which stamp the source could not be listed; nil if it could
	round    uint64          // of looks
	near     []bool          // whether the stamp of a source is there at once
	looks    []*look         // those that are under way; nil: none
	listings []*listing      // likewise
	errs     []error         // of listings, that nobody has been told yet
	took     []time.Duration // how long the last listing took that succeeded

	told []atomic.Bool          // a watch has called since the source was last listed
	late atomic.Pointer[func()] // what Watch was given: called when a listing comes that nobody has waited for

	current atomic.Pointer[Snapshot]
	changed func(*Snapshot) // see OnChange; nil: nobody
}

// A Snapshot is the state of a catalog at one moment. It is immutable.
type Snapshot struct {
	// Generation counts the snapshots of one catalog, from 1. Two with the same number are the same.
	Generation uint64
	// Entries are the images, sorted by id.
	Entries []*Entry
	// ModTime is when the youngest of the sources' listings changed, as far as they record it.
	ModTime time.Time
	// ModTimes are those of all the sources, in the catalog's order: zero for one that does not record it, or could not be listed
	// yet.
	ModTimes []time.Time

	byID     map[string]*Entry
	byName   map[string]*Entry
	byDigest map[digest.Digest]*Entry

	byRemoteName map[string]*Entry
	moreByDigest map[digest.Digest][]*Entry // beside the one in byDigest

	relatedOnce sync.Once
	relations   *related
}

// An Entry is one image, with all the manifests that share its id.
type Entry struct {
	ID string
	// Held are the manifests, in the order of the sources and of their listings; the first stands for the image.
	Held []Held
	// Names are the names under which this image is found, each once, in listed order: a name that two images claim
	// belongs to the one that is listed first.
	Names []string
	// RemoteNames are likewise those in registries, each once.
	RemoteNames []string

	near int // which of Held is the nearest
}

// Held is an image and the source that has it.
type Held struct {
	Listed
	Source Source
}

// First is the manifest that stands for the image.
func (e *Entry) First() Held { return e.Held[0] }

// TagNames are the names that a source stores, and those in the registry if it is the first of the image's sources whose
// names can be changed.
func (e *Entry) TagNames() []string {
	names := slices.Clone(e.Names)
	var first Source
	for _, h := range e.Held {
		if _, ok := h.Source.(Tagger); !ok || first != nil && h.Source != first {
			continue
		}
		first = h.Source
		for _, name := range h.RemoteNames {
			if !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	return names
}

// NewCatalog returns a catalog of sources. It is empty until the first Refresh.
func NewCatalog(log *slog.Logger, sources ...Source) *Catalog {
	c := &Catalog{
		log:     log,
		sources: sources,
		turn:    make(chan struct{}, 1),
		stamps:  make([]Stamp, len(sources)),
		lists:   make([]*Listing, len(sources)),
		failed:  make([]*Stamp, len(sources)),
		told:    make([]atomic.Bool, len(sources)),

		looks:    make([]*look, len(sources)),
		listings: make([]*listing, len(sources)),
		took:     make([]time.Duration, len(sources)),
	}
	for _, src := range sources {
		c.near = append(c.near, isNear(src))
	}
	c.current.Store(&Snapshot{})
	return c
}

// OnChange has f called with each snapshot that takes the place of another, in their order, before anybody else gets it
// from Refresh; and with the one that there is now, unless there is none yet. f must not call Refresh. To be called before
// the catalog is used by several goroutines.
func (c *Catalog) OnChange(f func(*Snapshot)) {
	c.changed = f
	if s := c.current.Load(); s.Generation > 0 {
		f(s)
	}
}

// Sources returns the sources, in their order.
func (c *Catalog) Sources() []Source { return c.sources }

// Snapshot returns the state that the last Refresh found. It does no I/O.
func (c *Catalog) Snapshot() *Snapshot { return c.current.Load() }

func (c *Catalog) merge() *Snapshot {
	s := &Snapshot{
		Generation: c.current.Load().Generation + 1,
		byID:       map[string]*Entry{},
		byName:     map[string]*Entry{},
		byDigest:   map[digest.Digest]*Entry{},
		ModTimes:   make([]time.Time, len(c.lists)),

		moreByDigest: map[digest.Digest][]*Entry{},
		byRemoteName: map[string]*Entry{},
	}
	for i, list := range c.lists {
		if list == nil {
			continue
		}
		s.ModTimes[i] = list.ModTime
		if list.ModTime.After(s.ModTime) {
			s.ModTime = list.ModTime
		}
		for _, img := range list.Images {
			desc := img.Desc()
			id := desc.ID
			e := s.byID[id]
			if e == nil {
				e = &Entry{ID: id}
				s.byID[id] = e
				s.Entries = append(s.Entries, e)
			}
			e.Held = append(e.Held, Held{Listed: img, Source: c.sources[i]})
			switch first := s.byDigest[desc.Digest]; {
			case desc.Digest == "" || first == e:
			case first == nil:
				s.byDigest[desc.Digest] = e
			case !slices.Contains(s.moreByDigest[desc.Digest], e):
				s.moreByDigest[desc.Digest] = append(s.moreByDigest[desc.Digest], e)
			}
			for _, name := range img.RemoteNames {
				if s.byRemoteName[name] == nil {
					s.byRemoteName[name] = e
					e.RemoteNames = append(e.RemoteNames, name)
				}
			}
			for _, name := range img.Names {
				if s.byName[name] == nil {
					s.byName[name] = e
					e.Names = append(e.Names, name)
				}
			}
		}
	}
	slices.SortFunc(s.Entries, func(a, b *Entry) int { return cmp.Compare(a.ID, b.ID) })
	was := c.current.Load()
	for _, e := range s.Entries {
		e.near = e.choose(was.byID[e.ID])
	}
	return s
}

// ByID returns the image with this id, or nil.
func (s *Snapshot) ByID(id string) *Entry { return s.byID[id] }

// ByName returns the image with this name, exactly as a source stores it, or nil.
func (s *Snapshot) ByName(name string) *Entry { return s.byName[name] }

// ByRemoteName returns the image that a registry has under this full reference, or nil.
func (s *Snapshot) ByRemoteName(name string) *Entry { return s.byRemoteName[name] }

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
