package layout

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/blobs"
)

// newImage returns the image of a manifest or index of the layout.
func (s *images) newImage(desc imgsrc.Desc, configSize int64) *blobs.Image {
	return blobs.NewImage(s.store, desc, configSize, s.manifest(desc))
}

// manifest reads the manifest that desc describes.
func (s *images) manifest(desc imgsrc.Desc) blobs.Manifest {
	return blobs.Manifest{
		Bytes: func(ctx context.Context) ([]byte, error) {
			b, _, err := s.store.Read(desc.Digest, desc.Size)
			if errors.Is(err, fs.ErrNotExist) && desc.Damaged == nil && !s.mentions(ctx, desc.Digest) {
				err = fmt.Errorf("%w: it was removed from the layout", imgsrc.ErrNotFound)
			}
			return b, err
		},
		Here: func() bool {
			_, err := s.store.Dir.Stat(blobPath(desc.Digest))
			return err == nil
		},
	}
}

// mentions says whether index.json still names d. One that is damaged does not say that it was removed.
func (s *images) mentions(ctx context.Context, d digest.Digest) bool {
	ix, err := s.readIndex(ctx)
	if err != nil {
		return errors.Is(err, imgsrc.ErrDamaged)
	}
	return bytes.Contains(ix.raw, []byte(d))
}
