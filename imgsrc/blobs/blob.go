package blobs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"

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

// verify returns nil if the file with this identity holds d's bytes. Each file is hashed once, whoever asks.
func (s *Store) verify(ctx context.Context, d digest.Digest, id Identity) error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return fmt.Errorf("%s: %w", s.Name, fs.ErrClosed)
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
	s.mu.Unlock()
	select {
	case <-c.done:
		return c.err
	default:
	}
	select {
	case <-c.done:
		return c.err
	case <-ctx.Done():
		return ctx.Err()
	}
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

// A blob is the content of a layer's file, exactly as the manifest names it.
type blob struct {
	store  *Store
	digest digest.Digest
	size   int64 // the descriptor's; -1 if it has none

	mu   sync.Mutex
	file *openFile // nil: not opened yet, or closed
}

var _ imgsrc.Content = (*blob)(nil)

// An openFile is closed when nobody reads from it any more.
type openFile struct {
	File
	refs int // guarded by blob.mu
}

// Size returns the descriptor's size, also for a blob that is missing.
func (b *blob) Size(ctx context.Context) (int64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if b.size >= 0 {
		return b.size, nil
	}
	f, err := b.acquire()
	if err != nil {
		return 0, fmt.Errorf("reading blob %s: %w", b.digest, err)
	}
	defer b.release(f)
	return f.Identity().size, nil
}

func (b *blob) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	n, err := b.readAt(ctx, p, off)
	if err != nil && err != io.EOF && err != ctx.Err() {
		err = fmt.Errorf("reading blob %s: %w", b.digest, err)
	}
	return n, err
}

func (b *blob) readAt(ctx context.Context, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("negative offset: %w", fs.ErrInvalid)
	}
	// A file that is replaced is verified anew, but not for ever.
	for range 3 {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		n, err := b.tryReadAt(ctx, p, off)
		if err == nil || err == io.EOF || ctx.Err() != nil {
			return n, err
		}
		b.Close() // the next reader shall find the file that is there then, perhaps a repaired one
		if !errors.Is(err, errChanged) {
			return n, err
		}
	}
	return 0, fmt.Errorf("%w: %s: %w", imgsrc.ErrDamaged, b.store.Path(b.digest), errChanged)
}

func (b *blob) tryReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	f, err := b.acquire()
	if err != nil {
		return 0, err
	}
	defer b.release(f)
	if err := b.store.verify(ctx, b.digest, f.Identity()); err != nil {
		return 0, err
	}
	if off >= f.Identity().size {
		return 0, io.EOF
	}
	n, err := f.ReadAt(p, off)
	if err != nil && err != io.EOF {
		return 0, err
	}
	now, nowErr := f.Now()
	if nowErr != nil {
		return 0, nowErr
	}
	if now != f.Identity() {
		clear(p[:n])
		return 0, errChanged
	}
	return n, err
}

func (b *blob) acquire() (*openFile, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.file == nil {
		f, err := b.store.open(b.digest, b.size)
		if err != nil {
			return nil, err
		}
		b.file = &openFile{File: f, refs: 1}
	}
	b.file.refs++
	return b.file, nil
}

func (b *blob) release(f *openFile) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.unref(f)
}

func (b *blob) unref(f *openFile) {
	if f.refs--; f.refs == 0 {
		f.File.Close()
	}
}

// Close lets go of the file. A later read opens it again.
func (b *blob) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.file != nil {
		b.unref(b.file)
		b.file = nil
	}
	return nil
}
