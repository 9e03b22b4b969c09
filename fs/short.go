package fs

import (
	"context"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
)

// Names that are not listed below images/ and still found there: short ones, as podman understands them, and names by
// digest.

// findShort finds what is not listed below images/.
func (f *FS) findShort(ctx context.Context, snap *imgsrc.Snapshot, path string) (id string, dir bool, err error) {
	if id, _, ok := f.named(snap, path); ok {
		return id, false, nil
	}
	return "", f.isInfix(ctx, snap, path), nil
}

// isHidden says whether a path is one that shells and desktops look for everywhere, and that no image has.
func isHidden(path string) bool { return strings.HasPrefix(path, ".") }

// named returns the id of the image that a path below images/ means, although no image has it as its name, and the name
// that the image has; none if the path says its digest.
func (f *FS) named(snap *imgsrc.Snapshot, path string) (id, name string, ok bool) {
	if isHidden(path) {
		return "", "", false
	}
	repo, d, byDigest := strings.Cut(path, "@")
	candidates := f.ops.ShortNames(repo)
	if byDigest {
		id, ok = imageByDigest(snap, repo, candidates, digest.Digest(d))
		return id, "", ok
	}
	for _, name := range candidates {
		if e := snap.ByName(name); e != nil {
			return e.ID, name, true
		}
	}
	typed := path
	if !strings.Contains(typed, ":") {
		typed += ":latest"
	}
	ids := map[string][]string{}
	snap.EachName(func(full string, e *imgsrc.Entry) {
		if full == typed || strings.HasSuffix(full, "/"+typed) {
			ids[e.ID] = append(ids[e.ID], full)
			if id != e.ID || full < name {
				id, name = e.ID, full
			}
		}
	})
	if len(ids) > 1 {
		var names []string
		for _, more := range ids {
			names = append(names, more...)
		}
		slices.Sort(names)
		f.log.Warn("looking up an ambiguous name", "name", path, "candidates", strings.Join(names, " "))
	}
	return id, name, len(ids) == 1
}

// imageByDigest finds an image with a manifest of this digest and a name in this repository, which may be short.
func imageByDigest(snap *imgsrc.Snapshot, repo string, candidates []string, d digest.Digest) (id string, ok bool) {
	repos := []string{repo}
	for _, c := range candidates {
		repos = append(repos, repoOf(c))
	}
	for _, e := range snap.AllByDigest(d) {
		for _, name := range e.Names {
			if full := repoOf(name); slices.Contains(repos, full) || strings.HasSuffix(full, "/"+repo) {
				return e.ID, true
			}
		}
	}
	return "", false
}

// repoOf is a name without its tag.
func repoOf(name string) string {
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		return name[:i]
	}
	return name
}

// isInfix says whether a path that is no directory of names can be the beginning of a short name: it stands in a name,
// between slashes, or before one in a layout's name, which is a single entry of images/.
func (f *FS) isInfix(ctx context.Context, snap *imgsrc.Snapshot, path string) bool {
	if isHidden(path) || ctx.Err() != nil {
		return false
	}
	found := false
	snap.EachName(func(full string, _ *imgsrc.Entry) {
		found = found || strings.Contains(full, "/"+path+"/") || strings.HasPrefix(full, path+"/")
	})
	return found
}
