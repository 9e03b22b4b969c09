package fs

import (
	"strings"

	"github.com/imgfs/imgfs/imgsrc"
)

// Names that are not listed below images/ and still found there: short ones, as podman understands them, and names by
// digest.

// unlisted returns the id of the image that a path below images/ means, although no image has it as its name.
func unlisted(snap *imgsrc.Snapshot, path string) (id string, ok bool) {
	if strings.HasPrefix(path, ".") {
		return "", false // shells and desktops look for dot files everywhere
	}
	if repo, digest, ok := strings.Cut(path, "@"); ok {
		return byDigest(snap, repo, digest)
	}
	name := path
	if !strings.Contains(name, ":") {
		name += ":latest"
	}
	for _, prefix := range []string{"", "localhost/", "docker.io/library/", "docker.io/"} {
		if e := snap.ByName(prefix + name); e != nil {
			return e.ID, true
		}
	}
	return only(snap, func(full string, _ *imgsrc.Entry) bool { return strings.HasSuffix(full, "/"+name) })
}

// byDigest finds an image with a manifest of this digest and a name in this repository, which may be short.
func byDigest(snap *imgsrc.Snapshot, repo, digest string) (string, bool) {
	return only(snap, func(full string, e *imgsrc.Entry) bool {
		if i := strings.LastIndexByte(full, ':'); i > strings.LastIndexByte(full, '/') {
			full = full[:i]
		}
		if full != repo && !strings.HasSuffix(full, "/"+repo) {
			return false
		}
		for _, h := range e.Held {
			if h.Desc().Digest.String() == digest {
				return true
			}
		}
		return false
	})
}

// only returns the image of the names that match, if they are one image's: what is ambiguous is not guessed.
func only(snap *imgsrc.Snapshot, match func(name string, e *imgsrc.Entry) bool) (string, bool) {
	id, ambiguous := "", false
	snap.EachName(func(name string, e *imgsrc.Entry) {
		if match(name, e) {
			ambiguous = ambiguous || id != "" && id != e.ID
			id = e.ID
		}
	})
	return id, id != "" && !ambiguous
}
