package fs

import (
	"context"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
)

// What the sources have of an image's layers: asked once, and remembered.

// probed says whether the source has something of a layer.
type probed struct {
	ok      bool
	missing bool   // it should be there and is not: reading it says so
	why     string // why it is not ok
}

type probeKey struct {
	layer int
	kind  contentKind
}

// probe asks the source whether it has something of layer n. What is damaged is there, so that reading it says so.
func (img *image) probe(ctx context.Context, r *rendered, n int, kind contentKind) (probed, error) {
	if kind != contentBlob && r.facts.Kind != imgsrc.KindImage {
		return probed{}, nil
	}
	key := probeKey{n, kind}
	img.mu.Lock()
	p, ok := img.probes[key]
	img.mu.Unlock()
	if ok {
		return p, nil
	}
	c, err := img.openLayer(ctx, r, n, kind)
	switch {
	case err == nil:
		p = probed{ok: true}
		if err := c.Close(); err != nil {
			return probed{}, err
		}
	case errors.Is(err, imgsrc.ErrAbsent) || errors.Is(err, imgsrc.ErrUnsupported):
		p = probed{why: err.Error()}
	case ctx.Err() != nil || errors.Is(err, imgsrc.ErrNotFound):
		return probed{}, err
	default:
		return probed{ok: true, missing: errors.Is(err, iofs.ErrNotExist)}, nil // asked again: it may have been repaired
	}
	img.mu.Lock()
	img.probes[key] = p
	img.mu.Unlock()
	return p, nil
}

func (img *image) openLayer(ctx context.Context, r *rendered, n int, kind contentKind) (io.Closer, error) {
	if kind == contentFiles {
		return img.openFiles(ctx, n)
	}
	b := bytesOf(img, r, n, kind)
	from, err := b.from()
	if err != nil {
		return nil, err
	}
	return b.open(ctx, from)
}

// openFiles opens a layer's files at the source.
func (img *image) openFiles(ctx context.Context, n int) (imgsrc.Files, error) {
	e, err := img.current()
	if err != nil {
		return nil, err
	}
	return img.nearest(e).Files(ctx, n)
}

// layerBytes are a layer's blob or its tar.
type layerBytes struct {
	img          *image
	n            int
	kind         contentKind
	blob, diffID digest.Digest
}

func bytesOf(img *image, r *rendered, n int, kind contentKind) layerBytes {
	return layerBytes{img, n, kind, r.facts.Layers[n].Digest, r.facts.Layers[n].DiffID}
}

func (l layerFile) content() layerBytes { return bytesOf(l.img, l.r, l.n, l.row.content) }

// from is the manifest that the bytes are read from. A tar is the same in all that are over the config, as its diff id says:
// it is not fetched for the nearest if the layer of another is here.
func (b layerBytes) from() (imgsrc.Held, error) {
	e, err := b.img.current()
	if err != nil {
		return imgsrc.Held{}, err
	}
	switch {
	case b.kind == contentBlob:
		return b.img.blobsOf(e), nil
	case b.diffID == "":
		return b.img.nearest(e), nil
	}
	return e.WithLayer(b.n, b.img.nearest(e)), nil
}

func (b layerBytes) open(ctx context.Context, from imgsrc.Held) (imgsrc.Content, error) {
	if b.kind == contentDiff {
		return from.Diff(ctx, b.n)
	}
	return from.Blob(ctx, b.blob)
}

// get returns the bytes, which stay open from one read to the next. The caller releases them.
func (b layerBytes) get(ctx context.Context) (*opened[imgsrc.Content], error) {
	from, err := b.from()
	if err != nil {
		return nil, err
	}
	return b.img.f.contents.get(b.img.contentKey(b.n, b.kind, from), func() (imgsrc.Content, error) { return b.open(ctx, from) })
}

func (img *image) contentKey(n int, kind contentKind, from imgsrc.Held) contentKey {
	key := contentKey{slot: img.slot, layer: n, kind: kind}
	if kind == contentDiff {
		key.from = heldBy{from.Source, from.Desc().Digest}
	}
	return key
}

// sizeKey is a layer that one source has measured: what another says of the same digest is its own affair, as long as
// nobody has read it.
type sizeKey struct {
	source imgsrc.Source
	digest digest.Digest
}

const (
	sizesKept = 4 << 20 // how many bytes of memory the sizes may take together
	sizeBytes = 256     // what one takes
)

// size returns the exact size of a file that the source has. Without opening it, where the manifest or an earlier look
// says it; with cheap set only then.
func (l layerFile) size(ctx context.Context, cheap bool) (int64, error) {
	facts := l.r.facts.Layers[l.n]
	if l.row.content == contentBlob && facts.Size >= 0 {
		return facts.Size, nil
	}
	d := facts.Digest
	if l.row.content == contentDiff {
		if facts.DiffID == facts.Digest && facts.Size >= 0 {
			return facts.Size, nil
		}
		d = facts.DiffID
	}
	b := l.content()
	from, err := b.from()
	if err != nil {
		return 0, err
	}
	key := sizeKey{from.Source, d}
	if size, ok := l.img.f.sizes.get(key); ok {
		return size, nil
	}
	if cheap {
		return 0, errCostly
	}
	c, err := l.img.f.contents.get(l.img.contentKey(b.n, b.kind, from), func() (imgsrc.Content, error) { return b.open(ctx, from) })
	if err != nil {
		return 0, err
	}
	defer c.release()
	size, err := c.it.Size(ctx)
	if err != nil {
		return 0, fmt.Errorf("measuring %s of layer %s: %w", l.row.name, facts.Digest, err)
	}
	if d != digest.Digest("") {
		l.img.f.sizes.put(key, size, sizeBytes)
	}
	return size, nil
}
