package layout

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/blobs"
)

// An Archive is a layout in a tar archive, as skopeo, podman save and docker save write it. It is read where it is, at the
// places of its members; a compressed one is decompressed once, into the cache. Nothing in it can be tagged.
type Archive struct {
	images
	tar *blobs.Tar
}

var _ imgsrc.Placed = (*Archive)(nil)

// Files implements [imgsrc.Placed].
func (a *Archive) Files() []string { return []string{a.tar.File()} }

// OpenArchive opens the archive in a file, which Options.Dir names. Name is what stands before the colon in the source's
// name: "oci-archive", or "docker-archive" for the layouts that docker save writes. Errors: as with Open.
func OpenArchive(ctx context.Context, name string, o Options) (*Archive, error) {
	file, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("opening archive %s: %w", o.Dir, err)
	}
	t, err := blobs.OpenTar(ctx, file, o.Cache)
	if err != nil {
		return nil, fmt.Errorf("opening archive: %w", err)
	}
	return NewArchive(ctx, name, t, o)
}

// NewArchive is OpenArchive for an archive that is open already. The source closes it, also if there is none.
func NewArchive(ctx context.Context, name string, t *blobs.Tar, o Options) (*Archive, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	a := &Archive{tar: t, images: images{name: nameOf(name+":"+t.File(), o.Ref), ref: o.Ref, log: o.Log}}
	a.store = openStore(t, a.name, o)
	if err := a.check(ctx); err != nil {
		if p := t.Problem(); p != nil && !errors.Is(err, p) {
			err = fmt.Errorf("%w: %w", err, p)
		}
		return nil, errors.Join(fmt.Errorf("opening archive %s: %w", t.File(), err), a.Close())
	}
	return a, nil
}

// List implements [imgsrc.Source]. An archive that is cut short has what came before.
func (a *Archive) List(ctx context.Context) (*imgsrc.Listing, error) {
	l, err := a.images.List(ctx)
	if err == nil && a.tar.Problem() != nil {
		l.Problems = append(l.Problems, fmt.Errorf("%w: %w", imgsrc.ErrDamaged, a.tar.Problem()))
	}
	return l, err
}

// Stamp implements [imgsrc.Source]: it is the archive's identity.
func (a *Archive) Stamp() imgsrc.Stamp {
	id, err := a.tar.Identity()
	if err != nil {
		return "none"
	}
	return imgsrc.Stamp(id.String())
}

// Watch implements [imgsrc.Source].
func (a *Archive) Watch(ctx context.Context, changed func()) error {
	if err := blobs.WatchFile(ctx, a.tar.File(), changed); err != nil {
		return fmt.Errorf("watching %s: %w", a.Name(), err)
	}
	return nil
}
