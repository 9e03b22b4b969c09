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
	refs  int // guarded by blob.mu
	front imgsrc.Front
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
	c, err := b.store.verify(b.digest, f.Identity())
	if err != nil {
		return 0, err
	}
	size := f.Identity().size
	took := imgsrc.Early(ctx)
	if c.ended() || took == nil || off+int64(len(p)) > size-imgsrc.Withheld || !f.front.Follows(ctx, off, c.wanted) {
		took = nil
		c.wanted()
		if err := c.Wait(ctx); err != nil {
			return 0, err
		}
	}
	if off >= size {
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
		c.end(errChanged) // what was given out will not be verified any more
		return 0, errChanged
	}
	if took != nil {
		if c.ended() && c.err != nil {
			clear(p[:n])
			return 0, c.err
		}
		took(c)
		f.front.Advance(off, int64(n))
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
