package fs

import (
	"context"
	"strings"

	"github.com/imgfs/imgfs/imgsrc"
)

// Remotes finds images in registries. Its methods may be called from several goroutines at once.
type Remotes interface {
	// Follow asks the registry for a reference, which names the registry and a tag or a digest, and returns the id of the
	// image: from then on the catalog has it. Errors: imgsrc.ErrNotFound, imgsrc.ErrInvalid, and those of the network; it
	// does not take longer than ten seconds.
	Follow(ctx context.Context, ref string) (id string, err error)
}

// findRemote finds what is not listed below registry/. A host and the beginning of a repository's path are directories, and
// nobody is asked for that; with a tag or a digest it is a reference, for which the registry is.
func (f *FS) findRemote(ctx context.Context, _ *imgsrc.Snapshot, path string) (id string, dir bool, err error) {
	if f.remotes == nil {
		return "", false, nil
	}
	for elem := range strings.SplitSeq(path, "/") {
		if isHidden(elem) {
			return "", false, nil
		}
	}
	if imgsrc.IsRepository(path) {
		return "", true, nil
	}
	if !imgsrc.IsRemoteReference(path) {
		return "", false, nil
	}
	if id, err = f.remotes.Follow(ctx, path); err != nil {
		return "", false, err
	}
	f.refresh(ctx)
	return id, false, nil
}
