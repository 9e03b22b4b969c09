package layout

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
)

var _ imgsrc.Remover = (*Source)(nil)

// Remove takes an image's entries out of index.json. Its blobs stay where they are, because other images may have them
// too: umoci gc removes those that nothing leads to. With an index goes what only the index lists. An image that is listed
// by an index cannot be removed alone: imgsrc.ErrInUse.
func (s *Source) Remove(ctx context.Context, manifests []imgsrc.Desc, names []string) error {
	err := s.remove(ctx, manifests, names)
	if err == nil {
		return nil
	}
	if errors.Is(err, unix.EROFS) {
		err = fmt.Errorf("%w: %w", imgsrc.ErrReadOnly, err)
	}
	id := ""
	if len(manifests) > 0 {
		id = manifests[0].ID
	}
	return fmt.Errorf("removing %s from %s: %w", id, s.Name(), err)
}

// Intermediates implements [imgsrc.Remover]: in a layout an image without a name is one like any other.
func (s *Source) Intermediates() bool { return false }

func (s *Source) remove(ctx context.Context, manifests []imgsrc.Desc, names []string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return s.update(ctx, func() (was, text []byte, err error) {
		ix, err := s.readIndex(ctx)
		if err != nil {
			return nil, nil, err
		}
		s.mu.Lock()
		w := newWalk(&s.images, s.known, ix)
		s.mu.Unlock()
		if err := w.run(ctx, ix.wanted("")); err != nil {
			return nil, nil, err
		}
		gone := map[digest.Digest]bool{}
		for _, img := range manifests {
			if m := w.listed(img); m != nil {
				gone[m.digest] = true
			}
		}
		if err := w.isFree(gone); err != nil {
			return nil, nil, err
		}
		text, err = ix.without(gone, names)
		return ix.raw, text, err
	})
}

// isFree fails if an index that stays lists one of the manifests that are to go.
func (w *walk) isFree(gone map[digest.Digest]bool) error {
	for _, m := range w.order {
		if gone[m.digest] {
			continue
		}
		if slices.ContainsFunc(m.children, func(c descriptor) bool { return gone[c.digest] }) {
			return fmt.Errorf("%w: it belongs to the index %s: remove that", imgsrc.ErrInUse, m.image.Desc().Digest)
		}
	}
	return nil
}

// without returns index.json without the entries of some manifests. Errors: imgsrc.ErrNotFound if there are none,
// imgsrc.ErrInUse if one of them has another name than these.
func (ix *index) without(gone map[digest.Digest]bool, names []string) ([]byte, error) {
	var kept []*tagged
	for _, e := range ix.entries {
		switch {
		case e.err != nil || !gone[e.digest]:
			kept = append(kept, &tagged{entry: e})
		case e.name != "" && !slices.Contains(names, e.name):
			return nil, fmt.Errorf("%w: it has got the name %q meanwhile", imgsrc.ErrInUse, e.name)
		}
	}
	if len(kept) == len(ix.entries) {
		return nil, fmt.Errorf("%w: the image was removed from the layout", imgsrc.ErrNotFound)
	}
	return ix.encode(kept), nil
}
