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
	return img.openContent(ctx, n, kind, r.facts.Layers[n].Digest)
}

// openFiles opens a layer's files at the source.
func (img *image) openFiles(ctx context.Context, n int) (imgsrc.Files, error) {
	e, err := img.current()
	if err != nil {
		return nil, err
	}
	return img.nearest(e).Files(ctx, n)
}

// openContent opens a layer's bytes at the source; d is the digest of its blob.
func (img *image) openContent(ctx context.Context, n int, kind contentKind, d digest.Digest) (imgsrc.Content, error) {
	e, err := img.current()
	if err != nil {
		return nil, err
	}
	if kind == contentDiff {
		return img.nearest(e).Diff(ctx, n)
	}
	return e.Blobs(img.nearest(e)).Blob(ctx, d)
}

func (l layerFile) open(ctx context.Context) (imgsrc.Content, error) {
	return l.img.openContent(ctx, l.n, l.row.content, l.r.facts.Layers[l.n].Digest)
}

func (l layerFile) key() contentKey { return contentKey{l.img.slot, l.n, l.row.content} }

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
	key := sizeKey{l.img.near.source, d}
	if size, ok := l.img.f.sizes.get(key); ok {
		return size, nil
	}
	if cheap {
		return 0, errCostly
	}
	c, err := l.img.f.contents.get(l.key(), func() (imgsrc.Content, error) { return l.open(ctx) })
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
