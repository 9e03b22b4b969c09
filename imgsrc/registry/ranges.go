package registry

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/cachefile"
)

// ranges are the parts of a blob that were asked for by their offsets. They are kept in a file of the blob's length with
// holes where nothing has come yet, below the layer cache's directory:
//
//	v1/ranges/<algorithm>/<hex>
//
// Nothing in that file is believed: whoever reads a part verifies it, and asks for it again if it is not right. So it
// needs no record of what is in it, any number of processes write to it, and one that dies leaves no damage.
type ranges struct {
	source *Source
	repo   string
	digest digest.Digest
	size   int64
	users  int         // guarded by Source.lazyMu
	idle   *time.Timer // likewise; closes them when nobody has used them for a while

	mu     sync.Mutex
	opened bool
	file   *os.File // nil: nothing can be kept
	full   bool     // nothing more can be
	have   spans    // what is in the file, probably
	got    spans    // what this process has put there
	asked  int64    // how often the registry was asked for a part
	flying []*fetching
	runs   []run         // where readers were last, the latest at the end
	trails []trail       // and which files they read, where these lay scattered
	took   time.Duration // the last request, to its last byte
	x      *blob         // the whole blob, if somebody has wanted it; released when the last user has gone
	wide   bool          // the whole blob is not to be fetched any more, and what is missing asked for in large parts
	coming bool          // the whole blob is being fetched
	begun  time.Time     // since then
	seeded int64         // from there on
	failed bool          // or that has failed
}

// A fetching is one request under way.
type fetching struct {
	span
	done chan struct{} // closed when data and err are set
	data []byte
	err  error
}

// A run is a place where a reader goes on.
type run struct {
	span
	window int64 // bytes to ask for there the next time
}

const (
	rangesDir = "ranges"

	// firstWindow is how many bytes are asked for at a place where nobody has read before, at most: as many as half a
	// round trip brings. Of small blobs it is less, so that one file is not most of them.
	firstWindow, firstShare = 64 << 10, 128
	leastWindow             = 4 << 10
	// lastWindow is how far that grows while a reader goes on, also in parts of the blob: by then most of it is wanted.
	windowGrows           = 4
	lastWindow, lastShare = 4 << 20, 8
	// aheadWindow is how far that must have grown for the next to be asked for while this one is read.
	aheadWindow = 1 << 20
	// maxRuns is how many readers are told from one another.
	maxRuns = 8
)

func rangesPath(d digest.Digest) string {
	return rangesDir + "/" + d.Algorithm().String() + "/" + d.Encoded()
}

// openLocked opens the file. The caller holds r.mu.
func (r *ranges) openLocked() {
	if r.opened {
		return
	}
	r.opened = true
	f, err := r.openShared()
	if err != nil {
		r.source.log.Debug("keeping parts of a blob in the cache", "blob", r.digest, "error", err)
		if f, err = cachefile.Unnamed("imgfs-blob-"); err == nil {
			err = f.Truncate(r.size)
		}
		if err != nil {
			r.source.log.Warn("keeping parts of a blob is not possible; asking for them again", "blob", r.digest, "error", err)
			return
		}
	}
	r.file = f
	for at := int64(0); at < r.size; {
		from, err := f.Seek(at, unix.SEEK_DATA)
		if err != nil {
			return
		}
		to, err := f.Seek(from, unix.SEEK_HOLE)
		if err != nil || to <= from {
			return
		}
		r.have = r.have.add(from, to)
		at = to
	}
}

func (r *ranges) openShared() (*os.File, error) {
	dir, name := r.source.blobs.dir, rangesPath(r.digest)
	if dir == nil {
		return nil, errors.ErrUnsupported
	}
	if err := dir.MkdirAll(path.Dir(name), 0o700); err != nil {
		return nil, err
	}
	f, err := dir.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, err
	}
	_ = cachefile.Flock(f, unix.LOCK_SH|unix.LOCK_NB) // who evicts it at this moment leaves a file without a name
	fi, err := f.Stat()
	switch {
	case err != nil:
	case !fi.Mode().IsRegular():
		err = errors.ErrUnsupported
	case fi.Size() != r.size:
		err = f.Truncate(r.size)
	case time.Since(fi.ModTime()) > usedTime:
		now := time.Now()
		_ = dir.Chtimes(name, now, now)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// use counts another user. The caller holds Source.lazyMu.
func (r *ranges) use() {
	r.users++
	if r.idle != nil {
		r.idle.Stop()
	}
}

// close is called when nobody uses the ranges any more.
func (r *ranges) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.file != nil {
		r.file.Close()
		r.file = nil
	}
	r.opened, r.have, r.got, r.asked, r.runs, r.trails, r.wide = false, nil, nil, 0, nil, nil, false
	if r.x != nil {
		r.source.blobs.release(r.x)
		r.x = nil
	}
}

// has says whether a part can be read without asking anybody, probably.
func (r *ranges) has(from, to int64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.openLocked()
	return r.have.has(from, to)
}

// forget drops a part that turned out to be wrong.
func (r *ranges) forget(from, to int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.have, r.got = r.have.remove(from, to), r.got.remove(from, to)
}

// A vicinity is what is known of where a part lies.
type vicinity struct {
	snap        func(int64) int64 // moves an end to where nothing is cut in two
	turn, files int               // see layer.Chunks
}

// get returns a part, from the file or by asking for it and for what is likely to be wanted next.
func (r *ranges) get(ctx context.Context, from, to int64, near *vicinity) ([]byte, error) {
	if from < 0 || from > to || to > r.size {
		return nil, fmt.Errorf("%w: bytes %d to %d of a blob of %d", imgsrc.ErrDamaged, from, to, r.size)
	}
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		r.mu.Lock()
		r.openLocked()
		if f := r.file; f != nil && r.have.has(from, to) {
			r.readAheadLocked(from, near)
			r.mu.Unlock()
			b := make([]byte, to-from)
			if _, err := f.ReadAt(b, from); err == nil {
				return b, nil
			}
			r.forget(from, to)
			continue
		}
		if r.source.offline {
			r.mu.Unlock()
			return nil, fmt.Errorf("bytes %d to %d: %w", from, to, errOffline)
		}
		g := r.flyingLocked(from, to)
		if g == nil {
			if g = r.startLocked(from, to, near); g == nil {
				r.mu.Unlock()
				return nil, errClosed
			}
		}
		r.mu.Unlock()
		select {
		case <-g.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		switch {
		case g.err != nil:
			return nil, g.err
		case g.from <= from && to <= g.to:
			return g.data[from-g.from : to-g.from], nil
		}
	}
}

// flyingLocked returns a request that brings some of a part.
func (r *ranges) flyingLocked(from, to int64) *fetching {
	for _, g := range r.flying {
		if g.from < to && from < g.to {
			return g
		}
	}
	return nil
}

// startLocked begins a request, in the source's context. Nil if that has been closed.
func (r *ranges) startLocked(from, to int64, near *vicinity) *fetching {
	want := r.planLocked(from, to, near)
	g := &fetching{span: want, done: make(chan struct{})}
	ok := r.source.flights.Start(g, func(ctx context.Context) (any, error) {
		began, told := time.Now(), r.source.told.begin(r.source.Host()+"/"+r.repo, r.digest, r.size)
		g.data, g.err = r.ask(ctx, want)
		told(len(g.data), g.err)
		r.mu.Lock()
		if g.err == nil {
			r.took = time.Since(began)
			r.keepLocked(g)
		}
		for i, other := range r.flying {
			if other == g {
				r.flying = append(r.flying[:i:i], r.flying[i+1:]...)
				break
			}
		}
		close(g.done)
		r.mu.Unlock()
		r.source.wrote(int64(len(g.data)))
		return nil, nil
	})
	if !ok {
		return nil
	}
	r.asked++
	r.flying = append(r.flying, g)
	return g
}

// planLocked decides what to ask for when a part is wanted.
func (r *ranges) planLocked(from, to int64, near *vicinity) span {
	if r.file == nil || r.full { // what is asked for beyond it would be lost
		return span{from, to}
	}
	want := span{}
	want.from, want.to = r.have.missing(from, to)
	if near == nil {
		return want
	}
	now, most := run{window: max(leastWindow, min(firstWindow, r.size/firstShare))}, min(lastWindow, r.size/lastShare)
	if r.wide {
		now.window = max(now.window, most)
	}
	if i := r.runLocked(from); i >= 0 {
		now.window = max(now.window, min(windowGrows*r.runs[i].window, most))
		r.runs = append(r.runs[:i:i], r.runs[i+1:]...)
	}
	before, behind := r.have.around(want.from, r.size)
	if want.from-before <= now.window { // whoever skips a little will come back, and the parts join
		want.from = before
	}
	want.to = max(want.to, min(near.snap(from+now.window), behind))
	for _, g := range r.flying { // what others bring is not asked for twice
		if g.from >= to {
			want.to = min(want.to, g.from)
		}
		if g.to <= from {
			want.from = max(want.from, g.to)
		}
	}
	now.span = want
	r.runs = append(r.runs, now)
	if len(r.runs) > maxRuns {
		r.runs = r.runs[1:]
	}
	return want
}

// readAheadLocked asks for what comes next where a reader has gone on for long, so that he need not wait for it.
func (r *ranges) readAheadLocked(at int64, near *vicinity) {
	if near == nil || r.coming || r.full || r.source.offline {
		return
	}
	for _, x := range r.runs {
		if x.window < aheadWindow || at < (x.from+x.to)/2 || at >= x.to || x.to >= r.size {
			continue
		}
		if r.flyingLocked(x.to, x.to+1) == nil && !r.have.has(x.to, x.to+1) {
			r.startLocked(x.to, x.to+1, near)
		}
		return
	}
}

// runLocked returns which of the runs goes on at an offset, -1 if none does.
func (r *ranges) runLocked(at int64) int {
	for i, last := range slices.Backward(r.runs) {
		if at >= last.from-last.window && at <= last.to+last.window {
			return i
		}
	}
	return -1
}

// ask asks the registry for a part. Errors: imgsrc.ErrUnsupported if it does not know ranges; imgsrc.ErrDamaged if it sends
// another; those of the network.
func (r *ranges) ask(ctx context.Context, want span) ([]byte, error) {
	n := want.to - want.from
	b, err := r.source.client.BlobRange(ctx, r.repo, r.digest, want.from, n)
	switch {
	case err != nil && ctx.Err() != nil: // never context.Canceled: the reader's own context has not ended
		return nil, errClosed
	case err != nil:
		return nil, err
	case len(b) == 0:
		return nil, fmt.Errorf("asking for %d bytes at %d: %w: the registry has no such range", n, want.from, imgsrc.ErrUnsupported)
	case int64(len(b)) < n:
		return nil, fmt.Errorf("asking for %d bytes at %d: %w: the registry sent %d", n, want.from, imgsrc.ErrDamaged, len(b))
	}
	return b, nil
}

// keepLocked writes what has come into the file.
func (r *ranges) keepLocked(g *fetching) {
	if r.file == nil || r.full {
		return
	}
	_, err := cachefile.Room(r.file, int64(len(g.data)))
	if err == nil {
		_, err = r.file.WriteAt(g.data, g.from)
	}
	if err != nil {
		r.full = true
		r.source.log.Debug("keeping parts of a blob in the cache", "blob", r.digest, "error", err)
		return
	}
	r.have, r.got = r.have.add(g.from, g.to), r.got.add(g.from, g.to)
}
