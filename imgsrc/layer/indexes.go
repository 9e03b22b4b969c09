package layer

import (
	"cmp"
	"container/list"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"
	"weak"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
)

// heldIndexes is how many bytes of indexes are held for whoever asks next.
const heldIndexes = 16 << 20

// largeIndex is from what size in bytes on the memory that making an index took is given back at once.
const largeIndex = 4 << 20

// maxIndexes is how many bytes the indexes of the layers of one tree may take together.
const maxIndexes = 3 << 30

// indexes are the indexes of layers that are in memory, or being made.
type indexes struct {
	mu     sync.Mutex
	known  map[imgsrc.FilesKey]weak.Pointer[Index]
	held   *list.List // of *heldIndex, the one used last in front
	inHeld map[imgsrc.FilesKey]*list.Element
	size   int64
	flying map[imgsrc.FilesKey]*indexJob
	bad    map[badKey]*verdict // layers that are damaged, so that they are not read again at every request
}

// A badKey is a layer where it was found damaged: elsewhere it may be sound.
type badKey struct {
	key  imgsrc.FilesKey
	from digest.Digest
}

type heldIndex struct {
	key imgsrc.FilesKey
	x   *Index
}

// An indexJob is one making of an index.
type indexJob struct {
	from digest.Digest
	done chan struct{}
	x    *Index
	err  error
}

func newIndexes() *indexes {
	return &indexes{known: map[imgsrc.FilesKey]weak.Pointer[Index]{}, held: list.New(), inHeld: map[imgsrc.FilesKey]*list.Element{}, flying: map[imgsrc.FilesKey]*indexJob{}, bad: map[badKey]*verdict{}}
}

// A Layer is what Index needs of one.
type Layer struct {
	Key  imgsrc.FilesKey
	From digest.Digest // of what is read: the same layer may lie in several blobs, of which one is damaged
	Open func(context.Context) (imgsrc.Files, error)
}

// Index returns the index of a layer: from memory, from the cache's directory, or by reading the layer, for all who ask
// at once. It returns as soon as ctx ends; the reading goes on, in the cache's own context. Open is called for it, and
// what it returns is closed.
//
// Errors: imgsrc.ErrDamaged if the layer is not what its digest says, or no tar, or has too many entries; Open's;
// EAGAIN if what Open returns has another key; fs.ErrClosed when the cache has been closed.
func (c *Cache) Index(ctx context.Context, l Layer) (*Index, error) {
	for {
		x, j, mine, err := c.lookIndex(l)
		if j == nil {
			return x, err
		}
		select {
		case <-j.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		// Another's blob may be damaged and this one not; and its Open fails when its image has been removed.
		if j.err == nil || mine || j.from == l.From && errors.Is(j.err, imgsrc.ErrDamaged) {
			return j.x, j.err
		}
	}
}

// lookIndex returns what is known of a layer, or the job that will tell, and whether that was begun for this l.
func (c *Cache) lookIndex(l Layer) (x *Index, j *indexJob, mine bool, err error) {
	ix := c.indexes
	ix.mu.Lock()
	defer ix.mu.Unlock()
	if x := ix.get(l.Key); x != nil {
		return x, nil, false, nil
	}
	bad := badKey{l.Key, l.From}
	if v, ok := ix.bad[bad]; ok {
		if v.holds() {
			return nil, nil, false, v
		}
		delete(ix.bad, bad)
	}
	if j := ix.flying[l.Key]; j != nil {
		return nil, j, false, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, nil, false, fmt.Errorf("indexing layer %s: cache: %w", l.Key.Digest, fs.ErrClosed)
	}
	j = &indexJob{from: l.From, done: make(chan struct{})}
	ix.flying[l.Key] = j
	c.jobs.Go(func() { c.makeIndex(l, j) })
	return nil, j, true, nil
}

func (c *Cache) makeIndex(l Layer, j *indexJob) {
	k, began := l.Key, time.Now()
	x, err := c.bringIndex(k, l.Open)
	if err != nil {
		if c.ctx.Err() != nil { // never context.Canceled: the reader's own context has not ended
			err = fmt.Errorf("cache: %w", fs.ErrClosed)
		} else if errors.Is(err, imgsrc.ErrDamaged) {
			err = c.logDamage("indexing layer", cmp.Or(l.From, k.Digest), err, "diff-id", k.Digest)
		}
		err = fmt.Errorf("indexing layer %s: %w", k.Digest, err)
	}
	j.x, j.err = x, err
	ix := c.indexes
	ix.mu.Lock()
	delete(ix.flying, k)
	if errors.Is(err, imgsrc.ErrDamaged) {
		ix.bad[badKey{k, l.From}] = verdictOf(err, began)
	}
	if err == nil {
		ix.known[k] = weak.Make(x)
		runtime.AddCleanup(x, ix.forget, k)
		ix.hold(k, x)
	}
	ix.mu.Unlock()
	close(j.done)
}

func (c *Cache) bringIndex(k imgsrc.FilesKey, open func(context.Context) (imgsrc.Files, error)) (x *Index, err error) {
	defer func() {
		if r := recover(); r != nil { // headers from outside are met here
			x, err = nil, fmt.Errorf("%w: panic: %v", imgsrc.ErrDamaged, r)
		}
	}()
	if isKept(k) {
		if x := c.loadIndex(k); x != nil {
			return x, nil
		}
	}
	x, err = c.makeSmall(k, open)
	if errors.Is(err, errLarge) {
		x, err = c.makeLarge(k, open)
	}
	return x, err
}

// isKept says whether an index has a file in the cache's directory.
func isKept(k imgsrc.FilesKey) bool { return !k.Transient && k.Digest.Validate() == nil }

var errLarge = errors.New("another large index is being made")

// makeSmall makes an index, several at a time. Error: errLarge if it turns out to be a large one while another of these
// is being made: it is then begun again after that, and holds nothing until then.
func (c *Cache) makeSmall(k imgsrc.FilesKey, open func(context.Context) (imgsrc.Files, error)) (*Index, error) {
	if err := take(c.ctx, c.indexing); err != nil { // each takes descriptors and memory
		return nil, err
	}
	defer func() { <-c.indexing }()
	large := false
	defer func() {
		if large {
			<-c.large
		}
	}()
	return c.readLayer(k, open, func() error {
		select {
		case c.large <- struct{}{}:
			large = true
			return nil
		default:
			return errLarge
		}
	})
}

// makeLarge makes an index when no other large one is being made.
func (c *Cache) makeLarge(k imgsrc.FilesKey, open func(context.Context) (imgsrc.Files, error)) (*Index, error) {
	if err := take(c.ctx, c.large); err != nil {
		return nil, err
	}
	defer func() { <-c.large }()
	return c.readLayer(k, open, func() error { return nil })
}

// readLayer makes an index and keeps it.
func (c *Cache) readLayer(k imgsrc.FilesKey, open func(context.Context) (imgsrc.Files, error), large func() error) (*Index, error) {
	files, err := open(c.ctx)
	if err != nil {
		return nil, &sourceError{err}
	}
	var x *Index
	grew := false
	if files.Key() == k {
		x, err = buildIndex(c.ctx, files, func() error {
			grew = true
			return large()
		})
	} else {
		err = fmt.Errorf("it has been replaced meanwhile: %w", unix.EAGAIN)
	}
	if err = errors.Join(err, files.Close()); err != nil {
		if grew {
			debug.FreeOSMemory()
		}
		return nil, err
	}
	if x.skipped > 0 {
		c.log.Warn("leaving out files whose names or paths are too long", "digest", k.Digest, "files", x.skipped)
	}
	if isKept(k) {
		c.saveIndex(indexKey(k), x)
	}
	if x.memory() > largeIndex {
		debug.FreeOSMemory() // making it took several times as much as it takes
	}
	return x, nil
}

// get returns an index that is in memory. The caller holds ix.mu.
func (ix *indexes) get(k imgsrc.FilesKey) *Index {
	x := ix.known[k].Value()
	if x == nil {
		delete(ix.known, k)
		return nil
	}
	if el := ix.inHeld[k]; el != nil {
		ix.held.MoveToFront(el)
		return x
	}
	ix.hold(k, x)
	return x
}

// forget is called when an index has gone from memory.
func (ix *indexes) forget(k imgsrc.FilesKey) {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	if w, ok := ix.known[k]; ok && w.Value() == nil { // it may have been made again
		delete(ix.known, k)
	}
}

// hold keeps an index that is not held yet.
func (ix *indexes) hold(k imgsrc.FilesKey, x *Index) {
	ix.inHeld[k] = ix.held.PushFront(&heldIndex{k, x})
	ix.size += x.memory()
	for ix.size > heldIndexes {
		h := ix.held.Remove(ix.held.Back()).(*heldIndex)
		delete(ix.inHeld, h.key)
		ix.size -= h.x.memory()
	}
}

// Indexes returns the indexes of several layers, made side by side. Errors: Index's; imgsrc.ErrUnsupported if they take
// more memory together than maxIndexes.
func (c *Cache) Indexes(ctx context.Context, layers []Layer) ([]*Index, error) {
	all := make([]*Index, len(layers))
	var size atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	for i, l := range layers {
		g.Go(func() error {
			x, err := c.Index(ctx, l)
			if err != nil {
				return err
			}
			if size.Add(x.memory()) > c.together {
				return fmt.Errorf("indexing %d layers: %w: the indexes take more than %d bytes", len(layers), imgsrc.ErrUnsupported, c.together)
			}
			all[i] = x
			return nil
		})
	}
	return all, g.Wait()
}
