package fs

import (
	"bytes"
	"cmp"
	"context"
	"slices"
	"sync/atomic"
	"time"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/export"
)

// oci/ is the whole mount as one OCI image layout: what package export makes of every image, deduplicated. It is computed when
// somebody looks, once for each state of the catalog, and of that only what has come since the last time. What is kept of an
// image is which blobs it has and how long they are; manifests that were made are made again when somebody reads them.
//
// An image that cannot be put into OCI form, because it is damaged or the source does not have its layers to the byte, is left
// out, with a line in the log. Where that cannot be told, because a registry does not answer or a disk fails, all of oci/
// is an error: a backup that lacks an image for such a reason would have it deleted by rsync --delete.
//
// Of what the indexes of a registry list all is in it that the registry has: it is asked for that when somebody first looks.
//
// An engine has to save its images before it can be said what is in oci/: a digest of a manifest names a file, and is not told
// otherwise. Until they have been, oci/ is not listed in the mountpoint, so that find and ls -R cost no save; it is found by its
// name, and is always whole.
//
// Images that were only followed below registry/ are not in it: what a reader looks at does not change what is backed up.

// ociTree is oci/ in all its states.
type ociTree struct {
	f     *FS
	state atomic.Pointer[ociState]
	docs  *memo[uint32, []byte] // manifests that were made, by the number of their blob

	numbers blobNumbers

	// What follows is used by one update at a time.
	known  map[imgsrc.Image]*ociImage
	failed *ociFailure
}

// ociDocs is how much memory the manifests may take that are kept from one read to the next.
const ociDocs = 1 << 20

func newOCITree(f *FS) *ociTree {
	return &ociTree{f: f, docs: newMemo[uint32, []byte](ociDocs)}
}

// ociState is oci/ for one state of the catalog. It is immutable.
type ociState struct {
	snap  *imgsrc.Snapshot
	until time.Time // when to look again, because something is damaged; zero: never
	index []byte
	at    time.Time // when index.json, and what blobs/ lists, last changed
	files []ociFile // by number
	known map[imgsrc.Image]*ociImage
}

// ociFile is one blob of a state.
type ociFile struct {
	number uint32
	layer  int32
	size   int64
	of     *ociImage // one of those that have it
	kind   export.OriginKind
}

// isFor says whether the state is that of a snapshot, and nothing in it has to be looked at again.
func (s *ociState) isFor(snap *imgsrc.Snapshot) bool {
	return s != nil && s.snap == snap && (s.until.IsZero() || time.Now().Before(s.until))
}

// ociFailure is why a snapshot could not be put into OCI form. It stands for a moment.
type ociFailure struct {
	snap  *imgsrc.Snapshot
	err   error
	until time.Time
}

// current returns the state for the catalog as it is now.
func (t *ociTree) current(ctx context.Context) (*ociState, error) {
	if err := t.f.askAll(ctx); err != nil {
		return nil, err
	}
	snap := t.f.refresh(ctx).snap
	for {
		if s := t.state.Load(); s.isFor(snap) {
			return s, nil
		}
		res, err := t.f.shared(ctx, "oci", func(ctx context.Context) (any, error) { return t.update(ctx) })
		if err != nil {
			return nil, err
		}
		// Whoever joined an update that was under way may have got an older state than he asked for.
		if s := res.(*ociState); s.snap.Generation >= snap.Generation {
			return s, nil
		}
	}
}

// update makes the state of the catalog's last snapshot.
func (t *ociTree) update(ctx context.Context) (*ociState, error) {
	snap, old := t.f.state.Load().snap, t.state.Load()
	if old.isFor(snap) {
		return old, nil
	}
	if f := t.failed; f != nil && f.snap == snap && time.Now().Before(f.until) {
		return nil, f.err
	}
	run := &ociRun{t: t, snap: snap, done: map[imgsrc.Image]*ociImage{}}
	entries, err := run.convertAll(ctx)
	if err != nil {
		t.keep(run.done, snap)
		t.sweep(old)
		t.failed = &ociFailure{snap, err, time.Now().Add(damagedKept)}
		return nil, err
	}
	t.known, t.failed = run.done, nil
	s := &ociState{snap: snap, files: filesOf(entries.images), known: run.done}
	if s.index, err = export.IndexJSON(entries.index); err != nil {
		return nil, err
	}
	for _, img := range run.done {
		if !img.until.IsZero() && (s.until.IsZero() || img.until.Before(s.until)) {
			s.until = img.until
		}
	}
	t.date(s, old)
	t.state.Store(s)
	t.sweep(s)
	t.f.contents.drop(func(key contentKey) bool {
		if key.kind != contentOCI {
			return false
		}
		was, _ := old.file(uint32(key.layer))
		is, _ := s.file(uint32(key.layer))
		return was.of != is.of
	})
	return s, nil
}

// keep adds what was found out by an update that failed. What is not in the snapshot is forgotten.
func (t *ociTree) keep(done map[imgsrc.Image]*ociImage, snap *imgsrc.Snapshot) {
	for _, e := range snap.Entries {
		for _, h := range e.Held {
			if o := t.known[h.Image]; o != nil && done[h.Image] == nil {
				done[h.Image] = o
			}
		}
	}
	t.known = done
}

// filesOf are the blobs of images. One that several have is read from one that is here.
func filesOf(images []*ociImage) []ociFile {
	var all []ociFile
	for _, img := range images {
		for _, b := range img.blobs {
			all = append(all, ociFile{number: b.number, layer: b.layer, size: b.size, of: img, kind: b.kind})
		}
	}
	slices.SortStableFunc(all, func(a, b ociFile) int {
		switch {
		case a.number != b.number:
			return cmp.Compare(a.number, b.number)
		case a.of.remote == b.of.remote:
			return 0
		case a.of.remote:
			return 1
		}
		return -1
	})
	return slices.Clip(slices.CompactFunc(all, func(a, b ociFile) bool { return a.number == b.number }))
}

// date says when a state came to be. It is the sources' word for it as far as they give one, so that it is the same after a
// remount; but what differs from an earlier state has another time.
func (t *ociTree) date(s, old *ociState) {
	now, dated := time.Now(), true
	for i, src := range t.f.catalog.Sources() {
		if !t.f.isFollowed(src) && (i >= len(s.snap.ModTimes) || s.snap.ModTimes[i].IsZero()) {
			dated = false
		}
	}
	switch {
	case old == nil && dated:
		s.at = s.snap.ModTime
	case old == nil:
		s.at = t.f.started
	case bytes.Equal(s.index, old.index) && s.lists(old):
		s.at = old.at
	case dated && s.snap.ModTime.After(old.at):
		s.at = s.snap.ModTime
	default:
		s.at = later(old.at, now)
	}
}

// lists says whether two states have the same blobs.
func (s *ociState) lists(old *ociState) bool {
	return slices.EqualFunc(s.files, old.files, func(a, b ociFile) bool { return a.number == b.number })
}
