package layout

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/indexjson"
)

// maxName is how many bytes a name may have: those of a file name, as which it appears.
const maxName = 255

// namePattern is the grammar of org.opencontainers.image.ref.name in the image specification's annotations.md. skopeo
// and podman refuse any other.
var namePattern = regexp.MustCompile(`^[A-Za-z0-9]+(?:(?:[-._:@+]|--)[A-Za-z0-9]+)*(?:/[A-Za-z0-9]+(?:(?:[-._:@+]|--)[A-Za-z0-9]+)*)*$`)

// CheckName returns name as it is: a layout stores what was typed. Error: imgsrc.ErrInvalid if it is longer than 255
// bytes or not of the image specification's grammar: words of letters and digits with one of -._:@+ or -- between them,
// separated by slashes.
func (s *Source) CheckName(name string) (string, error) {
	if len(name) > maxName {
		return "", fmt.Errorf("%w: a name of %d bytes, of at most %d", imgsrc.ErrInvalid, len(name), maxName)
	}
	if !namePattern.MatchString(name) {
		return "", fmt.Errorf("%w: %q is no name for an image in a layout: words of letters and digits, with one of - . _ : @ + or -- between them, separated by slashes", imgsrc.ErrInvalid, name)
	}
	return name, nil
}

// Tag changes names in index.json. Removing the last name of an image leaves it in the layout without one.
func (s *Source) Tag(ctx context.Context, img imgsrc.Desc, add, remove []string) error {
	err := s.tag(ctx, img, add, remove)
	if err == nil {
		return nil
	}
	if errors.Is(err, unix.EROFS) {
		err = fmt.Errorf("%w: %w", imgsrc.ErrReadOnly, err)
	}
	return fmt.Errorf("tagging %s in %s: %w", img.Digest, s.Name(), err)
}

func (s *Source) tag(ctx context.Context, img imgsrc.Desc, add, remove []string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	for _, name := range add {
		if _, err := s.CheckName(name); err != nil {
			return err
		}
	}
	return s.update(ctx, func() (was, text []byte, err error) {
		ix, err := s.readIndex(ctx)
		if err != nil {
			return nil, nil, err
		}
		target, err := s.find(ctx, ix, img)
		if err != nil {
			return nil, nil, err
		}
		text, err = ix.retag(target, add, remove)
		return ix.raw, text, err
	})
}

// update changes index.json in the directory that is there now.
func (s *Source) update(ctx context.Context, next func() (was, text []byte, err error)) error {
	root, err := os.OpenRoot(s.dir + "/") // see Open
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: the layout is gone: %w", imgsrc.ErrNotFound, err)
	}
	if err != nil {
		return err
	}
	defer root.Close()
	return indexjson.Update(ctx, root, next, nil)
}

// find returns the manifest that is listed as img, which index.json or an index below it must hold.
func (s *Source) find(ctx context.Context, ix *index, img imgsrc.Desc) (descriptor, error) {
	var all []variant
	var first descriptor
	for _, e := range ix.entries {
		if e.err == nil && e.digest == img.Digest && !slices.Contains(all, e.variant()) {
			if all = append(all, e.variant()); len(all) == 1 {
				first = e.descriptor
			}
		}
	}
	if len(all) == 1 {
		return first, nil
	}
	s.mu.Lock()
	w := newWalk(&s.images, s.known, ix)
	s.mu.Unlock()
	if err := w.run(ctx, ix.wanted("")); err != nil {
		return descriptor{}, err
	}
	m := w.listed(img)
	if m == nil {
		return descriptor{}, fmt.Errorf("%w: the image was removed from the layout", imgsrc.ErrNotFound)
	}
	d := m.descriptor
	d.mediaType = m.own.Desc().MediaType
	return d, nil
}
