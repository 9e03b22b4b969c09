package storage

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"

	"go.podman.io/image/v5/docker/reference"
	cs "go.podman.io/storage"
	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
)

// CheckName implements [imgsrc.Tagger] by podman's rule: a name without a registry is below localhost, one of docker.io
// without a directory is below library, and one without a tag is the latest.
func (s *Source) CheckName(name string) (string, error) {
	ref, err := reference.Parse(name)
	if err != nil {
		return "", invalid(name, err)
	}
	named, ok := ref.(reference.Named)
	if !ok {
		return "", invalid(name, errors.New("it has no repository"))
	}
	if _, ok := ref.(reference.Digested); ok || strings.HasPrefix(name, "sha256:") {
		return "", invalid(name, errors.New("a digest is given by the image, not by tagging it"))
	}
	if registry := reference.Domain(named); !strings.ContainsAny(registry, ".:") && registry != "localhost" {
		name = "localhost/" + name
	}
	full, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return "", invalid(name, err)
	}
	return reference.TagNameOnly(full).String(), nil
}

func invalid(name string, why error) error {
	if len(name) > 80 {
		name = name[:80] + "..."
	}
	return imgsrc.Of(imgsrc.ErrInvalid, fmt.Errorf("checking name %q: %w", name, why))
}

// Tag implements [imgsrc.Tagger]. The store's library is opened for this one write and takes the store's locks, as
// podman tag does: it waits while somebody else unpacks a layer there.
//
// Names that another process gives or takes at the same time are never undone. For that, adding and removing are two
// steps: the library sets all names in one, but only to those that were read without its lock. Each step is one that
// other readers see whole. Between them the image has the names of both: it is never without those that it keeps, nor
// without one at all. If the second step fails the image has the new names beside the old.
func (s *Source) Tag(ctx context.Context, img imgsrc.Desc, add, remove []string) error {
	if err := s.tag(ctx, img.ID, add, remove); err != nil {
		return fmt.Errorf("tagging image %s in %s: %w", img.ID, s.name, err)
	}
	return nil
}

func (s *Source) tag(ctx context.Context, id string, add, remove []string) error {
	if s.writer != nil {
		return s.writer.change(ctx, methodTag, tagArgs{id, add, remove})
	}
	for _, name := range add {
		if full, err := s.CheckName(name); err != nil {
			return err
		} else if full != name {
			return fmt.Errorf("the store keeps the name %q as %q: %w", name, full, imgsrc.ErrInvalid)
		}
	}
	var lent []string
	return s.change(ctx, storeWrite{
		id: id,
		may: func() error {
			r, err := s.mayTag(ctx, id, remove)
			if err == nil {
				lent = r.lent
			}
			return err
		},
		still: func(img *cs.Image) error { return hasNames(slices.Concat(img.Names, lent), remove) },
		do:    func(store cs.Store) error { return changeNames(store, id, add, remove, lent) },
	})
}

// changeNames adds names, and then removes the others. A name that is in both stays. One that an additional store has lent
// stays there: it is taken over first, so that the first store has it among the names that it had.
func changeNames(store cs.Store, id string, add, remove, lent []string) error {
	remove = slices.DeleteFunc(slices.Clone(remove), func(name string) bool { return slices.Contains(add, name) })
	add = slices.Clone(add)
	for _, name := range lent {
		if slices.Contains(remove, name) {
			add = append(add, name)
		}
	}
	if len(add) > 0 {
		if err := store.AddNames(id, add); err != nil {
			return err
		}
	}
	if len(remove) > 0 {
		return store.RemoveNames(id, remove)
	}
	return nil
}

// mayTag looks for all that would keep the image from being tagged, without touching the store. It returns what the stores
// say of the image: the library copies the record of one in an additional store into the first.
func (s *Source) mayTag(ctx context.Context, id string, remove []string) (*recorded, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	all, err := s.readStores()
	if err != nil {
		return nil, err
	}
	r := all.byID[id]
	if r == nil {
		return nil, fmt.Errorf("the store does not have it: %w", imgsrc.ErrNotFound)
	}
	if i := r.stores[0]; i > 0 && s.stores[i] == s.real.GraphRoot {
		return nil, fmt.Errorf("it is in %s, and names are written to the image store %s alone: %w", s.stores[i], s.stores[0], imgsrc.ErrReadOnly)
	}
	if err := hasNames(r.Names, remove); err != nil {
		return nil, err
	}
	return r, writeError(unix.Access(s.imagesDir(0), unix.W_OK))
}

// hasNames checks that all names that are to go are there.
func hasNames(have, remove []string) error {
	there := map[string]bool{}
	for _, name := range have {
		there[name] = true
	}
	for _, name := range remove {
		if !there[name] {
			return fmt.Errorf("it does not have the name %q: %w", name, imgsrc.ErrNotFound)
		}
	}
	return nil
}

// writable is how the library opens the store. With skip_mount_home it does not mount the driver's directory onto
// itself, which would outlast the write.
func (s *Source) writable() cs.StoreOptions {
	opts := s.real
	if s.driver == "overlay" {
		opts.GraphDriverOptions = slices.Concat(opts.GraphDriverOptions, []string{"overlay.skip_mount_home=true"})
	}
	return opts
}

// writeError names the conditions that the library has other errors for.
func writeError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, cs.ErrImageUnknown), errors.Is(err, cs.ErrLayerUnknown), errors.Is(err, cs.ErrNotAnImage):
		return fmt.Errorf("%w: %w", err, imgsrc.ErrNotFound)
	case errors.Is(err, cs.ErrStoreIsReadOnly), errors.Is(err, syscall.EROFS):
		return fmt.Errorf("%w: %w", err, imgsrc.ErrReadOnly)
	case strings.HasPrefix(err.Error(), "unknown option "): // of the driver
		return fmt.Errorf("%w: %w", err, imgsrc.ErrInvalid)
	case errors.Is(err, cs.ErrDuplicateName): // of an additional store's image, whose names are copied
		return fmt.Errorf("%w: give that image another name, and take this one from it, first: %w", err, imgsrc.ErrExists)
	}
	return err
}
