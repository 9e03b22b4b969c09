package fs

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"
	"syscall"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
)

// What a new link's target means is found out within the tree. The kernel is not asked: it holds a lock of the link's
// directory until this mount has answered.

// maxLinks is how many links a target may go through, as the kernel has it.
const maxLinks = 40

// minOutside is how many digits of an id name an image when they do not stand in this mount's ids/.
const minOutside = 12

// A targetWalk is how far a target has been followed.
type targetWalk struct {
	f       *FS
	inside  []node // the directories from the root down; none outside the mount
	outside string // the directory outside the mount, as a clean path
	rest    []string
	links   int
}

// imageOf returns the id of the image that a target means in a link that stands in directory dir, a path below the
// mountpoint. It leads to an image's directory in this mount, seen from there or else from the mountpoint, or ends in the id
// of one. Errors: imgsrc.ErrNotFound, imgsrc.ErrInvalid if it leads to something else, and what following it brings.
func (f *FS) imageOf(ctx context.Context, dir, target string) (id string, err error) {
	starts := []string{dir, ""}
	if strings.HasPrefix(target, "/") {
		starts = starts[1:] // it is all the same
	}
	for _, start := range starts {
		id, err := f.imageFrom(ctx, start, target)
		if !errors.Is(err, imgsrc.ErrNotFound) && !errors.Is(err, syscall.ENOENT) {
			return id, err
		}
	}
	return f.imageByEnd(target)
}

// imageFrom returns the id of the image to whose directory a target leads, seen from dir.
func (f *FS) imageFrom(ctx context.Context, dir, target string) (id string, err error) {
	w := &targetWalk{f: f, outside: "/"}
	if !strings.HasPrefix(target, "/") {
		w.inside = []node{rootNode}
		w.push(dir)
		if err := w.walk(ctx); err != nil {
			return "", err
		}
	}
	w.push(target)
	if err := w.walk(ctx); err != nil {
		return "", err
	}
	if len(w.inside) == 0 {
		return "", imgsrc.ErrNotFound
	}
	n := w.inside[len(w.inside)-1]
	img := f.image(n.image())
	if img == nil || n.view() != viewImage {
		return "", fmt.Errorf("%w: %q is no image's directory: link to ids/ID or images/NAME", imgsrc.ErrInvalid, target)
	}
	if _, err := img.current(); err != nil {
		return "", err
	}
	return img.id, nil
}

// imageByEnd returns the image whose id a path ends in.
func (f *FS) imageByEnd(target string) (string, error) {
	base := path.Base(target)
	s := f.state.Load()
	if s.byID[base] != nil {
		return base, nil
	}
	if len(base) >= minOutside && strings.Trim(base, "0123456789abcdef") == "" {
		if e := s.snap.ByPrefix(base); e != nil {
			return e.ID, nil
		}
		if e := s.snap.ByDigest(digest.NewDigestFromEncoded(digest.SHA256, base)); e != nil {
			return e.ID, nil
		}
	}
	return "", fmt.Errorf("%w: %q leads to no image of this mount: link to ids/ID or images/NAME, seen from the link's own directory or from the mountpoint", imgsrc.ErrNotFound, target)
}

func (w *targetWalk) push(p string) { w.rest = append(strings.Split(p, "/"), w.rest...) }

func (w *targetWalk) walk(ctx context.Context) error {
	for len(w.rest) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		name := w.rest[0]
		w.rest = w.rest[1:]
		if err := w.step(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

func (w *targetWalk) step(ctx context.Context, name string) error {
	last := len(w.inside) - 1
	switch {
	case name == "" || name == ".":
		return nil
	case last < 0:
		w.stepOutside(path.Join(w.outside, name)) // which understands ".."
		return nil
	case name == ".." && last == 0:
		w.inside = nil
		w.stepOutside(path.Dir(w.f.mountpoint))
		return nil
	case name == "..":
		w.inside = w.inside[:last]
		return nil
	}
	n := w.inside[last]
	if !leadsToImages(n, name) {
		return fmt.Errorf("%w: it is inside an image", imgsrc.ErrInvalid)
	}
	hit, err := w.f.view(n).lookup(ctx, n, name)
	if err != nil {
		return err
	}
	v := w.f.view(hit.node)
	a, err := v.attr(ctx, hit.node, true)
	if err != nil && err != errCostly { //nolint:errorlint // the sentinel itself; directories and links are never costly to tell
		return err
	}
	if a.mode&syscall.S_IFMT != syscall.S_IFLNK {
		w.inside = append(w.inside, hit.node)
		return nil
	}
	if w.links++; w.links > maxLinks {
		return syscall.ELOOP
	}
	target, err := v.readlink(ctx, hit.node)
	if err != nil {
		return err
	}
	w.push(string(target))
	return nil
}

func (w *targetWalk) stepOutside(to string) {
	w.outside = to
	if to == w.f.mountpoint {
		w.inside = []node{rootNode}
	}
}

// leadsToImages says whether following a name in a directory is looking for an image, and not into one: that could mean
// reading its layers.
func leadsToImages(dir node, name string) bool {
	if dir.image() == 0 {
		return true
	}
	switch dir.view() {
	case viewImage:
		row := rowByName[name]
		return row != nil && (row.view == viewPlatforms || row.view == viewReferrers)
	case viewPlatforms, viewReferrers:
		return true
	}
	return false
}
