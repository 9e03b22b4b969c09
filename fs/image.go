package fs

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
)

// An image is one image of the tree: what the mount knows of it beyond what the catalog says. What can be computed from
// its bytes is not here but in a rendering (rendered.go), which can be thrown away at any time.
type image struct {
	f     *FS
	slot  uint32
	id    string
	first digest.Digest // of the manifest that stands for it
	near  heldBy        // the manifest whose layers its nodes are of
	ino   ino
	entry atomic.Pointer[imgsrc.Entry] // nil when no source has the image any more

	bare bareRendering // without the config, for which the rendering that is being made waits

	mu        sync.Mutex
	listing   time.Time // when the directory's listing last changed while mounted; zero if it has not
	names     time.Time // when the names last changed, as far as it is known
	writes    map[uint32]time.Time
	others    []string            // digests of the further manifests ever seen, by place
	probes    map[probeKey]probed // what the source gives of each layer
	createdAt *time.Time          // once known
	derived   map[uint32]derivedState

	here   string // of an image that may be elsewhere, a byte for each layer when somebody last looked: 1 if it was here, 2 if its tar was, 3 if the image had not been read
	looked bool

	arrivedAt time.Time // when that last changed while mounted; zero if it has not

	mendedAt     time.Time       // when the directories of layers and labels last changed while mounted; zero if they have not
	damagedShape string          // what the image had when something of it could not be read; empty if all could
	unreadSaid   map[string]bool // the reasons for that which are in the log; nil if there are none
	lineage      *imgsrc.Lineage // once known

	sketchListed bool                          // it was listed by a sketch
	kinSketched  bool                          // it was listed while an image that may be its parent or child was not read
	told         atomic.Pointer[imgsrc.Sketch] // what the kernel may have answers from; nil if that is set right
	read         atomic.Bool                   // it was rendered once, and the kernel told of it
}

func newImage(f *FS, e *imgsrc.Entry, listed time.Time) *image {
	sum := sha256.Sum256([]byte(e.ID))
	img := &image{
		f:      f,
		id:     e.ID,
		first:  e.First().Desc().Digest,
		near:   heldBy{e.Nearest().Source, e.Nearest().Desc().Digest},
		ino:    ino(binary.LittleEndian.Uint64(sum[:])).mixed(),
		names:  listed,
		writes: map[uint32]time.Time{},
		probes: map[probeKey]probed{},

		derived: map[uint32]derivedState{},
	}
	img.entry.Store(e)
	f.slots.add(img)
	return img
}

// slots are the images by number.
type slots struct {
	mu     sync.RWMutex
	images ledger[*image]
	gone   *image // stands for all that there were
}

func (s *slots) init(f *FS) {
	s.gone = &image{f: f, writes: map[uint32]time.Time{}, probes: map[probeKey]probed{}, derived: map[uint32]derivedState{}}
}

// add gives an image its number.
func (s *slots) add(img *image) {
	s.mu.Lock()
	defer s.mu.Unlock()
	img.slot = s.images.add(img)
}

func (s *slots) drop(n uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.images.drop(n)
}

// get returns the image with number n: gone if there was one, nil if there never was.
func (s *slots) get(n uint32) *image {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if img, ok := s.images.get(n); ok {
		return img
	}
	if n == 0 || n > s.images.last {
		return nil
	}
	return s.gone
}

func (img *image) node(view uint16, entry uint32) node { return makeNode(img.slot, view, entry) }

// A heldBy is a manifest and the source that has it.
type heldBy struct {
	source imgsrc.Source
	digest digest.Digest
}

// isOf says whether what the kernel knows of the image holds for an entry. If the first manifest is another, all that is cached of
// it may differ; if the layers are read from another, their files may have other numbers.
func (img *image) isOf(e *imgsrc.Entry) bool {
	near := e.Nearest()
	return img.entry.Load() != nil && img.first == e.First().Desc().Digest && img.near == heldBy{near.Source, near.Desc().Digest}
}

// firstOf is the manifest that stands for the image: its entry's first, unless the image was replaced.
func (img *image) firstOf(e *imgsrc.Entry) imgsrc.Held {
	for _, h := range e.Held {
		if h.Desc().Digest == img.first {
			return h
		}
	}
	return e.First()
}

// nearest is the manifest whose layers the image's nodes are of, likewise.
func (img *image) nearest(e *imgsrc.Entry) imgsrc.Held {
	if h, ok := e.HeldBy(img.near.source, img.near.digest); ok {
		return h
	}
	return e.Nearest()
}

// blobsOf is what the blobs of the first manifest are read from: the nearest, if it is the same.
func (img *image) blobsOf(e *imgsrc.Entry) imgsrc.Held {
	if near := img.nearest(e); near.Desc().Digest == img.first {
		return near
	}
	return img.firstOf(e)
}

// take gives the image its entry in the next state.
func (img *image) take(e *imgsrc.Entry, old, s *state) {
	was := img.entry.Swap(e)
	img.listingChanged(was, e, s.at, old.snap, s.snap)
}

// current returns the image's entry in the catalog. Error: ErrNotFound if it has been removed.
func (img *image) current() (*imgsrc.Entry, error) {
	if e := img.entry.Load(); e != nil {
		return e, nil
	}
	return nil, imgsrc.ErrNotFound
}

// listingChanged compares two states of the image's entry and moves the times of what differs. The kernel is told of the
// names that may be gone.
func (img *image) listingChanged(was, is *imgsrc.Entry, now time.Time, before, after *imgsrc.Snapshot) {
	related := was == nil || before.Relations(was) != after.Relations(is)
	listed := was == nil || was != is && liveShape(was) != liveShape(is)
	for i := range table {
		if row := &table[i]; listed && row.wentAway(was, is) || related && row.dependsOnOthers(is) {
			img.f.forget(goneEntry{dir: img.node(viewImage, 0), name: row.name})
		}
	}
	img.mu.Lock()
	defer img.mu.Unlock()
	if related || listed {
		img.listing = later(img.listing, now)
	}
	if was == nil || was != is && liveText(was) != liveText(is) {
		img.names = later(img.names, now)
	}
}

// wentAway says whether the directory had this file for what the source said of the image, and has it no more.
func (row *row) wentAway(was, is *imgsrc.Entry) bool {
	return row.live != nil && !row.control && row.live(is) == nil && (was == nil || row.live(was) != nil)
}

// dependsOnOthers says whether the directory may have this file or not because of other images. In an index that is true
// of most.
func (row *row) dependsOnOthers(e *imgsrc.Entry) bool {
	if row.derived != nil || row.view == viewReferrers {
		return true
	}
	return !row.own && !row.control && row.live == nil && !row.lastError && e.First().Desc().Lists != nil
}

// liveShape is what decides which live files the image's directory lists, of what its own entry says.
func liveShape(e *imgsrc.Entry) string {
	s := ""
	for _, r := range table {
		if r.live != nil && r.live(e) != nil {
			s += r.name + "\n"
		}
	}
	for _, h := range e.Held[1:] {
		s += h.Desc().Digest.String() + "\n"
	}
	return s
}

// liveText is all that the live files say.
func liveText(e *imgsrc.Entry) string {
	s := ""
	for _, r := range table {
		if r.live != nil {
			s += string(r.live(e)) + "\x00"
		}
	}
	return s
}

// created is the modification time of what is computed from the image: its creation time, 0 where it has none. Not sure if that is
// not known as yet.
func (img *image) created(ctx context.Context) (t time.Time, sure bool, err error) {
	if t, ok := img.knownCreated(); ok {
		return t, true, nil
	}
	r, err := img.renderBare(ctx)
	if err != nil {
		return time.Time{}, false, err
	}
	return r.created, !r.damaged, nil
}

// knownCreated is likewise, if it is known without reading the image.
func (img *image) knownCreated() (t time.Time, ok bool) {
	img.mu.Lock()
	known := img.createdAt
	img.mu.Unlock()
	if known != nil {
		return *known, true
	}
	if r := img.sketch(); r != nil {
		return r.created, true
	}
	return time.Time{}, false
}
