package registry

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/cachefile"
	"github.com/imgfs/imgfs/imgsrc/layer"
)

// blobs keeps layers as the registry has them, in files below the layer cache's directory, whose limit they share: that
// cache removes what was not used for long from all directories there, and leaves alone what is locked.
//
//	v1/fetched/<algorithm>/<hex>         a blob, exactly its bytes
//	v1/part/fetched-<algorithm>-<hex>    one that is coming in, or whose connection broke: the next attempt goes on there
//
// A finished file is hashed before it is first read from, unless this process has written it.
type blobs struct {
	source *Source
	dir    *os.Root // nil: blobs are kept in files without a name
	turns  turns

	mu       sync.Mutex
	open     map[digest.Digest]*blob
	verified map[digest.Digest]cachefile.Identity // files that were found right, also when they are not open any more
	lasting  int                                  // how many of them there were when those that are gone were last forgotten
	closed   bool
}

const (
	cacheVersion = "v1"
	fetchedDir   = "fetched"
	partDir      = "part"
	maxFetches   = 6
)

func newBlobs(s *Source, cacheDir string) *blobs {
	b := &blobs{source: s, open: map[digest.Digest]*blob{}, verified: map[digest.Digest]cachefile.Identity{}}
	if cacheDir == "" {
		return b
	}
	dir := filepath.Join(cacheDir, cacheVersion)
	err := os.MkdirAll(dir, 0o700)
	if err == nil {
		b.dir, err = os.OpenRoot(dir)
	}
	if err == nil {
		if err = checkOwner(b.dir); err != nil {
			b.dir.Close()
			b.dir = nil
		}
	}
	if err != nil {
		s.log.Warn("keeping blobs in the cache is not possible; using temporary files", "error", err)
	}
	return b
}

func blobPath(d digest.Digest) string {
	return fetchedDir + "/" + d.Algorithm().String() + "/" + d.Encoded()
}

func partPath(d digest.Digest) string {
	return partDir + "/" + layer.ResumedPrefix + d.Algorithm().String() + "-" + d.Encoded()
}

// hasBlob says whether the blob is at hand, as a whole.
func (b *blobs) hasBlob(d digest.Digest) bool {
	b.mu.Lock()
	x := b.open[d]
	b.mu.Unlock()
	if x != nil {
		x.mu.Lock()
		defer x.mu.Unlock()
		return x.whole || hasFile(b.dir, blobPath(d))
	}
	return hasFile(b.dir, blobPath(d))
}

// arrived is how many bytes of a blob are here of which the rest is coming, or can come.
func (b *blobs) arrived(d digest.Digest) int64 {
	b.mu.Lock()
	x := b.open[d]
	b.mu.Unlock()
	if x == nil {
		return 0
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.arrived
}

// hasDiff says whether the layer cache has the tar, in the files that its format promises (package layer).
func (b *blobs) hasDiff(l imgsrc.LayerFacts) bool {
	if l.DiffID == "" {
		return hasFile(b.dir, "blob/"+documentPath(l.Digest))
	}
	return l.DiffID.Validate() == nil && hasFile(b.dir, "diff/"+documentPath(l.DiffID))
}

// close closes all files. The fetches have ended.
func (b *blobs) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	for d, x := range b.open {
		x.drop()
		delete(b.open, d)
	}
	if b.dir != nil {
		b.dir.Close()
	}
}

// A blob is one that somebody reads, or that is coming in.
type blob struct {
	blobs  *blobs
	digest digest.Digest
	size   int64 // the descriptor's; -1 if it has none
	users  int   // guarded by blobs.mu
	demand demand

	mu      sync.Mutex
	repos   repos
	file    *os.File         // nil: none yet. Only the work that is under way changes it
	refs    map[*os.File]int // this blob's, and one for each read under way
	arrived int64            // bytes of file that are there while it comes in, not verified as a whole
	unsure  int64            // bytes of file that were there before, as long as they are not verified
	filling *filling         // nil: nothing comes in, or is being verified
	whole   bool             // the file is complete, and was verified when it was this one
	was     cachefile.Identity
	busy    bool          // work is under way
	err     error         // why the last work failed, until the next begins
	changed chan struct{} // closed when any of these changes

	repo     string              // that is asked. Of the work that is under way, and nobody else's, like what follows
	turn     *turn               // nil: it does not fetch
	tell     func(arrived int64) // nil: it has asked the registry for nothing yet
	over     func(error)
	doubtful bool    // parts of it are of an earlier mount, or another process's
	shared   bool    // it has the lock of the part file, for which other processes wait
	parked   *parked // where it stopped when it gave way; nil: it did not
}

// use returns the blob of a digest, which the caller releases.
func (b *blobs) use(repo string, d digest.Digest, size int64) (*blob, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, fmt.Errorf("registry: %w", fs.ErrClosed)
	}
	x := b.open[d]
	if x == nil || size >= 0 && x.size >= 0 && size != x.size && !x.isHere() { // or it is not clear who is right
		x = &blob{blobs: b, digest: d, size: size, repo: repo, changed: make(chan struct{}), refs: map[*os.File]int{}}
		b.open[d] = x
	}
	if size >= 0 && x.size >= 0 && size != x.size {
		return nil, fmt.Errorf("%w: two manifests say that %s has %d and %d bytes", imgsrc.ErrDamaged, d, x.size, size)
	}
	x.users++
	x.addRepos(repo)
	return x, nil
}

func (x *blob) addRepos(more ...string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.repos.add(more...)
}

// release gives back what use returned.
func (b *blobs) release(x *blob) {
	b.mu.Lock()
	defer b.mu.Unlock()
	x.users--
	b.tidy(x)
}

// tidy forgets a blob that nobody needs. The caller holds b.mu.
func (b *blobs) tidy(x *blob) {
	x.mu.Lock()
	busy := x.busy
	x.mu.Unlock()
	if x.users > 0 || busy {
		return
	}
	if b.open[x.digest] == x {
		delete(b.open, x.digest)
	}
	x.drop()
}

// isHere says whether there is something of a blob, or comes in.
func (x *blob) isHere() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.file != nil || x.busy
}

// drop lets go of the file. Who reads from it closes it.
func (x *blob) drop() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.dropLocked()
}

func (x *blob) dropLocked() {
	f := x.file
	x.endLocked(errGivenUp)
	x.file, x.arrived, x.unsure, x.whole = nil, 0, 0, false
	if f != nil {
		x.unref(f)
	}
}

func (x *blob) unref(f *os.File) {
	if x.refs[f]--; x.refs[f] == 0 {
		delete(x.refs, f)
		f.Close()
	}
}

// update changes the blob under its lock, and wakes those who wait.
func (x *blob) update(change func()) {
	x.mu.Lock()
	defer x.mu.Unlock()
	change()
	close(x.changed)
	x.changed = make(chan struct{})
}

// A held is a file to read from, until done is called.
type held struct {
	*os.File
	arrived int64 // bytes that are there
	whole   bool  // those are all, and verified
	was     cachefile.Identity
	filling *filling // what verifies them, if they are not
}

// wait returns the file when it is whole; or, from an offset that is not negative, as soon as there is something behind
// that. It starts the work that is missing, and waits for it.
func (x *blob) wait(ctx context.Context, from int64) (held, error) {
	return x.waitFor(ctx, from, true)
}

// waitFor is wait that, unless again is set, does not start work anew that has failed.
func (x *blob) waitFor(ctx context.Context, from int64, again bool) (held, error) {
	return x.waitUntil(ctx, again, func() bool { return x.whole || from >= 0 && x.arrived > from })
}

// waitUntil is waitFor that waits until the file is as it is needed, which is asked with x.mu held.
func (x *blob) waitUntil(ctx context.Context, again bool, ready func() bool) (held, error) {
	defer x.blobs.turns.ask(&x.demand)()
	return x.bring(ctx, again, ready)
}

// bring is waitUntil for nobody who waits himself: what comes in for him comes after what somebody waits for.
func (x *blob) bring(ctx context.Context, again bool, ready func() bool) (held, error) {
	for waited := !again; ; waited = true {
		if err := ctx.Err(); err != nil {
			return held{}, err
		}
		x.mu.Lock()
		if x.file != nil && ready() {
			h := held{x.file, x.arrived, x.whole, x.was, x.filling}
			x.refs[x.file]++
			x.mu.Unlock()
			return h, nil
		}
		if err := x.err; waited && !x.busy && err != nil {
			x.mu.Unlock()
			return held{}, err
		}
		begin, changed := !x.busy, x.changed
		if begin {
			x.busy, x.err = true, nil
		}
		x.mu.Unlock()
		if begin && !x.blobs.source.flights.Start(new(int), x.work) {
			x.update(func() { x.busy = false })
			return held{}, fmt.Errorf("registry: %w", fs.ErrClosed)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return held{}, ctx.Err()
		}
	}
}

func (x *blob) done(h held) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.unref(h.File)
}

// distrust makes the next reader verify the file anew: it is not the one that was verified any more.
func (x *blob) distrust(h held) {
	x.update(func() {
		if x.file == h.File && !x.busy {
			x.whole, x.arrived = false, 0
		}
	})
}

// work gets at the blob's bytes, and ends by saying how that went.
func (x *blob) work(ctx context.Context) (_ any, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
		if err != nil && ctx.Err() != nil { // never context.Canceled: the reader's own context has not ended
			err = fmt.Errorf("registry: %w", fs.ErrClosed)
		}
		x.update(func() {
			x.busy, x.err = false, err
			if err != nil {
				x.dropLocked()
			}
		})
		x.blobs.mu.Lock()
		defer x.blobs.mu.Unlock()
		x.blobs.tidy(x)
	}()
	for _, bring := range []func(context.Context) (bool, error){x.verifyAgain, x.bringFound} {
		if there, err := bring(ctx); there || err != nil {
			return nil, err
		}
	}
	return nil, x.fetchUnlessSpoilt(ctx)
}

// finish makes f, which has been verified, the file to read from.
func (x *blob) finish(f *os.File) {
	id, err := cachefile.Identify(f)
	if err != nil {
		id = cachefile.Identity{} // then the first reader looks again
	}
	x.blobs.remember(x.digest, id)
	x.update(func() {
		if x.file != f {
			x.file = f
			x.refs[f]++
		}
		x.arrived, x.unsure, x.whole, x.was = id.Size, 0, true, id
		x.endLocked(nil)
	})
}
