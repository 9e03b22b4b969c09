package fs

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/imgfs/imgfs/imgsrc"
)

// A nameSpace is a directory of names: images/, for those that a source stores, or registry/, for those of registries.
type nameSpace struct {
	f           *FS
	n           int    // which one: see state.names
	dirs, links uint16 // the views of its directories and of its links
	ino         ino
	index       interner
	// of are the names of an image that belong here.
	of func(*imgsrc.Entry) []string
	// find is asked for a path that is not listed. It returns the id of the image that is meant, or that the path is a
	// directory, or neither.
	find  func(ctx context.Context, snap *imgsrc.Snapshot, path string) (id string, dir bool, err error)
	made  imgsrc.Made // guarded by FS.mu; replaced whole
	moves moves

	removed removals
}

// The name spaces.
const (
	spaceImages = iota
	spaceRegistry
	spaces
)

func (f *FS) initSpaces() {
	f.spaces = [spaces]*nameSpace{
		{
			f: f, n: spaceImages, dirs: viewNames, links: viewLinks, ino: imagesIno,
			of: func(e *imgsrc.Entry) []string { return e.Names }, find: f.findShort,
		},
		{
			f: f, n: spaceRegistry, dirs: viewRemoteNames, links: viewRemoteLinks, ino: registryIno,
			of: func(e *imgsrc.Entry) []string { return e.RemoteNames }, find: f.findRemote,
		},
	}
}

// nameState is the tree of names below one of these directories in one state of the catalog.
type nameState struct {
	tree *imgsrc.NameTree
	made imgsrc.Made
	// base is when the names last changed before the mount; changed holds the later changes, by path, of directories and
	// links.
	base    time.Time
	changed map[string]time.Time
	lists   sync.Map // path of a directory -> []dirent, in the order of their cookies
}

func emptyNames() *nameState {
	return &nameState{tree: imgsrc.NewNameTree(func(func(string, string) bool) {}, imgsrc.Made{})}
}

// nameState builds the tree of a snapshot's names; what differs from the old one gets now as its time.
func (sp *nameSpace) state(snap *imgsrc.Snapshot, old *nameState, first bool, now time.Time) *nameState {
	s := &nameState{
		tree: imgsrc.NewNameTree(func(yield func(name, id string) bool) {
			for _, e := range snap.Entries {
				for _, name := range sp.of(e) {
					if !yield(name, e.ID) {
						return
					}
				}
			}
		}, sp.made),
		made:    sp.made,
		base:    old.base,
		changed: map[string]time.Time{},
	}
	if first {
		s.base = snap.ModTime
		return s
	}
	s.compare(old, "", now, func(dir, name string) {
		sp.f.forget(goneEntry{dir: sp.dirNode(dir), name: name})
	})
	sp.sweep(s)
	return s
}

// compare walks a directory of the new tree beside the old one's, and calls gone for each name that meant something else.
func (s *nameState) compare(old *nameState, dir string, now time.Time, gone func(dir, name string)) {
	is, _ := s.tree.Dir(dir)
	was, existed := old.tree.Dir(dir)
	s.carry(old, dir, now, existed && slices.Equal(is, was))
	before := make(map[string]imgsrc.NameChild, len(was))
	for _, c := range was {
		before[c.Name] = c
	}
	for _, c := range is {
		path := joinName(dir, c.Name)
		same := before[c.Name] == c
		if same {
			delete(before, c.Name)
		}
		if c.Dir {
			s.compare(old, path, now, gone)
			continue
		}
		s.carry(old, path, now, same)
	}
	for name := range before {
		gone(dir, name)
	}
}

func (s *nameState) carry(old *nameState, path string, now time.Time, same bool) {
	switch t, ok := old.changed[path]; {
	case !same:
		s.changed[path] = later(old.time(path), now)
	case ok:
		s.changed[path] = t
	}
}

func (s *nameState) time(path string) time.Time {
	if t, ok := s.changed[path]; ok {
		return t
	}
	return s.base
}

func joinName(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

// A link's node holds its target as well as its path: the kernel keeps what a link says for good, so a name that moves to
// another image has to become another node.
const linkSeparator = "\x00"

func (sp *nameSpace) node(path string, c imgsrc.NameChild) node {
	if c.Dir {
		return sp.dirNode(path)
	}
	return makeNode(0, sp.links, sp.index.number(sp.link(path, c.ID)))
}

// link is what is interned of a link.
func (sp *nameSpace) link(path, id string) string { return sp.moves.latest(path + linkSeparator + id) }

func (sp *nameSpace) dirNode(path string) node {
	return makeNode(0, sp.dirs, sp.index.number(sp.removed.latest(path)))
}

// dirPath is the path of a directory's node.
func (sp *nameSpace) dirPath(n node) (path string, ok bool) {
	s, ok := sp.index.name(n.entry())
	if !ok || strings.Contains(s, linkSeparator) {
		return "", false
	}
	path, _, _ = strings.Cut(s, againSeparator)
	return path, true
}

var imagesIno, registryIno = topSeed.under("images"), topSeed.under("registry")

func (sp *nameSpace) inoOf(path string) ino {
	if path == "" {
		return sp.ino
	}
	return sp.ino.under(path)
}

// namesView is images/ or registry/, and the directories below it.
type namesView struct{ *nameSpace }

// dir returns what a directory's node means. A path that no name has may be one all the same.
func (v namesView) dir(ctx context.Context, n node) (s *nameState, path string, err error) {
	st := v.f.refresh(ctx)
	s = st.names[v.n]
	path, ok := v.dirPath(n)
	if !ok {
		return nil, "", syscall.ENOENT
	}
	if _, ok := s.tree.Dir(path); ok || path == "" {
		return s, path, nil
	}
	if _, dir, err := v.find(ctx, st.snap, path); err != nil || !dir {
		return nil, "", errors.Join(err, imgsrc.ErrNotFound)
	}
	return s, path, nil
}

func (v namesView) attr(ctx context.Context, n node, cheap bool) (attr, error) {
	s, path, err := v.dir(ctx, n)
	if err != nil {
		return attr{}, err
	}
	a := dirAttr(v.inoOf(path), s.time(path), true)
	v.f.takesWrites(&a, !v.f.readOnly)
	return a, nil
}

func (v namesView) lookup(ctx context.Context, dir node, name string) (found, error) {
	s, path, err := v.dir(ctx, dir)
	if err != nil {
		return found{}, err
	}
	path = joinName(path, name)
	c, ok := s.tree.Lookup(path)
	if ok {
		return found{node: v.node(path, c), keep: keepMoment}, nil
	}
	c.ID, c.Dir, err = v.find(ctx, v.f.state.Load().snap, path)
	if err != nil {
		return found{}, err
	}
	if c.ID == "" && !c.Dir {
		return found{}, syscall.ENOENT
	}
	v.sweepUnlisted()
	return found{node: v.node(path, c), keep: keepNot}, nil
}

// list lists in the order in which the names were first met, so that a cookie means the same while names come and go.
func (v namesView) list(ctx context.Context, dir node, from uint64, emit func(dirent) bool) error {
	s, path, err := v.dir(ctx, dir)
	if err != nil {
		return err
	}
	cached, ok := s.lists.Load(path)
	if !ok {
		cached, _ = s.lists.LoadOrStore(path, v.listOf(s, path))
	}
	all := cached.([]dirent)
	i, _ := slices.BinarySearchFunc(all, from+1, func(d dirent, c uint64) int { return int(int64(d.cookie) - int64(c)) })
	for _, d := range all[i:] {
		if !emit(d) {
			return nil
		}
	}
	return nil
}

func (sp *nameSpace) listOf(s *nameState, dir string) []dirent {
	children, _ := s.tree.Dir(dir)
	all := make([]dirent, 0, len(children))
	for _, c := range children {
		path := joinName(dir, c.Name)
		d := dirent{name: c.Name, node: sp.node(path, c), ino: sp.inoOf(path), mode: syscall.S_IFLNK, keep: keepMoment}
		if c.Dir {
			d.mode = syscall.S_IFDIR
		}
		d.cookie = uint64(sp.index.number(path))
		all = append(all, d)
	}
	slices.SortFunc(all, func(a, b dirent) int { return int(int64(a.cookie) - int64(b.cookie)) })
	return all
}

func (namesView) read(context.Context, node, []byte, int64) (fuse.ReadResult, error) {
	return nil, syscall.EISDIR
}

func (namesView) readlink(context.Context, node) ([]byte, error) { return nil, syscall.EINVAL }

// linksView is the links below images/ or registry/.
type linksView struct{ *nameSpace }

// target returns a link's path, and the id and relative path of the image it leads to.
func (v linksView) target(n node) (path, target string, err error) {
	s, ok := v.index.name(n.entry())
	s = v.moves.of(n, s)
	path, id, isLink := strings.Cut(s, linkSeparator)
	id, _, _ = strings.Cut(id, linkSeparator)
	if !ok || !isLink {
		return "", "", syscall.ENOENT
	}
	return path, strings.Repeat("../", strings.Count(path, "/")+1) + "ids/" + id, nil
}

func (v linksView) attr(ctx context.Context, n node, cheap bool) (attr, error) {
	path, target, err := v.target(n)
	if err != nil {
		return attr{}, err
	}
	return linkAttr(v.inoOf(path), len(target), v.f.state.Load().names[v.n].time(path)), nil
}

// readlink is called when a link is followed for the first time. What a registry has said of the name meanwhile may have put
// another image in the place of the one that the kernel knows, and the path goes on there.
func (v linksView) readlink(ctx context.Context, n node) ([]byte, error) {
	if v.f.gone.mayMislead() {
		v.f.settle(ctx)
	}
	_, target, err := v.target(n)
	return []byte(target), err
}

func (linksView) lookup(context.Context, node, string) (found, error) {
	return found{}, syscall.ENOTDIR
}

func (linksView) list(context.Context, node, uint64, func(dirent) bool) error { return syscall.ENOTDIR }

func (linksView) read(context.Context, node, []byte, int64) (fuse.ReadResult, error) {
	return nil, syscall.EINVAL
}
