package fs

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sync/singleflight"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/layer"
)

// Options is what a tree is made of.
type Options struct {
	Catalog  *imgsrc.Catalog // the images; refreshed by the tree
	Ops      Ops             // what the controls do
	Remotes  Remotes         // finds images in registries; nil: none
	Layers   *layer.Cache    // where layers are indexed
	Platform imgsrc.Platform // which image of an index is meant where none is named
	ReadOnly bool            // no control takes a write, and no names are made
	UID, GID uint32          // who mounts: the owner of what does not come out of a layer, and the only one who may write
	Owner    Owner           // what to show instead
	Log      *slog.Logger

	AllowRemove bool   // rm of a name untags, and rmdir of an image removes it
	Mountpoint  string // an absolute path without symbolic links; empty: links' targets cannot begin with it
}

// Owner replaces what stat shows of every file; it changes nothing about who may write. nil leaves it as it is.
type Owner struct{ UID, GID, Umask *uint32 }

// FS is the tree. It is a fuse.RawFileSystem: everything that the kernel asks for is answered in raw.go.
type FS struct {
	fuse.RawFileSystem // answers ENOSYS to whatever raw.go does not know

	log        *slog.Logger
	catalog    *imgsrc.Catalog
	ops        Ops
	remotes    Remotes
	layers     *layer.Cache
	platform   imgsrc.Platform
	readOnly   bool
	uid, gid   uint32
	owner      Owner
	readme     []byte
	readmeTime time.Time
	started    time.Time

	allowRemove bool
	mountpoint  string

	ctx    context.Context // ends with the mount; shared work runs on it
	cancel context.CancelFunc
	server atomic.Pointer[fuse.Server] // set once, by Init

	views    map[uint16]view // of the images
	diffs    view            // of their layers' files
	topViews map[uint16]view // of what lies above them

	// mu guards what refresh changes. It is never held while a source, the kernel or Ops is asked for something, except
	// that refresh itself holds it to keep one state after the other.
	mu   sync.Mutex
	lent lent
	gone goneQueue // names that the kernel is to forget
	top  topListing

	state atomic.Pointer[state]
	slots slots

	spaces   [spaces]*nameSpace
	targets  interner // of links in images' directories: a name and where it leads
	rendered *renderedCache
	sketches *renderedCache
	contents *openCache[imgsrc.Content]
	files    *openCache[imgsrc.Files]
	trees    *memo[treeKey, *tree]
	lists    *memo[treeKey, []byte] // changes
	derived  *memo[derivedKey, derivedFile]
	batches  *memo[treeKey, *batch] // what will be stored ahead of a tree's reader
	sizes    *memo[sizeKey, int64]
	flights  singleflight.Group
	control  controls
	oci      *ociTree
	archives *memo[archiveKey, *archive]

	rootfsTars *memo[uint32, *rootfsTar] // by slot
	early      earlyReads
	said       said
}

// state is one snapshot of the catalog as a tree. It is immutable.
type state struct {
	snap     *imgsrc.Snapshot
	order    []*image // as listed in ids/: in the order in which the mount met them, which never changes
	replaced []*image // see leave; the oldest first
	byID     map[string]*image
	at       time.Time // when the tree came to be in this state
	idsTime  time.Time
	names    [spaces]*nameState
	kinship  *kinship

	sketchers []imgsrc.Sketcher
}

// New returns the tree of a catalog. It lists nothing until it is asked to: call Refresh or Run.
func New(o Options) *FS {
	f := &FS{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		log:           o.Log,
		catalog:       o.Catalog,
		ops:           o.Ops,
		remotes:       o.Remotes,
		layers:        o.Layers,
		platform:      o.Platform,
		readOnly:      o.ReadOnly,
		allowRemove:   o.AllowRemove,
		mountpoint:    o.Mountpoint,
		uid:           o.UID,
		gid:           o.GID,
		owner:         o.Owner,
		readme:        readme(),
		readmeTime:    programTime(),
		started:       time.Now(),
		gone:          newGoneQueue(),
		rendered:      newRenderedCache(renderedBytes),
		sketches:      newRenderedCache(sketchBytes),
		contents:      newOpenCache[imgsrc.Content](openLimit(openFiles())),
		files:         newOpenCache[imgsrc.Files](openLimit(openFiles())),
		trees:         newMemo[treeKey, *tree](treeBytes),
		lists:         newMemo[treeKey, []byte](listBytes),
		derived:       newMemo[derivedKey, derivedFile](derivedBytes),
		batches:       newMemo[treeKey, *batch](aheadBatches),
		sizes:         newMemo[sizeKey, int64](sizesKept),
		archives:      newMemo[archiveKey, *archive](archiveBytes),
		rootfsTars:    newMemo[uint32, *rootfsTar](archiveBytes),
	}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	f.slots.init(f)
	f.state.Store(&state{
		snap: &imgsrc.Snapshot{}, byID: map[string]*image{}, names: [spaces]*nameState{emptyNames(), emptyNames()}, kinship: newKinship(),
	})
	f.control.init(f)
	f.initSpaces()
	f.oci = newOCITree(f)
	f.topViews = map[uint16]view{
		viewTop:   topView{f},
		viewNames: namesView{f.spaces[spaceImages]},
		viewLinks: linksView{f.spaces[spaceImages]},

		viewRemoteNames: namesView{f.spaces[spaceRegistry]},
		viewRemoteLinks: linksView{f.spaces[spaceRegistry]},

		viewIDLinks: idLinksView{f},
		viewJobs:    jobsView{f},

		viewOCI:      ociView{f.oci},
		viewOCIBlobs: ociBlobsView{f.oci},
	}
	f.views = map[uint16]view{
		viewImage:       imageView{f},
		viewAnnotations: mapView{f, annotationsOf},
		viewLabels:      mapView{f, labelsOf},
		viewManifests:   manifestsView{f},
		viewLayers:      layersView{f},
		viewRootfs:      treeView{f},
		viewPlatforms:   linkDirView{f, viewPlatforms, (*image).platformLinks},
		viewReferrers:   linkDirView{f, viewReferrers, (*image).referrerLinks},
		viewExport:      exportView{f},
	}
	f.diffs = treeView{f}
	return f
}

// Run follows the catalog until ctx ends: changes that others make to the sources show up although nobody looks.
func (f *FS) Run(ctx context.Context) {
	var wg sync.WaitGroup
	wg.Go(func() { f.forgetNames(ctx) })
	wg.Go(func() { f.catalog.Watch(ctx, func() { f.refresh(ctx) }) })
	wg.Wait()
}

// refresh brings the tree up to the catalog and returns its state. It costs a stat or two for each source when nothing
// has changed. A source that cannot be listed keeps what it had.
func (f *FS) refresh(ctx context.Context) *state {
	snap, err := f.catalog.Refresh(ctx)
	if err != nil && ctx.Err() == nil {
		f.log.Warn("refreshing", "error", err)
		f.ops.Record("list-error", "", err.Error())
	}
	if s := f.state.Load(); s.snap == snap {
		return s
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	old := f.state.Load()
	if old.snap.Generation >= snap.Generation {
		return old
	}
	now := time.Now()
	s := &state{snap: snap, at: now, byID: make(map[string]*image, len(snap.Entries)), kinship: newKinship(), sketchers: sketchersOf(snap)}
	first := old.snap.Generation == 0
	changed := first
	var fresh []*image
	for _, e := range snap.Entries {
		img := old.byID[e.ID]
		if img == nil || !img.isOf(e) {
			img = newImage(f, e, snap.ModTime)
			fresh = append(fresh, img)
			changed = true
		} else {
			img.take(e, old, s)
		}
		s.byID[e.ID] = img
	}
	var gone []*image
	s.order = make([]*image, 0, len(s.byID))
	for _, img := range old.order {
		if s.byID[img.id] == img {
			s.order = append(s.order, img)
			continue
		}
		changed = true
		gone = append(gone, img)
	}
	s.order = append(s.order, fresh...)
	f.leave(gone, old, s)
	switch {
	case first:
		s.idsTime = snap.ModTime
	case changed:
		s.idsTime = later(old.idsTime, now)
	default:
		s.idsTime = old.idsTime
	}
	for i, sp := range f.spaces {
		s.names[i] = sp.state(snap, old.names[i], first, now)
	}
	f.state.Store(s)
	for n := range f.lent.take() {
		f.forget(goneEntry{lent: n})
	}
	return s
}

// renew puts another image in the place of one whose files have other numbers than the kernel knows.
func (f *FS) renew(img *image) {
	f.mu.Lock()
	defer f.mu.Unlock()
	old, e := f.state.Load(), img.entry.Load()
	if e == nil {
		return
	}
	s := *old
	if old.byID[img.id] != img { // it was replaced before
		s.replaced = slices.DeleteFunc(slices.Clone(old.replaced), func(i *image) bool { return i == img })
		f.state.Store(&s)
		f.retire(img)
		return
	}
	fresh := newImage(f, e, old.snap.ModTime)
	s.at = time.Now()
	s.idsTime = later(old.idsTime, s.at)
	s.byID = maps.Clone(old.byID)
	s.byID[img.id] = fresh
	s.order = append(slices.DeleteFunc(slices.Clone(old.order), func(i *image) bool { return i == img }), fresh)
	f.state.Store(&s)
	f.retire(img)
	f.forget(goneEntry{dir: idsNode, name: img.id})
}

// later returns now, or the moment after was if the clock has not moved past it: whatever is cached by modification time
// needs each change to have its own.
func later(was, now time.Time) time.Time {
	if now.After(was) {
		return now
	}
	return was.Add(1)
}

// image returns the image with number n, or nil. Of one that is gone it is an image without anything.
func (f *FS) image(n uint32) *image { return f.slots.get(n) }

func (f *FS) imageName(n node) string {
	if img := f.image(n.image()); img != nil {
		return img.id
	}
	return ""
}
