package registry

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/cachefile"
)

// A sinkError is a failure to store what was fetched, for which the registry is not to blame.
type sinkError struct{ err error }

func (e *sinkError) Error() string { return "keeping the blob: " + e.err.Error() }
func (e *sinkError) Unwrap() error { return e.err }

func isSinkError(err error) bool {
	var e *sinkError
	return errors.As(err, &e)
}

var errThere = errors.New("another process has fetched it")

// errGaveWay ends what a turn ended for which others have to wait: it goes on at the next.
var errGaveWay = errors.New("another blob comes first")

// stallTime is how long another process that fetches a blob may bring nothing before it is not waited for any more.
const stallTime = time.Minute

// fetch gets the blob from the registry, into the cache, or into a file without a name if that cannot be written.
func (x *blob) fetch(ctx context.Context) (err error) {
	s := x.blobs.source
	defer func() {
		if x.over != nil {
			x.over(err)
		}
		x.turn, x.tell, x.over, x.parked, x.doubtful = nil, nil, nil, nil, false
	}()
	if s.offline {
		return errOffline
	}
	if x.turn, err = x.blobs.turns.take(ctx, &x.demand); err != nil {
		return err
	}
	defer x.turn.leave()
	err = x.fetchInTurns(ctx)
	if errors.Is(err, errThere) {
		if found, err := x.bringFound(ctx); found || err != nil {
			return err
		}
		err = x.fetchInTurns(ctx)
	}
	if err == nil || !isSinkError(err) || ctx.Err() != nil {
		return err
	}
	if x.blobs.dir != nil {
		s.log.Warn("using a temporary file for a blob", "blob", x.digest, "error", err)
	}
	if x.parked == nil {
		x.drop()
	}
	return x.fetchPrivate(ctx)
}

// fetchInTurns is fetchShared, as often as it is the blob's turn. Between turns another process may go on with it.
func (x *blob) fetchInTurns(ctx context.Context) error {
	for {
		if _, err := x.turn.wait(); err != nil {
			return err
		}
		if err := x.fetchShared(ctx); !errors.Is(err, errGaveWay) {
			return err
		}
	}
}

// fetchShared fetches into the cache directory. What is there of an earlier attempt is not fetched again. Errors: errThere;
// errGaveWay; a sinkError; the registry's.
func (x *blob) fetchShared(ctx context.Context) error {
	b := x.blobs
	if b.dir == nil {
		return &sinkError{errors.ErrUnsupported}
	}
	f, err := x.lockPart(ctx)
	if err != nil {
		return err
	}
	defer x.countWritten(f, fileSize(f))
	part := partPath(x.digest)
	x.shared = true
	x.takeAgain(ctx, f)
	err = x.fill(ctx, f)
	x.shared = false
	if err != nil {
		if errors.Is(err, imgsrc.ErrDamaged) {
			x.keepParts(f)
			cachefile.Remove(b.dir, part, f, b.source.log)
		}
		if errors.Is(err, errGaveWay) {
			x.park(f)
		}
		return err
	}
	err = b.dir.MkdirAll(path.Dir(blobPath(x.digest)), 0o700)
	if err == nil {
		err = b.dir.Rename(part, blobPath(x.digest))
	}
	if err != nil { // somebody has emptied the cache: the file is good without its name
		b.source.log.Debug("keeping a blob", "blob", x.digest, "error", err)
	}
	b.source.unnameParts(x)
	// From the exclusive lock of a writer to the shared one of a reader.
	_ = cachefile.Flock(f, unix.LOCK_SH)
	x.finish(f)
	return nil
}

// countWritten tells the cache how much was added to a file, whatever came of it: the cache evicts what is above its bound.
func (x *blob) countWritten(f *os.File, before int64) {
	if n := fileSize(f) - before; n > 0 {
		x.blobs.source.wrote(n)
	}
}

func fileSize(f *os.File) int64 {
	fi, err := f.Stat()
	if err != nil {
		return 0
	}
	return fi.Size()
}

func (x *blob) fetchPrivate(ctx context.Context) error {
	f, err := cachefile.Unnamed("imgfs-blob-")
	if err != nil {
		return &sinkError{err}
	}
	x.takeAgain(ctx, f)
	if err := x.fill(ctx, f); err != nil {
		return err
	}
	x.finish(f)
	return nil
}

// take makes f, which is being filled, the blob's file.
func (x *blob) take(f *os.File) {
	x.update(func() {
		x.dropLocked()
		x.file = f
		x.refs[f]++
	})
}

// lockPart opens the part file with an exclusive lock, waiting for the process that has it. Errors: errThere; a sinkError;
// the context's.
func (x *blob) lockPart(ctx context.Context) (*os.File, error) {
	b, part := x.blobs, partPath(x.digest)
	f, err := cachefile.Lock(ctx, b.dir, part, stallTime)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, &sinkError{err}
	}
	if hasFile(b.dir, blobPath(x.digest)) { // finished while this process waited
		cachefile.Remove(b.dir, part, f, b.source.log)
		f.Close()
		return nil, errThere
	}
	return f, nil
}

// fill completes f, and verifies it. If it is wrong, a mirror may have sent it, or a process that was killed have left
// the beginning: then it is fetched from the registry itself once more, all of it.
func (x *blob) fill(ctx context.Context, f *os.File) error {
	fi, err := f.Stat()
	if err != nil {
		return &sinkError{err}
	}
	have, direct := fi.Size(), false
	if p := x.parked; p != nil {
		x.parked, have, direct = nil, p.off, p.direct
		err = x.fillRest(ctx, f, p.sum, p.off, p.direct)
	} else {
		if x.size >= 0 && have > x.size || x.size < 0 {
			have = 0
		}
		err = x.fillFrom(ctx, f, have, false)
	}
	if !direct && errors.Is(err, imgsrc.ErrDamaged) && (have > 0 || x.doubtful || x.blobs.source.client.hasMirrors(x.repo, x.digest)) {
		if s := x.blobs.source; !s.isSpoiltSaid(x.digest) {
			s.log.Warn("fetching blob again", "source", s.Name(), "blob", x.digest, "error", err)
		}
		err = x.fillFrom(ctx, f, 0, true)
	}
	return err
}

func (x *blob) fillFrom(ctx context.Context, f *os.File, have int64, direct bool) error {
	x.update(func() { // whoever has read some of it has not read this
		x.arrived = 0
		x.beginLocked()
	})
	if err := f.Truncate(have); err != nil {
		return &sinkError{err}
	}
	sum := x.digest.Algorithm().Hash()
	if err := hashFile(ctx, f, sum, 0, have); err != nil {
		return &sinkError{err}
	}
	if have < x.size { // where it does not fit, whoever reads it early would lose what he has when the disk is full
		if _, err := x.room(f, x.size-have); err != nil {
			return &sinkError{err}
		}
	}
	x.update(func() { x.arrived = have })
	return x.fillRest(ctx, f, sum, have, direct)
}

// fillRest is fillFrom where sum is that of what is there.
func (x *blob) fillRest(ctx context.Context, f *os.File, sum hash.Hash, have int64, direct bool) error {
	if have < x.size || x.size < 0 {
		var err error
		if have, err = x.receive(ctx, f, sum, have, direct); err != nil {
			return err
		}
	}
	if got := digest.NewDigest(x.digest.Algorithm(), sum); got != x.digest || x.size >= 0 && have != x.size {
		return fmt.Errorf("%w: the registry sent %d bytes that are %s", imgsrc.ErrDamaged, have, got)
	}
	return nil
}

// room is [cachefile.Room]; in the cache, what was not used for long makes room for what comes in.
func (x *blob) room(f *os.File, least int64) (int64, error) {
	if c := x.blobs.source.cache; c != nil && x.shared {
		return c.Room(f, least)
	}
	return cachefile.Room(f, least)
}

// receive appends what the registry sends from an offset, as often as it is the blob's turn; into a file for which others wait
// until the turn ends. Errors: errGaveWay with what is to be gone on from; a sinkError; the registry's.
func (x *blob) receive(ctx context.Context, f *os.File, sum hash.Hash, off int64, direct bool) (int64, error) {
	if s := x.blobs.source; x.tell == nil && s.fetching != nil {
		x.tell, x.over = s.fetching(s.Host()+"/"+x.repo, x.digest, x.size, false)
	}
	if x.tell == nil {
		x.tell = func(int64) {}
	}
	x.tell(off)
	for {
		if x.shared && !x.turn.has() {
			x.parked = &parked{sum: sum, off: off, direct: direct}
			return off, errGaveWay
		}
		turn, err := x.turn.wait()
		if err != nil {
			return off, err
		}
		x.turn.asks()
		off, err = x.receiveIn(turn, f, sum, off, direct)
		gaveWay := turn.Err() != nil && ctx.Err() == nil
		switch {
		case gaveWay && off == x.size:
			return off, nil
		case gaveWay && x.turn.silent() >= x.blobs.source.client.limits.attempts:
			return off, sendFailure(fmt.Sprintf("reading blob %s of %s/%s at %d", x.digest, x.blobs.source.Host(), x.repo, off), errStalled, nil)
		case !gaveWay || err == nil || isSinkError(err) || errors.Is(err, imgsrc.ErrDamaged):
			return off, err
		}
	}
}

// ask asks for the blob from an offset: for what is not here of it, or, with direct, for all of it, of no mirror; in the repository of
// one of those who want it after the other, until one gives it out.
func (x *blob) ask(ctx context.Context, off int64, direct bool) (io.ReadCloser, error) {
	if !direct {
		if r := x.blobs.source.partsOf(x); r != nil {
			return r.open(ctx, x, off), nil
		}
	}
	for asked := []string{x.repo}; ; asked = append(asked, x.repo) {
		in := x.blobs.source.client.newBody(ctx, x.repo, x.digest, off, x.size, direct)
		in.came = x.turn.came
		err := in.connect()
		if err == nil {
			return in, nil
		}
		if !x.isElsewhere(err, asked) {
			return nil, err
		}
	}
}

// isElsewhere says whether err is that a repository does not give out the blob, and there is one that was not asked: that is the next.
func (x *blob) isElsewhere(err error, asked []string) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	repo, ok := x.repos.elsewhere(err, asked)
	if ok {
		x.repo = repo
	}
	return ok
}

// receiveIn is receive in one turn. It never takes more than the descriptor says.
func (x *blob) receiveIn(ctx context.Context, f *os.File, sum hash.Hash, off int64, direct bool) (int64, error) {
	in, err := x.ask(ctx, off, direct)
	if err != nil {
		return off, err
	}
	defer in.Close()
	buf := make([]byte, 256<<10)
	var room int64 // bytes that may be written before looking again
	for {
		n, err := in.Read(buf)
		if x.size >= 0 && off+int64(n) > x.size {
			return off, fmt.Errorf("%w: the registry sends more than the %d bytes of the descriptor", imgsrc.ErrDamaged, x.size)
		}
		if n > 0 {
			if room < int64(n) {
				var err error
				if room, err = x.room(f, int64(len(buf))); err != nil {
					return off, &sinkError{err}
				}
			}
			room -= int64(n)
			if _, err := f.WriteAt(buf[:n], off); err != nil {
				return off, &sinkError{err}
			}
			sum.Write(buf[:n])
			off += int64(n)
			x.update(func() { x.arrived = off })
			x.tell(off)
		}
		switch {
		case err == io.EOF:
			return off, nil
		case err != nil:
			return off, err
		}
	}
}
