package layout

import (
	"context"
	"fmt"
	"path/filepath"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/imgfs/imgfs/imgsrc/blobs"
)

// Watch watches the layout's directory for changes of index.json, which tools write in place or replace, and for another
// one in its place.
func (s *Source) Watch(ctx context.Context, changed func()) error {
	if err := blobs.WatchFile(ctx, filepath.Join(s.dir, v1.ImageIndexFile), changed); err != nil {
		return fmt.Errorf("watching %s: %w", s.Name(), err)
	}
	return nil
}
