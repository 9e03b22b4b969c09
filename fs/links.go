package fs

import (
	"context"
	"slices"
	"strings"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/imgfs/imgfs/imgsrc"
)

// platforms/ and referrers/ are directories of links to other images' directories, by what the catalog has at the moment.

// imageLink is an entry of such a directory: its name, and the id of the image that it leads to.
type imageLink struct{ name, id string }

// platformLinks are what an index lists. What is not there is a link to where it would be, by its digest.
func (img *image) platformLinks(r *rendered, _ *imgsrc.Entry, snap *imgsrc.Snapshot) []imageLink {
	var all []imageLink
	for i := range r.facts.Children {
		c := &r.facts.Children[i]
		switch e := snap.ByDigest(c.Digest); {
		case c.Name == "":
		case e == nil:
			all = append(all, imageLink{c.Name, c.Digest.Encoded()})
		default:
			all = append(all, imageLink{c.Name, e.ID})
		}
	}
	return all
}

// referrerLinks are what refers to an image, each by its own id.
func (img *image) referrerLinks(_ *rendered, e *imgsrc.Entry, snap *imgsrc.Snapshot) []imageLink {
	var all []imageLink
	for _, other := range snap.Referrers(e) {
		all = append(all, imageLink{other.ID, other.ID})
	}
	return all
}

// link returns where a file of an index leads that is its platform's. Not ok for what is a file of its own.
func (r *rendered) link(row *row) (target string, ok bool) {
	if row.own || r.platform == nil {
		return "", false
	}
	return "platforms/" + r.platform.Name + "/" + row.name, true
}

// platformHas says whether the image that an index means is here, and has something. It is rendered as far as render does.
func (img *image) platformHas(ctx context.Context, r *rendered, render func(*image, context.Context) (*rendered, error), has func(child *image, cr *rendered) (bool, error)) (bool, error) {
	s := img.f.state.Load()
	e := s.snap.ByDigest(r.platform.Digest)
	if e == nil || s.byID[e.ID] == nil {
		return false, nil
	}
	child := s.byID[e.ID]
	cr, err := render(child, ctx)
	if err != nil {
		return false, err
	}
	return has(child, cr)
}

// linkDirView is a directory of links. A link's node includes its target, so that the kernel may keep what it says.
type linkDirView struct {
	f    *FS
	view uint16
	of   func(img *image, r *rendered, e *imgsrc.Entry, snap *imgsrc.Snapshot) []imageLink
}

// links returns the links of an image, as they are now.
func (v linkDirView) links(ctx context.Context, n node) (*image, []imageLink, error) {
	img := v.f.image(n.image())
	s := v.f.refresh(ctx)
	e, err := img.current()
	if err != nil {
		return nil, nil, err
	}
	r, err := img.renderBare(ctx)
	if err != nil {
		return nil, nil, err
	}
	v.f.sweepTargets()
	return img, v.of(img, r, e, s.snap), nil
}

func (v linkDirView) node(img *image, l imageLink) node {
	return img.node(v.view, v.f.targets.number(l.name+linkSeparator+l.id))
}

func (v linkDirView) ino(img *image) ino { return img.ino.nth(uint64(rowByView[v.view].id)) }

// target returns what a link's node says.
func (v linkDirView) target(n node) (name, target string, err error) {
	s, ok := v.f.targets.name(n.entry())
	name, id, isLink := strings.Cut(s, linkSeparator)
	if !ok || !isLink {
		return "", "", syscall.ENOENT
	}
	return name, "../../" + id, nil
}

func (v linkDirView) attr(ctx context.Context, n node, cheap bool) (attr, error) {
	img := v.f.image(n.image())
	if n.entry() == 0 {
		if !cheap {
			v.f.refresh(ctx)
		}
		a, err := img.dirAttr(ctx, cheap)
		a.ino = v.ino(img)
		return a, err
	}
	name, target, err := v.target(n)
	if err != nil {
		return attr{}, err
	}
	created, sure, err := img.created(ctx)
	a := linkAttr(v.ino(img).under(name), len(target), created)
	a.live = !sure
	return a, err
}

func (v linkDirView) lookup(ctx context.Context, dir node, name string) (found, error) {
	if dir.entry() != 0 {
		return found{}, syscall.ENOTDIR
	}
	img, all, err := v.links(ctx, dir)
	if err != nil {
		return found{}, err
	}
	i := slices.IndexFunc(all, func(l imageLink) bool { return l.name == name })
	if i < 0 {
		return found{}, syscall.ENOENT
	}
	return found{node: v.node(img, all[i]), keep: keepNot}, nil
}

// list lists in the order in which the mount met the names, which stays the same while links come and go.
func (v linkDirView) list(ctx context.Context, dir node, from uint64, emit func(dirent) bool) error {
	if dir.entry() != 0 {
		return syscall.ENOTDIR
	}
	img, all, err := v.links(ctx, dir)
	if err != nil {
		return err
	}
	entries := make([]dirent, 0, len(all))
	for _, l := range all {
		entries = append(entries, dirent{
			name: l.name, node: v.node(img, l), ino: v.ino(img).under(l.name), mode: syscall.S_IFLNK,
			cookie: uint64(v.f.targets.number(l.name)), keep: keepNot,
		})
	}
	slices.SortFunc(entries, func(a, b dirent) int { return int(int64(a.cookie) - int64(b.cookie)) })
	for _, d := range entries {
		if d.cookie > from && !emit(d) {
			return nil
		}
	}
	return nil
}

func (linkDirView) read(context.Context, node, []byte, int64) (fuse.ReadResult, error) {
	return nil, syscall.EISDIR
}

func (v linkDirView) readlink(_ context.Context, n node) ([]byte, error) {
	_, target, err := v.target(n)
	return []byte(target), err
}
