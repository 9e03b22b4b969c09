package daemon

import (
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/cachefile"
	"github.com/imgfs/imgfs/imgsrc/flight"
)

const (
	// stallTime is how long a save may send nothing. The engine writes all of the image to its own disk before it sends
	// the first byte.
	stallTime = 10 * time.Minute
	// quietTime is how long a save may send nothing before the engine is asked whether it is there: one that hangs is not waited for.
	quietTime = 10 * time.Second
	// maxPinned is of how many images the layers are held open, and pinTime for how long, so that a cache that keeps
	// little, or nothing, does not cost a save for each layer.
	maxPinned = 2
	pinTime   = 2 * time.Minute
	// maxAttempts is how often a layer may be missing from the cache again before it has been read.
	maxAttempts = 3
	feeders     = 4
	copySize    = 1 << 20
)

// A pin is the layers of an image, held open.
type pin struct{ layers []io.Closer }

// A spool is a saved image that is being taken apart: a file without a name, which is gone when the last one closes it.
type spool struct {
	doc   *document
	parts map[digest.Digest]part
	file  *os.File
	refs  atomic.Int32
}

func (sp *spool) release() {
	if sp.refs.Add(-1) == 0 {
		sp.file.Close()
	}
}

// spooled returns a spool that has the layer, whichever image's, and which the caller releases, or nil.
func (s *Source) spooled(diffID digest.Digest) *spool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sp := range s.spools {
		if _, ok := sp.parts[diffID]; ok {
			sp.refs.Add(1)
			return sp
		}
	}
	return nil
}

func (s *Source) isSpooled(diffID digest.Digest) bool {
	sp := s.spooled(diffID)
	if sp != nil {
		sp.release()
	}
	return sp != nil
}

// save has the engine save an image, unless that is going on, or has just been done. When it returns, what a save says of the
// image is known; with layers, those can be read, if nobody else has saved it only for what it says at the same moment.
func (s *Source) save(ctx context.Context, id string, layers bool) (*document, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil, errClosed
	}
	sp := s.spools[id]
	s.mu.Unlock()
	if sp != nil {
		return sp.doc, nil
	}
	if err := s.failed.Of(id); err != nil {
		return nil, err
	}
	return flight.Do(ctx, s.work, id, func(ctx context.Context) (*document, error) {
		if doc := s.justSaved(id, layers); doc != nil {
			return doc, nil
		}
		begun := time.Now()
		doc, err := s.saveNow(ctx, id)
		if err != nil && ctx.Err() == nil {
			if !errors.Is(err, imgsrc.ErrNotFound) {
				damaged := errors.Is(err, imgsrc.ErrDamaged)
				if was, said := s.unsaved.Swap(id, damaged); !said || was != damaged {
					s.log.Error("saving image", "source", s.Name(), "image", id, "error", err)
				}
				err = imgsrc.Logged(err)
			}
			s.failed.Put(id, err, begun)
		}
		if err == nil {
			s.unsaved.Delete(id)
		}
		return doc, err
	})
}

// justSaved returns what another has saved since somebody found out that it was not there.
func (s *Source) justSaved(id string, layers bool) *document {
	s.mu.Lock()
	sp := s.spools[id]
	s.mu.Unlock()
	if sp != nil {
		return sp.doc
	}
	if doc, ok := s.recent.get(id); ok && !layers {
		return doc
	}
	return nil
}

func (s *Source) saveNow(ctx context.Context, id string) (*document, error) {
	select {
	case s.saving <- struct{}{}:
		defer func() { <-s.saving }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	sp, err := s.stream(ctx, id)
	if errors.Is(err, errSilent) {
		return nil, err
	}
	if err != nil {
		_, gone := s.inspect(ctx, digest.SHA256.String()+":"+id)
		switch {
		case errors.Is(gone, imgsrc.ErrNotFound): // an old engine calls that an error of its own
			err = errGone
		case errors.Is(gone, errNoEngine): // it was stopped meanwhile
			err = gone
		}
		return nil, err
	}
	s.records.store(id, sp.doc)
	s.recent.put(id, sp.doc)
	s.mu.Lock()
	s.spools[id] = sp
	s.mu.Unlock()
	if !s.work.Start(sp, func(ctx context.Context) (any, error) { s.feed(ctx, id, sp); return nil, nil }) {
		s.unspool(id, sp)
		return nil, errClosed
	}
	return sp.doc, nil
}

var errGone = &failure{"the engine has removed it", []error{imgsrc.ErrNotFound}}

// stream saves an image into a spool.
func (s *Source) stream(ctx context.Context, id string) (_ *spool, err error) {
	f, err := s.records.temp()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	size, err := s.receive(ctx, id, f)
	if err != nil {
		return nil, err
	}
	sp := &spool{file: f}
	sp.refs.Store(1)
	a, err := readArchive(ctx, f, size)
	if err == nil {
		sp.doc, sp.parts, err = a.image(ctx, id)
	}
	if err != nil {
		if told := engineError(f, size); told != nil {
			return nil, told
		}
		return nil, err
	}
	return sp, nil
}

var errStalled = &failure{"the engine has stopped sending", []error{unix.ETIMEDOUT}}

// receive writes to f what the engine saves, and returns how much that was.
func (s *Source) receive(ctx context.Context, id string, f *os.File) (int64, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watchdog := time.AfterFunc(s.stall, func() { cancel(errStalled) })
	defer watchdog.Stop()
	var size atomic.Int64
	go s.attend(ctx, cancel, &size)
	fail := func(err error) error {
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		return s.engine.explain(ctx, err)
	}
	body, err := s.engine.api.ImageSave(ctx, []string{digest.SHA256.String() + ":" + id})
	if err != nil {
		return 0, fail(err)
	}
	defer body.Close()
	var room int64
	buf := make([]byte, copySize)
	for {
		n, err := readFull(body, buf)
		watchdog.Reset(s.stall)
		if room < int64(n) {
			var full error
			if room, full = cachefile.Room(f, copySize); full != nil {
				return 0, full
			}
		}
		room -= int64(n)
		if _, err := f.WriteAt(buf[:n], size.Load()); err != nil {
			return 0, err
		}
		size.Add(int64(n))
		switch {
		case err == io.EOF:
			return size.Load(), nil
		case err != nil:
			return 0, fail(err)
		}
	}
}

// attend asks the engine whether it is there whenever a save has brought nothing for a while, and gives the save up if it is not.
func (s *Source) attend(ctx context.Context, giveUp context.CancelCauseFunc, size *atomic.Int64) {
	tick := time.NewTicker(s.quiet)
	defer tick.Stop()
	for was := int64(0); ; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if now := size.Load(); now != was {
			was = now
			continue
		}
		if err := s.ping(ctx); errors.Is(err, errSilent) || errors.Is(err, errNoEngine) {
			giveUp(err)
			return
		}
	}
}

// readFull is io.ReadFull, but its error is always r's own: an io.ErrUnexpectedEOF is then a connection that broke.
func readFull(r io.Reader, p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var m int
		m, err = r.Read(p[n:])
		n += m
	}
	return n, err
}

// feed puts the layers of a spool into the cache, and lets go of the spool.
func (s *Source) feed(ctx context.Context, id string, sp *spool) {
	defer s.unspool(id, sp)
	held := &pin{}
	var g errgroup.Group
	g.SetLimit(feeders)
	for diffID := range sp.parts {
		c := s.cache.Diff(diffID, diffID, func(ctx context.Context) (io.ReadCloser, error) { return s.openSpooled(ctx, diffID) })
		held.layers = append(held.layers, c)
		g.Go(func() error {
			err := bring(ctx, c)
			if err != nil && ctx.Err() == nil && !errors.Is(err, imgsrc.ErrDamaged) { // damage the cache has logged
				s.log.Warn("keeping layer", "source", s.Name(), "image", id, "layer", diffID, "error", err)
			}
			return nil
		})
	}
	_ = g.Wait()
	s.hold(held)
}

// bring has the cache take a layer that is in a spool.
func bring(ctx context.Context, c imgsrc.Content) error {
	for attempt := 0; ; attempt++ {
		// A byte is enough: the cache goes on by itself, and the size alone it may know already.
		_, err := c.ReadAt(ctx, make([]byte, 1), 0)
		switch {
		case err == nil || err == io.EOF:
			return nil
		case attempt == maxAttempts || !errors.Is(err, errNotSaved): // that was a reader's attempt, from before the spool
			return err
		}
	}
}

// unspool makes the spool be found no more.
func (s *Source) unspool(id string, sp *spool) {
	s.mu.Lock()
	if s.spools[id] == sp {
		delete(s.spools, id)
	}
	s.mu.Unlock()
	sp.release()
}

// hold pins an image's layers, for a while.
func (s *Source) hold(p *pin) {
	s.mu.Lock()
	s.pinned = append(s.pinned, p)
	s.mu.Unlock()
	s.unpin(maxPinned)
	time.AfterFunc(pinTime, func() { s.drop(p) })
}

// unpin lets go of all pins but the youngest.
func (s *Source) unpin(keep int) {
	s.mu.Lock()
	old := slices.Clone(s.pinned[:max(0, len(s.pinned)-keep)])
	s.mu.Unlock()
	for _, p := range old {
		s.drop(p)
	}
}

// drop lets go of a pin, unless somebody else does.
func (s *Source) drop(p *pin) {
	s.mu.Lock()
	i := slices.Index(s.pinned, p)
	if i >= 0 {
		s.pinned = slices.Delete(s.pinned, i, i+1)
	}
	s.mu.Unlock()
	if i < 0 {
		return
	}
	for _, c := range p.layers {
		_ = c.Close() // lets go of a file that was only read
	}
}

// errNotSaved: a layer is neither in the cache nor in a spool. It never leaves the package.
var errNotSaved = errors.New("the image has to be saved first")

// openSpooled opens a layer for the cache: from a spool. It waits for none, because the cache lets only a few layers come
// in at a time, and who waits there for a save would keep the others out.
func (s *Source) openSpooled(_ context.Context, diffID digest.Digest) (io.ReadCloser, error) {
	sp := s.spooled(diffID)
	if sp == nil {
		return nil, errNotSaved
	}
	r, err := sp.parts[diffID].open()
	if err != nil {
		sp.release()
		return nil, err
	}
	return &spoolReader{ReadCloser: r, spool: sp}, nil
}

// A spoolReader keeps its spool.
type spoolReader struct {
	io.ReadCloser
	spool *spool
}

func (r *spoolReader) Close() error {
	defer r.spool.release()
	return r.ReadCloser.Close()
}
