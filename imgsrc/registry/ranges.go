package registry

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
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
	digest digest.Digest
	size   int64
	users  int         // guarded by Source.lazyMu
	idle   *time.Timer // likewise; closes them when nobody has used them for a while

	mu     sync.Mutex
	repos  repos
	repo   string // that is asked, one of these
	opened bool
	file   *os.File // nil: nothing can be kept
	shared bool     // it is in the cache, where other processes write to it
	full   bool     // nothing more can be kept
	have   spans    // what is in the file, probably
	got    spans    // what this process has put there
	asked  int64    // how often the registry was asked for a part
	flying []*fetching
	runs   []run         // where readers were last, the latest at the end
	trails []trail       // and which files they read, where these lay scattered
	took   time.Duration // the last request, to its last byte
	x      *blob         // the whole blob, if somebody has wanted it; released when the last user has gone
	coming bool          // all that is missing is to come, for those who read
	begun  time.Time     // since then
	failed bool          // or that has failed
	rest   *rest         // it comes, for whomever; nil: it does not
	broken bool          // what the registry sends for ranges is not the blob: nothing is made of them
}

// A fetching is one request under way.
type fetching struct {
	span
	direct bool          // no mirror is asked
	done   chan struct{} // closed when data and err are set
	data   []byte
	err    error
}

const (
	rangesDir = "ranges"
	// rangesBlock is what requests are rounded to, where more may be kept: as exactly as that the file says what is in it.
	rangesBlock = 4096
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
	if r.shared = err == nil; err != nil {
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
	r.lookLocked(0, r.size)
}

// lookLocked takes note of what other processes have put into the file between two offsets, and says whether that was anything.
func (r *ranges) lookLocked(from, to int64) (found bool) {
	if r.file == nil || !r.shared {
		return false
	}
	for from < to {
		begin, err := r.file.Seek(from, unix.SEEK_DATA)
		if err != nil || begin >= to {
			break
		}
		end, err := r.file.Seek(begin, unix.SEEK_HOLE)
		if err != nil || end <= begin {
			break
		}
		from = min(end, to)
		if !r.have.has(begin, from) {
			r.have, found = r.have.add(begin, from), true
		}
	}
	return found
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

// addRepos notes repositories in which the blob can be asked for.
func (r *ranges) addRepos(more []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.repos.add(more...)
	if r.repo == "" {
		r.repo = r.repos[0]
	}
	if r.x != nil {
		r.x.addRepos(r.repos...)
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
	r.opened, r.have, r.got, r.asked, r.runs, r.trails = false, nil, nil, 0, nil, nil
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

// giveUp has the blob fetched without its parts: those cannot be used.
func (r *ranges) giveUp() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.broken = true
}

// judge is giveUp if err says that the registry does not send parts.
func (r *ranges) judge(err error) error {
	if errors.Is(err, imgsrc.ErrUnsupported) {
		r.giveUp()
	}
	return err
}

// errComing says that a part is on its way with the rest of the blob.
var errComing = errors.New("it comes with the rest of the blob")

// get returns a part, from the file or by asking for it and for what is likely to be wanted next. With again it is asked for,
// and no mirror is. Errors: errComing, if wait is set; the registry's.
func (r *ranges) get(ctx context.Context, from, to int64, near *vicinity, wait, again bool) ([]byte, error) {
	if from < 0 || from > to || to > r.size {
		return nil, fmt.Errorf("%w: bytes %d to %d of a blob of %d", imgsrc.ErrDamaged, from, to, r.size)
	}
	if again {
		r.forget(from, to)
	}
	for looked := again; ; looked = true {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		r.mu.Lock()
		r.openLocked()
		if !looked && !r.have.has(from, to) {
			r.lookLocked(from, to)
		}
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
		if wait && r.comesLocked(from, to) {
			r.mu.Unlock()
			return nil, errComing
		}
		g := r.flyingLocked(from, to)
		if g == nil {
			if g = r.startLocked(from, to, near, again); g == nil {
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
		case again && !g.direct:
			r.forget(from, to)
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
func (r *ranges) startLocked(from, to int64, near *vicinity, direct bool) *fetching {
	want := r.planLocked(from, to, near, direct)
	g, repo := &fetching{span: want, direct: direct, done: make(chan struct{})}, r.repo
	ok := r.source.flights.Start(g, func(ctx context.Context) (any, error) {
		began, told := time.Now(), r.source.told.begin(r.source.Host()+"/"+repo, r.digest, r.size)
		g.data, g.err = r.ask(ctx, repo, want, direct)
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

// ask asks the registry for a part: in a repository, and in the others where that does not give it out. Errors: imgsrc.ErrUnsupported if it does not know ranges, or sends another; those of the
// network.
func (r *ranges) ask(ctx context.Context, repo string, want span, direct bool) ([]byte, error) {
	n := want.to - want.from
	b, err := r.source.client.blobRange(ctx, repo, r.digest, want.from, n, direct)
	for asked := []string{repo}; err != nil; asked = append(asked, repo) {
		var ok bool
		if repo, ok = r.elsewhere(err, asked); !ok {
			break
		}
		b, err = r.source.client.blobRange(ctx, repo, r.digest, want.from, n, direct)
	}
	switch {
	case err != nil && ctx.Err() != nil: // never context.Canceled: the reader's own context has not ended
		return nil, errClosed
	case err != nil:
		return nil, err
	case len(b) == 0:
		return nil, fmt.Errorf("asking for %d bytes at %d: %w: the registry has no such range", n, want.from, imgsrc.ErrUnsupported)
	case int64(len(b)) < n:
		return nil, fmt.Errorf("asking for %d bytes at %d: %w: the registry sent %d", n, want.from, imgsrc.ErrUnsupported, len(b))
	}
	return b, nil
}

// elsewhere is [repos.elsewhere]. What is asked for later is asked for there, too.
func (r *ranges) elsewhere(err error, asked []string) (repo string, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if repo, ok = r.repos.elsewhere(err, asked); ok {
		r.repo = repo
	}
	return repo, ok
}

// keepLocked writes what has come into the file.
func (r *ranges) keepLocked(g *fetching) {
	if r.file == nil || r.full {
		return
	}
	err := r.roomLocked(int64(len(g.data)))
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

// roomLocked is [cachefile.Room]; in the cache, what was not used for long makes room.
func (r *ranges) roomLocked(n int64) error {
	room := cachefile.Room
	if c := r.source.cache; c != nil && r.shared {
		room = c.Room
	}
	_, err := room(r.file, n)
	return err
}
