package blobs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
)

// A check is one hashing of a blob's file.
type check struct {
	identity Identity // of the file that was hashed
	done     chan struct{}
	err      error // valid when done is closed
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
	if c == nil || c.identity != id {
		c = &check{identity: id, done: make(chan struct{})}
		s.checks[d] = c
		s.jobs.Go(func() {
			defer close(c.done)
			c.err = s.hash(d, id)
			if c.err != nil && s.ctx.Err() != nil { // never context.Canceled: the reader's own context has not ended
				c.err = fmt.Errorf("%s: %w", s.Name, fs.ErrClosed)
			}
			if errors.Is(c.err, imgsrc.ErrDamaged) {
				s.Log.Error("verifying blob", "source", s.Name, "error", c.err)
				return
			}
			if c.err != nil { // not the blob's fault: the next reader tries again
				s.mu.Lock()
				defer s.mu.Unlock()
				if s.checks[d] == c {
					delete(s.checks, d)
				}
			}
		})
	}
	return c, nil
}

// hash reads the file of d and compares.
func (s *Store) hash(d digest.Digest, id Identity) error {
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-s.ctx.Done():
		return s.ctx.Err()
	}
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
	buf := make([]byte, 1<<20)
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
