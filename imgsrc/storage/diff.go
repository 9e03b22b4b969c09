package storage

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
)

// diff is one layer as a tar. It holds nothing open.
type diff struct {
	s *Source
	l *layer
}

var _ imgsrc.Content = (*diff)(nil)

// newDiff opens a layer as a tar whose digest is diffID.
func (s *Source) newDiff(l *layer, diffID digest.Digest) (*diff, error) {
	if _, _, err := s.locate(l); err != nil {
		return nil, err
	}
	if diffID != "" && diffID != l.DiffID {
		return nil, fmt.Errorf("layer %s has the diff id %s, and the image's config says %s: %w", l.ID, l.DiffID, diffID, imgsrc.ErrDamaged)
	}
	return &diff{s: s, l: l}, nil
}

// Size implements [imgsrc.Content]. The store has recorded it.
func (d *diff) Size(ctx context.Context) (int64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if d.l.Size > 0 {
		return d.l.Size, nil
	}
	x, err := d.s.index(ctx, d.l)
	if err != nil {
		return 0, d.error(err)
	}
	return x.size, nil
}

// ReadAt implements [imgsrc.Content].
func (d *diff) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, d.error(fmt.Errorf("reading at the negative offset %d", off))
	}
	x, err := d.s.index(ctx, d.l)
	if err != nil {
		return 0, d.error(err)
	}
	n := 0
	for n < len(p) {
		if off >= x.size {
			return n, io.EOF
		}
		pieces, err := d.s.blocks.pieces(x.index, off)
		if err != nil {
			return n, d.error(err)
		}
		for _, piece := range pieces {
			if n == len(p) {
				break
			}
			if err := ctx.Err(); err != nil {
				return n, err
			}
			part := p[n:min(int64(len(p)), int64(n)+piece.off+piece.size-off)]
			if piece.raw != nil {
				copy(part, piece.raw[off-piece.off:])
			} else if err := d.s.readBody(ctx, x, piece.body, part, off-piece.off); err != nil {
				return n, d.error(err)
			}
			n += len(part)
			off += int64(len(part))
		}
	}
	return n, nil
}

// error says which layer it is about, but for what the reader brought about himself.
func (d *diff) error(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return fmt.Errorf("reading layer %s: %w", d.l.DiffID, err)
}

// Close implements [io.Closer]. What the layer needs belongs to the source.
func (d *diff) Close() error { return nil }
