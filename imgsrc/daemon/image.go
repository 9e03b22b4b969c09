package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/layer"
)

// An image is one image of the engine. What is not in its description is found out by a save.
type image struct {
	source *Source
	desc   imgsrc.Desc
	layers []string                        // diff ids; nil if the engine did not say
	gone   atomic.Bool                     // it was not in the last listing
	sketch atomic.Pointer[imgsrc.Sketch]   // nil once a save has said more
	saved  atomic.Pointer[[]digest.Digest] // the diff ids that it has said
}

var (
	_ imgsrc.Sketcher = (*image)(nil)
	_ imgsrc.Fetcher  = (*image)(nil)
)

func (m *image) Desc() imgsrc.Desc { return m.desc }

// document returns what a save says of the image: this process's, an earlier one's, or a new one's.
func (m *image) document(ctx context.Context) (*document, error) {
	d, err := m.findDocument(ctx)
	if err == nil {
		ids := d.diffIDs // not the document's, which would keep all of it
		m.saved.Store(&ids)
		m.sketch.Store(nil)
	}
	return d, err
}

func (m *image) findDocument(ctx context.Context) (*document, error) {
	s, id := m.source, m.desc.ID
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if m.gone.Load() {
		return nil, errGone
	}
	if d, ok := s.recent.get(id); ok {
		return d, nil
	}
	if d := s.records.load(id); d != nil {
		s.recent.put(id, d)
		return d, nil
	}
	return s.save(ctx, id, false)
}

func (m *image) Manifest(ctx context.Context) ([]byte, error) {
	d, err := m.document(ctx)
	if err != nil {
		return nil, m.failed(ctx, "reading the manifest", err)
	}
	return slices.Clone(d.manifest), nil
}

func (m *image) Config(ctx context.Context) ([]byte, error) {
	d, err := m.document(ctx)
	if err != nil {
		return nil, m.failed(ctx, "reading the config", err)
	}
	return slices.Clone(d.config), nil
}

// failed says what was being done. The error of a context that has ended stays what it is.
func (m *image) failed(ctx context.Context, doing string, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fmt.Errorf("%s of image %s in %s: %w", doing, m.desc.ID, m.source.Name(), err)
}

// Blob returns a layer as the manifest names it, if that is uncompressed: of a compressed one only what was in it is kept.
func (m *image) Blob(ctx context.Context, d digest.Digest) (imgsrc.Content, error) {
	doc, err := m.document(ctx)
	if err != nil {
		return nil, m.failed(ctx, fmt.Sprintf("opening blob %s", d), err)
	}
	n := slices.Index(doc.diffIDs, d)
	if n < 0 {
		return nil, m.failed(ctx, fmt.Sprintf("opening blob %s", d), fmt.Errorf("%w: there is no such layer, or it is kept without its compression only", imgsrc.ErrAbsent))
	}
	return m.open(doc, n), nil
}

func (m *image) Diff(ctx context.Context, n int) (imgsrc.Content, error) {
	doc, err := m.document(ctx)
	if err == nil && (n < 0 || n >= len(doc.diffIDs)) {
		err = fmt.Errorf("%w: there are %d", imgsrc.ErrAbsent, len(doc.diffIDs))
	}
	if err != nil {
		return nil, m.failed(ctx, fmt.Sprintf("opening layer %d", n), err)
	}
	return m.open(doc, n), nil
}

// Local says whether layer n can be read without a save.
func (m *image) Local(n int) bool {
	ids := m.saved.Load()
	if ids == nil || n < 0 || n >= len(*ids) {
		return false
	}
	id := (*ids)[n]
	return m.source.isSpooled(id) || m.source.cache.Has(id)
}

// Files returns the entries of the tar that Diff opens.
func (m *image) Files(ctx context.Context, n int) (imgsrc.Files, error) {
	c, err := m.Diff(ctx, n)
	if err != nil {
		return nil, err
	}
	return layer.TarFiles(c, imgsrc.FilesKey{Form: layer.TarForm, Digest: c.(*content).diffID}, nil), nil
}

func (m *image) open(doc *document, n int) *content {
	s, id := m.source, doc.diffIDs[n]
	c := &content{image: m, diffID: id, size: doc.sizes[n]}
	c.missing, c.setMissing = context.WithCancel(context.Background())
	c.cached = s.cache.Diff(id, id, func(ctx context.Context) (io.ReadCloser, error) {
		r, err := s.openSpooled(ctx, id)
		if errors.Is(err, errNotSaved) {
			c.isMissing()
		}
		return r, err
	})
	return c
}

// content is a layer in the cache, which is saved when it is not there.
type content struct {
	image  *image
	diffID digest.Digest
	size   int64
	cached imgsrc.Content
	warm   atomic.Bool // it has been read since it was closed: the cache holds it

	mu         sync.Mutex
	missing    context.Context // ends when the cache has asked for the layer and it was nowhere
	setMissing context.CancelFunc
}

var _ imgsrc.Content = (*content)(nil)

// isMissing tells those who read that they have to wait for a save. The next ones are told anew.
func (c *content) isMissing() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.setMissing()
	c.missing, c.setMissing = context.WithCancel(context.Background())
}

// Size returns what the save has said; it is verified with the bytes.
func (c *content) Size(ctx context.Context) (int64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	return c.size, nil
}

func (c *content) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("reading layer %s: negative offset: %w", c.diffID, fs.ErrInvalid)
	}
	if c.warm.Load() {
		if n, err := c.cached.ReadAt(ctx, p, off); !errors.Is(err, errNotSaved) {
			return n, err
		}
	}
	for attempt := 0; ; attempt++ {
		n, missing, err := c.try(ctx, p, off)
		if !missing {
			return n, err
		}
		if err = errEvicted; attempt < maxAttempts {
			err = c.save(ctx)
		}
		if err != nil {
			return 0, c.image.failed(ctx, fmt.Sprintf("reading layer %s", c.diffID), err)
		}
	}
}

// errEvicted: the layer was saved, and the cache had it no more when it was to be read, again and again.
var errEvicted = errors.New("the cache does not keep it")

// try reads from the cache, or finds that the layer is not there. A cache that knows what a layer was before it was
// evicted looks for it for as long as somebody waits, so waiting ends when the layer is missing.
func (c *content) try(ctx context.Context, p []byte, off int64) (n int, missing bool, err error) {
	c.mu.Lock()
	gone := c.missing
	c.mu.Unlock()
	waiting, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(gone, cancel)()
	n, err = c.cached.ReadAt(waiting, p, off)
	switch {
	case err == nil || err == io.EOF:
		c.warm.Store(true)
		return n, false, err
	case ctx.Err() != nil:
		return 0, false, ctx.Err()
	}
	// Waiting that has ended brings about all kinds of errors.
	return n, errors.Is(err, errNotSaved) || gone.Err() != nil && !errors.Is(err, imgsrc.ErrDamaged), err
}

func (c *content) save(ctx context.Context) error {
	if c.image.gone.Load() {
		return errGone
	}
	_, err := c.image.source.save(ctx, c.image.desc.ID, true)
	return err
}

// Close lets go of the cache's file. A later read opens it again.
func (c *content) Close() error {
	c.warm.Store(false)
	return c.cached.Close()
}
