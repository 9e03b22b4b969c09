package fs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

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
	files []ociFile // by number - 1; those that are not there have no image
}

// ociFile is one blob of a state.
type ociFile struct {
	size  int64
	of    *ociImage // one of those that have it
	layer int32
	kind  export.OriginKind
}

// A blobSum is a SHA-256, or that of a digest of another algorithm.
type blobSum [sha256.Size]byte

func sumOf(d digest.Digest) (sum blobSum) {
	if d.Algorithm() != digest.SHA256 {
		return sha256.Sum256([]byte(d))
	}
	if n, err := hex.Decode(sum[:], []byte(d.Encoded())); n != len(sum) || err != nil {
		return sha256.Sum256([]byte(d)) // which is none, so that nothing has it
	}
	return sum
}

// blobNumbers numbers blobs, for good: one that goes and comes back is the same node. The zero value is ready.
type blobNumbers struct {
	mu    sync.RWMutex
	index map[blobSum]uint32
	sums  []blobSum                // by number - 1
	long  map[uint32]digest.Digest // of those that are not SHA-256
}

// number returns the number of a blob, a new one if it has none.
func (b *blobNumbers) number(d digest.Digest) uint32 {
	sum := sumOf(d)
	b.mu.Lock()
	defer b.mu.Unlock()
	if n, ok := b.index[sum]; ok {
		return n
	}
	if b.index == nil {
		b.index, b.long = map[blobSum]uint32{}, map[uint32]digest.Digest{}
	}
	b.sums = append(b.sums, sum)
	n := uint32(len(b.sums))
	b.index[sum] = n
	if d.Algorithm() != digest.SHA256 {
		b.long[n] = d
	}
	return n
}

// find returns the number of a blob; 0 if it has none.
func (b *blobNumbers) find(d digest.Digest) uint32 {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.index[sumOf(d)]
}

// digest is that of a blob with a number.
func (b *blobNumbers) digest(n uint32) digest.Digest {
	b.mu.RLock()
	defer b.mu.RUnlock()
	if d, ok := b.long[n]; ok {
		return d
	}
	return digest.NewDigestFromBytes(digest.SHA256, b.sums[n-1][:])
}

// count is how many blobs there ever were.
func (b *blobNumbers) count() int {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return len(b.sums)
}

// file returns a blob of the state. Not ok if it is not there.
func (s *ociState) file(number uint32) (ociFile, bool) {
	if s == nil || number == 0 || int(number) > len(s.files) || s.files[number-1].of == nil {
		return ociFile{}, false
	}
	return s.files[number-1], true
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
		t.keep(run.done)
		t.failed = &ociFailure{snap, err, time.Now().Add(damagedKept)}
		return nil, err
	}
	t.known, t.failed = run.done, nil
	s := &ociState{snap: snap, files: make([]ociFile, t.numbers.count())}
	if s.index, err = export.IndexJSON(entries.index); err != nil {
		return nil, err
	}
	for _, img := range entries.images {
		t.add(s, img)
	}
	for _, img := range run.done {
		if !img.until.IsZero() && (s.until.IsZero() || img.until.Before(s.until)) {
			s.until = img.until
		}
	}
	t.date(s, old)
	t.state.Store(s)
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

// keep adds what was found out by an update that failed.
func (t *ociTree) keep(done map[imgsrc.Image]*ociImage) {
	if t.known == nil {
		t.known = done
		return
	}
	for key, img := range done {
		t.known[key] = img
	}
}

// add adds an image's blobs to a state that is being made. One that several images have is read from one that is here.
func (t *ociTree) add(s *ociState, img *ociImage) {
	for _, b := range img.blobs {
		file := &s.files[b.number-1]
		if file.of != nil && (!file.of.remote || img.remote) {
			continue
		}
		*file = ociFile{size: b.size, of: img, layer: b.layer, kind: b.kind}
	}
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
	for n := range max(len(s.files), len(old.files)) {
		_, is := s.file(uint32(n) + 1)
		if _, was := old.file(uint32(n) + 1); is != was {
			return false
		}
	}
	return true
}
