package storage

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	cs "go.podman.io/storage"
	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
)

var _ imgsrc.Remover = (*Source)(nil)

// Remove implements [imgsrc.Remover] as podman rmi does: the image goes, and those of its layers that no other image, no
// container and no other layer needs. An image that others were made from goes as well; they keep what they need of it. The
// store's library is opened for this one write, as for a tag; what a layer takes on the disk is given back after its locks.
func (s *Source) Remove(ctx context.Context, manifests []imgsrc.Desc, names []string) error {
	if len(manifests) == 0 {
		return fmt.Errorf("removing an image from %s: %w", s.name, imgsrc.ErrNotFound)
	}
	if err := s.remove(ctx, manifests[0].ID, names); err != nil {
		return fmt.Errorf("removing image %s from %s: %w", manifests[0].ID, s.name, err)
	}
	return nil
}

// Intermediates implements [imgsrc.Remover]: podman rmi removes parents that have no name and no other child.
func (s *Source) Intermediates() bool { return true }

func (s *Source) remove(ctx context.Context, id string, names []string) error {
	if s.writer != nil {
		return s.writer.change(ctx, methodRemove, removeArgs{id, names})
	}
	may := func() error {
		r, err := s.mayTag(ctx, id, nil)
		if err != nil {
			return err
		}
		if i := r.stores[0]; i > 0 {
			return fmt.Errorf("it is in the additional store %s, which is not written to: %w", s.stores[i], imgsrc.ErrReadOnly)
		}
		if err := unix.Access(s.layersDir(0), unix.W_OK); err != nil {
			return writeError(err)
		}
		return s.unused(id)
	}
	still := func(img *cs.Image) error {
		for _, name := range img.Names {
			if !slices.Contains(names, name) {
				return fmt.Errorf("it has got the name %q meanwhile: %w", name, imgsrc.ErrInUse)
			}
		}
		return nil
	}
	return s.change(ctx, storeWrite{id, may, still, func(store cs.Store) error {
		if err := s.roomToRemove(); err != nil {
			return err
		}
		_, err := store.DeleteImage(id, true)
		switch {
		case errors.Is(err, cs.ErrImageUsedByContainer):
			return fmt.Errorf("%w: %w", err, imgsrc.ErrInUse)
		case errors.Is(err, cs.ErrLayerUnknown) && s.isRemoved(id):
			return nil // the layers from there on are an additional store's, and stay
		}
		return err
	}})
}

// isRemoved says whether the first store has no record of an image.
func (s *Source) isRemoved(id string) bool {
	records, _, err := s.readRecords(0)
	return err == nil && !slices.ContainsFunc(records, func(r *record) bool { return r.ID == id })
}

// unused checks that no container was made from an image. The library looks again under its locks, at those containers
// that it knows.
func (s *Source) unused(id string) error {
	all, problems := s.containers()
	if len(problems) > 0 {
		return errors.Join(problems...)
	}
	if used := all[id]; len(used) > 0 {
		return fmt.Errorf("used by container %s: remove it first, with podman rm or buildah rm: %w", strings.Join(used, ", "), imgsrc.ErrInUse)
	}
	return nil
}
