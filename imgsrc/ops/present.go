package ops

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"
	compressiontypes "go.podman.io/image/v5/pkg/compression/types"
	"go.podman.io/image/v5/types"
)

// present is the blobs that a layout has already, and of them those that an image on its way there is made of. They stay
// where they are: a hard link would change their files' times, and whoever reads in one would have it verified again.
type present struct {
	layout layoutSource
	only   func(digest.Digest) bool // those that may be taken; nil: all
	done   func()                   // lets go of the layout; nil: nothing does
	log    *slog.Logger

	mu    sync.Mutex
	taken map[digest.Digest]int64 // with their sizes
}

// openLayout returns what a layout has of these blobs, nil if there is no layout in the directory. If it is a source of this
// mount, that one knows which of them have been verified.
func (o *Ops) openLayout(ctx context.Context, dir string, blobs []digest.Digest) *present {
	if len(blobs) == 0 {
		return nil
	}
	p := &present{only: func(d digest.Digest) bool { return slices.Contains(blobs, d) }, log: o.log}
	there, err := os.Stat(dir)
	if err != nil {
		return nil
	}
	for _, src := range o.opt.Catalog.Sources() {
		own, ok := src.(layoutSource)
		if !ok {
			continue
		}
		if own.IsIn(there) {
			p.layout = own
			return p
		}
	}
	if o.opt.Open == nil {
		return nil
	}
	src, err := o.opt.Open(ctx, "oci:"+dir)
	if err != nil { // it is empty, or the push will say what is wrong with it
		return nil
	}
	to, ok := src.(layoutSource)
	if !ok {
		_ = src.Close()
		return nil
	}
	p.layout, p.done = to, func() { _ = src.Close() }
	return p
}

func (p *present) close() {
	if p != nil && p.done != nil {
		p.done()
	}
}

// take says whether the layout has a blob, of this size unless that is -1, and how many bytes it has. What is damaged does
// not count: it comes anew, and takes its place. Error: ctx's.
func (p *present) take(ctx context.Context, d digest.Digest, size int64) (int64, bool, error) {
	if p.only != nil && !p.only(d) {
		return 0, false, nil
	}
	size, err := p.layout.VerifyBlob(ctx, d, size)
	if ctx.Err() != nil {
		return 0, false, context.Cause(ctx)
	}
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			p.log.Debug("looking for a blob that need not be copied", "blob", d, "error", err)
		}
		return 0, false, nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.taken == nil {
		p.taken = map[digest.Digest]int64{}
	}
	p.taken[d] = size
	return size, true, nil
}

// errGone: what an image in a layout is made of has gone while the rest was copied.
var errGone = errors.New("it is not there any more")

// still fails if a blob that was taken is not there any more: tools that clean up remove what no image names yet. It is then
// no longer taken. Errors: errGone; ctx's.
func (p *present) still(ctx context.Context) error {
	if p == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	var gone error
	for d, size := range p.taken {
		_, err := p.layout.VerifyBlob(ctx, d, size)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			gone = fail(errGone, "blob %s was removed from %s or changed, while the image was copied: stop what cleans up there, and try again", d, p.layout.Name())
			delete(p.taken, d)
		}
	}
	return gone
}

// maxCopies is how often an image is copied whose other blobs go meanwhile.
const maxCopies = 3

// copyWhole copies and commits, and again what has gone meanwhile.
func copyWhole(copy, commit func() error) error {
	for try := 1; ; try++ {
		if err := copy(); err != nil {
			return err
		}
		if err := commit(); !errors.Is(err, errGone) || try == maxCopies {
			return err
		}
	}
}

// A layoutRef is a new image for a layout, where blobs that are there already need not be copied.
type layoutRef struct {
	types.ImageReference
	present  *present
	required *compressiontypes.Algorithm // that layers are to have; nil: any
}

func (r *layoutRef) NewImageDestination(ctx context.Context, sys *types.SystemContext) (types.ImageDestination, error) {
	to, err := r.ImageReference.NewImageDestination(ctx, sys)
	if err != nil {
		return nil, err
	}
	return &layoutDestination{to, r}, nil
}

type layoutDestination struct {
	types.ImageDestination
	ref *layoutRef
}

// TryReusingBlob looks among the blobs that were copied, perhaps by an earlier attempt, and among those of the layout.
func (d *layoutDestination) TryReusingBlob(ctx context.Context, info types.BlobInfo, cache types.BlobInfoCache, canSubstitute bool) (bool, types.BlobInfo, error) {
	if !fits(info, d.ref.required) {
		return false, types.BlobInfo{}, nil
	}
	ok, got, err := d.ImageDestination.TryReusingBlob(ctx, info, cache, canSubstitute)
	if ok || err != nil {
		return ok, got, err
	}
	size, ok, err := d.ref.present.take(ctx, info.Digest, info.Size)
	if !ok || err != nil {
		return false, types.BlobInfo{}, err
	}
	return true, types.BlobInfo{Digest: info.Digest, Size: size}, nil
}
