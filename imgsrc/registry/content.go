package registry

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/cachefile"
	"github.com/imgfs/imgfs/imgsrc/flight"
)

// content is a layer's blob, exactly as the manifest names it. It asks for nothing before it is read from.
type content struct {
	image  *image
	digest digest.Digest
	size   int64 // the descriptor's; -1 if it has none

	mu sync.Mutex
	x  *blob // nil: none is held

	read  *filling // in which front was read
	front *imgsrc.Front
}

var _ imgsrc.Content = (*content)(nil)

func newContent(m *image, l imgsrc.LayerFacts) *content {
	return &content{image: m, digest: l.Digest, size: l.Size}
}

// blob returns the blob that the content holds until it is closed.
func (c *content) blob() (*blob, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.x == nil {
		x, err := c.image.source.blobs.use(c.image.repo, c.digest, c.size)
		if err != nil {
			return nil, err
		}
		c.x = x
	}
	return c.x, nil
}

// Size returns the descriptor's size. Schema 1 has none: then the registry is asked.
func (c *content) Size(ctx context.Context) (int64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if c.size >= 0 {
		return c.size, nil
	}
	s := c.image.source
	if !s.blobs.hasBlob(c.digest) && !s.offline {
		size, err := flight.Do(ctx, s.flights, flightKey{"size in " + c.image.repo, c.digest}, func(ctx context.Context) (int64, error) {
			return s.client.BlobSize(ctx, c.image.repo, c.digest)
		})
		if err == nil && size >= 0 || ctx.Err() != nil {
			return size, err
		}
	}
	x, err := c.blob()
	if err != nil {
		return 0, err
	}
	h, err := x.wait(ctx, -1)
	if err != nil {
		return 0, c.explain(ctx, err)
	}
	defer x.done(h)
	return h.was.Size, nil
}

func (c *content) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("reading blob %s: negative offset: %w", c.digest, fs.ErrInvalid)
	}
	if n, ok := c.readEarly(ctx, p, off); ok {
		return n, nil
	}
	for range 3 { // a file that is changed is verified anew, but not for ever
		x, err := c.blob()
		if err != nil {
			return 0, c.explain(ctx, err)
		}
		h, err := x.wait(ctx, -1)
		if err != nil {
			return 0, c.explain(ctx, err)
		}
		n, err := h.ReadAt(p, off)
		same := false
		if id, idErr := cachefile.Identify(h.File); idErr == nil {
			same = id == h.was
		}
		size := h.was.Size
		if !same {
			clear(p[:n])
			x.distrust(h)
		}
		x.done(h)
		switch {
		case !same:
			continue
		case c.size >= 0 && size != c.size:
			return 0, fmt.Errorf("reading blob %s: %w: it has %d bytes, and its descriptor says %d", c.digest, imgsrc.ErrDamaged, size, c.size)
		case err != nil && err != io.EOF:
			return 0, fmt.Errorf("reading blob %s: %w", c.digest, err)
		}
		return n, err
	}
	return 0, fmt.Errorf("reading blob %s: %w: its cache file changes while it is read", c.digest, imgsrc.ErrDamaged)
}

// explain says of an error what was read, and what a blob that is not there means.
func (c *content) explain(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fmt.Errorf("reading blob %s: %w", c.digest, c.image.gone(ctx, err))
}

// Close lets go of the file. A later read opens it again.
func (c *content) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.x != nil {
		c.image.source.blobs.release(c.x)
		c.x = nil
	}
	return nil
}

// A layerStream reads a blob from its beginning, as it comes in: what it returns is not verified as yet. Where nothing can be
// stored it reads from the registry itself.
type layerStream struct {
	image *image
	ctx   context.Context
	x     *blob
	off   int64
	past  io.ReadCloser // nil: reads from x
}

// stream opens a layer's blob for whoever verifies what it reads.
func (m *image) stream(ctx context.Context, l imgsrc.LayerFacts) (io.ReadCloser, error) {
	x, err := m.source.blobs.use(m.repo, l.Digest, l.Size)
	if err != nil {
		return nil, err
	}
	return &layerStream{image: m, ctx: ctx, x: x}, nil
}

func (r *layerStream) Read(p []byte) (int, error) {
	if r.past != nil {
		return r.past.Read(p)
	}
	h, err := r.x.wait(r.ctx, r.off)
	if err != nil {
		return r.readPast(p, err)
	}
	defer r.x.done(h)
	if r.off >= h.arrived {
		return 0, io.EOF
	}
	n, err := h.ReadAt(p[:min(int64(len(p)), h.arrived-r.off)], r.off)
	r.off += int64(n)
	if n > 0 {
		err = nil
	}
	return n, err
}

func (r *layerStream) readPast(p []byte, err error) (int, error) {
	if !isSinkError(err) {
		return 0, r.image.gone(r.ctx, err)
	}
	r.past, err = r.image.source.client.blob(r.ctx, r.image.repo, r.x.digest, r.off, r.x.size, false)
	if err != nil {
		r.past = nil
		return 0, r.image.gone(r.ctx, err)
	}
	return r.past.Read(p)
}

func (r *layerStream) Close() error {
	if r.past != nil {
		r.past.Close()
	}
	r.image.source.blobs.release(r.x)
	return nil
}
