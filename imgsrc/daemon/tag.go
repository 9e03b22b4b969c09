package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/moby/moby/client"
	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/docker/reference"

	"github.com/imgfs/imgfs/imgsrc"
)

// tagTimeout is how long a change of names may take in all.
const tagTimeout = 2 * time.Minute

// CheckName returns a name as docker tag takes it: one without a registry is of docker.io, there without a directory
// below library, and one without a tag is the latest. Error: imgsrc.ErrInvalid.
func (s *Source) CheckName(name string) (string, error) {
	ref, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return "", invalidName(name, err)
	}
	if _, ok := ref.(reference.Digested); ok {
		return "", invalidName(name, errors.New("a digest is given by the image, not by tagging it"))
	}
	return reference.TagNameOnly(ref).String(), nil
}

func invalidName(name string, why error) error {
	if len(name) > 80 {
		name = name[:80] + "..."
	}
	return imgsrc.Of(imgsrc.ErrInvalid, fmt.Errorf("checking name %q: %w", name, why))
}

// Tag changes names, one after the other: the engine has no other way. First all that can be checked is checked, and
// what was done is undone when a later step fails. A listing of this source waits meanwhile, other clients see the
// steps.
//
// An image's last name cannot be removed, because the engine removes the image with it: imgsrc.ErrUnsupported. Nor can
// the engine be told to remove a name only if there are others: if somebody removes these at the same moment, the image
// goes.
func (s *Source) Tag(ctx context.Context, img imgsrc.Desc, add, remove []string) error {
	err := s.tag(ctx, img, add, remove)
	if err == nil || ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return err
	}
	return fmt.Errorf("tagging image %s in %s: %w", img.ID, s.Name(), err)
}

func (s *Source) tag(ctx context.Context, img imgsrc.Desc, add, remove []string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	for _, name := range add {
		if full, err := s.CheckName(name); err != nil {
			return err
		} else if full != name {
			return fmt.Errorf("%w: the engine has the name %q as %q", imgsrc.ErrInvalid, name, full)
		}
	}
	s.tagging.Lock()
	defer s.tagging.Unlock()
	c, err := s.plan(ctx, img, add, remove)
	if err != nil || len(c.add)+len(c.remove) == 0 {
		return err
	}
	// What has begun is carried out, or undone, whoever leaves.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), tagTimeout)
	defer cancel()
	defer s.stamp.Add(1)
	return s.carryOut(ctx, c)
}

// A change is what is to be done to an image's names.
type change struct {
	image       string // as the engine calls it
	add, remove []string
	holders     map[string]string // who had a name of add; empty if nobody
}

// plan checks a change without making it.
func (s *Source) plan(ctx context.Context, img imgsrc.Desc, add, remove []string) (*change, error) {
	c := &change{image: digest.SHA256.String() + ":" + img.ID, holders: map[string]string{}}
	info, err := s.inspect(ctx, c.image)
	if err != nil {
		return nil, err
	}
	has := fullNames(info.RepoTags)
	for _, name := range remove {
		switch {
		case !slices.Contains(has, name):
			return nil, fmt.Errorf("%w: it does not have the name %q", imgsrc.ErrNotFound, name)
		case !slices.Contains(add, name) && !slices.Contains(c.remove, name):
			c.remove = append(c.remove, name)
		}
	}
	for _, name := range add {
		if slices.Contains(has, name) || slices.Contains(c.add, name) {
			continue
		}
		c.add = append(c.add, name)
		holder, err := s.inspect(ctx, name)
		if err != nil && !errors.Is(err, imgsrc.ErrNotFound) {
			return nil, err
		}
		c.holders[name] = holder.ID
	}
	stays := func(name string) bool { return !slices.Contains(c.remove, name) }
	if len(c.remove) > 0 && len(c.add) == 0 && !slices.ContainsFunc(has, stays) {
		return nil, fmt.Errorf("%w: %q is its last name, with which the engine would remove the image: give it another one first, or remove it with docker rmi",
			imgsrc.ErrUnsupported, c.remove[len(c.remove)-1])
	}
	return c, nil
}

// carryOut adds names and then removes names, so that the image is never without one.
func (s *Source) carryOut(ctx context.Context, c *change) error {
	var undo []func() error
	for _, name := range c.add {
		if err := s.addName(ctx, c.image, name); err != nil {
			return errors.Join(append([]error{err}, undoAll(undo)...)...)
		}
		undo = append(undo, func() error {
			if holder := c.holders[name]; holder != "" {
				return s.addName(ctx, holder, name)
			}
			return s.removeName(ctx, name)
		})
	}
	for _, name := range c.remove {
		if err := s.removeName(ctx, name); err != nil {
			return errors.Join(append([]error{err}, undoAll(undo)...)...)
		}
		undo = append(undo, func() error { return s.addName(ctx, c.image, name) })
	}
	return nil
}

// undoAll undoes the steps, the last one first.
func undoAll(undo []func() error) []error {
	var errs []error
	for _, step := range slices.Backward(undo) {
		if err := step(); err != nil {
			errs = append(errs, fmt.Errorf("undoing what was done: %w", err))
		}
	}
	return errs
}

func (s *Source) addName(ctx context.Context, image, name string) error {
	_, err := call(ctx, s.engine, changeTimeout, func(ctx context.Context) (client.ImageTagResult, error) {
		return s.engine.api.ImageTag(ctx, client.ImageTagOptions{Source: image, Target: name})
	})
	return err
}

func (s *Source) removeName(ctx context.Context, name string) error {
	_, err := call(ctx, s.engine, changeTimeout, func(ctx context.Context) (client.ImageRemoveResult, error) {
		return s.engine.api.ImageRemove(ctx, name, client.ImageRemoveOptions{})
	})
	return err
}
