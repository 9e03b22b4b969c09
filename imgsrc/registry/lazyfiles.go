package registry

import (
	"context"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/layer"
)

// lazyFiles are a layer's files, from its table of contents or from its tar. Which of them shows when they are looked at.
type lazyFiles struct {
	image *image
	lazy  *lazy
	tar   imgsrc.Files
	once  sync.Once // closing
}

var _ imgsrc.Partial = (*lazyFiles)(nil)

// Key says, and decides, what the files are taken from.
func (f *lazyFiles) Key() imgsrc.FilesKey {
	if !f.lazy.byTOC() {
		return f.tar.Key()
	}
	return imgsrc.FilesKey{Form: layer.TOCForm, Digest: f.lazy.layer.Digest, Place: f.lazy.ref.Digest.String()}
}

// Entries implements imgsrc.Files. Error: EAGAIN if the table cannot be used: the key is another from then on.
func (f *lazyFiles) Entries(ctx context.Context, emit func(*imgsrc.File) error) error {
	if !f.lazy.byTOC() {
		return f.tar.Entries(ctx, emit)
	}
	err := f.lazy.entries(ctx, emit)
	if err != nil && f.lazy.giveUp(err) {
		return fmt.Errorf("%w: %w", unix.EAGAIN, err)
	}
	return f.explain(ctx, err)
}

// Root implements imgsrc.Files.
func (f *lazyFiles) Root(ctx context.Context) (*imgsrc.File, error) {
	if f.lazy.byTOC() {
		type rootOf struct{ z *lazy }
		root, err := doAsUser(ctx, f.lazy, rootOf{f.lazy}, func(ctx context.Context) (root *imgsrc.File, err error) {
			first := true
			err = f.lazy.entries(ctx, func(x *imgsrc.File) error {
				if first {
					first = false
					root = layer.AsRoot(x)
				}
				return nil
			})
			return root, err
		})
		if err == nil || !f.lazy.giveUp(err) {
			return root, f.explain(ctx, err)
		}
	}
	return f.tar.Root(ctx)
}

// ReadBody implements imgsrc.Files.
func (f *lazyFiles) ReadBody(ctx context.Context, b imgsrc.Body, p []byte, off int64) (int, error) {
	if !f.lazy.byTOC() {
		return f.tar.ReadBody(ctx, b, p, off)
	}
	t, err := f.lazy.table(ctx)
	if err != nil {
		return 0, f.explain(ctx, err)
	}
	n, err := t.Read(ctx, b, p, off, func(ctx context.Context, n int) ([]byte, error) {
		c, err := f.lazy.chunk(ctx, t, n)
		if err != nil {
			return nil, fmt.Errorf("reading layer %s: %w", f.lazy.layer.Digest, f.explain(ctx, err))
		}
		return c, nil
	})
	return n, err
}

// Near implements imgsrc.Partial.
func (f *lazyFiles) Near(b imgsrc.Body) bool {
	z := f.lazy
	t := z.known()
	if t == nil || !z.byTOC() {
		return false
	}
	near := true
	err := t.Of(b, 0, func(n int) bool {
		from, to := t.Range(n)
		near = z.ranges.has(from, to)
		return near
	})
	return near && err == nil
}

// explain says what a blob that is not there means.
func (f *lazyFiles) explain(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return f.image.gone(ctx, err)
}

func (f *lazyFiles) Close() error {
	f.once.Do(f.lazy.release)
	return f.tar.Close()
}
