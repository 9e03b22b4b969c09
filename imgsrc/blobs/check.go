package blobs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
)

// A check is one hashing of a blob's file.
type check struct {
	identity Identity // of the file that was hashed
	done     chan struct{}
	err      error // valid when done is closed
	once     sync.Once

	want     chan struct{} // closed when a reader waits for it
	wantOnce sync.Once
}

// errChanged: the file is not the one that was asked about.
var errChanged = errors.New("it changes while it is read")

var _ imgsrc.Verdict = (*check)(nil)

// Wait implements [imgsrc.Verdict].
func (c *check) Wait(ctx context.Context) error {
	if c.ended() {
		return c.err
	}
	select {
	case <-c.done:
		return c.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// wanted returns done, to a reader who waits for it: what is hashed for nobody but who has read on, or gone, comes after it.
func (c *check) wanted() <-chan struct{} {
	c.wantOnce.Do(func() { close(c.want) })
	return c.done
}

// end says what was found out, unless that is known.
func (c *check) end(err error) {
	c.once.Do(func() {
		c.err = err
		close(c.done)
	})
}

func (c *check) ended() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// verify finds out whether the file with this identity holds d's bytes. Each file is hashed once, whoever asks. Error:
// fs.ErrClosed.
func (s *Store) verify(d digest.Digest, id Identity) (*check, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, fmt.Errorf("%s: %w", s.Name, fs.ErrClosed)
	}
	c := s.checks[d]
	if c != nil && c.identity == id {
		return c, nil
	}
	if c != nil {
		c.end(errChanged)
	}
	c = &check{identity: id, done: make(chan struct{}), want: make(chan struct{})}
	s.checks[d] = c
	if len(s.checks) > 2*s.lasting+spareChecks {
		s.lasting = len(s.checks) // until it is known
		s.jobs.Go(s.sweep)
	}
	s.jobs.Go(func() {
		err := s.hash(d, c)
		if err != nil && s.ctx.Err() != nil { // never context.Canceled: the reader's own context has not ended
			err = fmt.Errorf("%s: %w", s.Name, fs.ErrClosed)
		}
		switch {
		case errors.Is(err, imgsrc.ErrDamaged):
			if s.Cache == nil || s.Cache.IsNewDamage(d) {
				s.Log.Error("verifying blob", "source", s.Name, "error", err)
			}
			err = imgsrc.Logged(err)
		case err != nil: // not the blob's fault: the next reader tries again
			s.mu.Lock()
			defer s.mu.Unlock() // who began the next one would not know yet that this has ended
			if s.checks[d] == c {
				delete(s.checks, d)
			}
		}
		c.end(err)
	})
	return c, nil
}

// Verify reads the file of d to its end, unless that has been done since it was last written to, and returns how many bytes
// it has. size is how many it must have, -1 if any number will do. Errors: imgsrc.ErrUnsupported for a digest that cannot be
// checked; imgsrc.ErrDamaged if the file is not what it should be, with fs.ErrNotExist if it is missing; ctx's; fs.ErrClosed;
// those of reading.
func (s *Store) Verify(ctx context.Context, d digest.Digest, size int64) (int64, error) {
	if err := d.Validate(); err != nil {
		return 0, fmt.Errorf("%w: %w", imgsrc.ErrUnsupported, err)
	}
	// A file that is replaced is verified anew, but not for ever.
	for range 3 {
		got, err := s.verifyNow(ctx, d, size)
		if err == nil || !errors.Is(err, errChanged) {
			return got, err
		}
	}
	return 0, fmt.Errorf("%w: %s: %w", imgsrc.ErrDamaged, s.Path(d), errChanged)
}

// verifyNow verifies the file that is there now. Error: errChanged if another one is there meanwhile.
func (s *Store) verifyNow(ctx context.Context, d digest.Digest, size int64) (int64, error) {
	f, err := s.open(d, size)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	c, err := s.verify(d, f.Identity())
	if err != nil {
		return 0, err
	}
	c.wanted()
	if err := c.Wait(ctx); err != nil {
		return 0, err
	}
	return f.Identity().Size(), nil
}

// spareChecks is how many files may be remembered that are gone, and as many as there are.
const spareChecks = 1024

// sweep forgets the files that are gone. An image that is built every minute would otherwise be remembered for ever.
func (s *Store) sweep() {
	s.mu.Lock()
	all := maps.Clone(s.checks)
	s.mu.Unlock()
	for d, c := range all {
		if s.ctx.Err() != nil {
			return
		}
		if !c.ended() {
			continue
		}
		if _, err := s.Dir.Stat(s.Path(d)); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		s.mu.Lock()
		if s.checks[d] == c {
			delete(s.checks, d)
		}
		s.mu.Unlock()
	}
	s.mu.Lock()
	s.lasting = len(s.checks)
	s.mu.Unlock()
}

// slot waits until a blob may be hashed. Who looks at the beginning of a thousand blobs has all of them hashed: whoever waits
// for one does not wait for those.
func (s *Store) slot(c *check) (free func(), err error) {
	select {
	case s.slots <- struct{}{}:
		return func() { <-s.slots }, nil
	case <-c.want:
	case <-s.ctx.Done():
		return nil, s.ctx.Err()
	}
	select {
	case s.slots <- struct{}{}:
		return func() { <-s.slots }, nil
	case s.urgent <- struct{}{}:
		return func() { <-s.urgent }, nil
	case <-s.ctx.Done():
		return nil, s.ctx.Err()
	}
}

// hash reads the file of d and compares.
func (s *Store) hash(d digest.Digest, c *check) error {
	id := c.identity
	free, err := s.slot(c)
	if err != nil {
		return err
	}
	defer free()
	f, err := s.open(d, -1)
	if err != nil {
		return err
	}
	defer f.Close()
	if f.Identity() != id {
		return errChanged
	}
	in := io.NewSectionReader(f, 0, id.size)
	sum := d.Algorithm().Hash()
	buf := make([]byte, min(1<<20, id.size+1)) // there may be thousands of small ones
	for err == nil {
		var n int
		n, err = in.Read(buf)
		sum.Write(buf[:n])
		if s.ctx.Err() != nil {
			return s.ctx.Err()
		}
	}
	if err != io.EOF {
		return fmt.Errorf("reading %s: %w", s.Path(d), err)
	}
	now, err := f.Now()
	if err != nil {
		return err
	}
	if now != id {
		return errChanged
	}
	if got := digest.NewDigest(d.Algorithm(), sum); got != d {
		return fmt.Errorf("%w: the bytes of %s are %s", imgsrc.ErrDamaged, s.Path(d), got)
	}
	return nil
}
