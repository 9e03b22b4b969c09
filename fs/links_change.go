package fs

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/imgfs/imgfs/imgsrc"
)

// link makes a link at a place, which gives the image that its target means a name.
func (f *FS) link(ctx context.Context, p place, who fuse.Caller, target string) (found, error) {
	s := f.refresh(ctx)
	if _, ok := s.names[p.sp.n].tree.Lookup(p.path); ok {
		return found{}, imgsrc.ErrExists
	}
	typed, err := p.typed()
	id := ""
	if err == nil {
		id, err = f.imageOf(ctx, p.treeDir(), target)
	}
	if err != nil {
		f.failed("link", "", fmt.Sprintf("linking %s to %q: %v", p.path, target, err))
		return found{}, err
	}
	name, made, err := f.nameFor(p, id, typed)
	switch {
	case made:
		if err := f.remake(p.sp, func(m *imgsrc.Made) { m.Links[p.path] = id }); err != nil {
			return found{}, err
		}
		return p.found(id, keepMoment), nil
	case err == nil && p.sp.holder(s.snap, name) != nil:
		return found{}, imgsrc.ErrExists
	}
	if err := f.changeName(ctx, p, id, name, who, err); err != nil {
		return found{}, err
	}
	if c, ok := f.state.Load().names[p.sp.n].tree.Lookup(p.path); ok && !c.Dir && c.ID == id {
		return p.found(id, keepMoment), nil
	}
	return p.found(id, keepNot), nil // its name has another form, or is gone again
}

// found is the node of a link at a place.
func (p place) found(id string, k keep) found {
	return found{node: p.sp.node(p.path, imgsrc.NameChild{Name: p.name, ID: id}), keep: k}
}

// nameFor returns the name that a link at a place gives an image, or that the link is to be made in memory only.
func (f *FS) nameFor(p place, id, typed string) (name string, made bool, err error) {
	if p.isCoreutils() {
		return "", true, nil
	}
	name, err = f.ops.CheckName(id, typed, p.remote())
	if errors.Is(err, imgsrc.ErrInvalid) && p.isTemporary() {
		return "", true, nil
	}
	return name, false, err
}

// changeName gives an image the name of a link, and takes those in remove from it. err is why that cannot be: it is
// only recorded then.
func (f *FS) changeName(ctx context.Context, p place, id, name string, who fuse.Caller, err error, remove ...string) error {
	lines := []string{"+" + name}
	for _, was := range remove {
		lines = append(lines, "-"+was)
	}
	if err := f.change(ctx, f.linkWrite(p, id, who, err, lines...)); err != nil {
		return err
	}
	if e := p.sp.holder(f.state.Load().snap, name); e != nil && e.ID != id {
		f.failed("link", id, fmt.Sprintf("naming image %.12s %s: another source, which counts before its own, has that name for %.12s", id, name, e.ID))
		return imgsrc.ErrExists
	}
	return nil
}

// linkWrite is what ops is asked for: lines as those of tags, or to record why there are none.
func (f *FS) linkWrite(p place, id string, who fuse.Caller, err error, lines ...string) Write {
	w := Write{Control: "link", Image: id, UID: who.Uid, PID: who.Pid, Remote: p.remote(), Err: err}
	for _, line := range lines {
		w.Lines = append(w.Lines, []string{line})
	}
	return w
}

// source is the link that is at a place: its image, and the name that it stands for; none if it was only made.
func (f *FS) source(ctx context.Context, p place) (id, name string, err error) {
	s := f.refresh(ctx)
	names := s.names[p.sp.n]
	c, ok := names.tree.Lookup(p.path)
	switch {
	case ok && c.Dir:
		return "", "", syscall.EISDIR
	case ok:
		if name, ok := p.sp.nameAt(s.snap, p.path, c.ID); ok {
			return c.ID, name, nil
		}
		if names.isMade(p.path) {
			return c.ID, "", nil
		}
		return "", "", syscall.ENOENT
	case p.remote():
		return "", "", syscall.ENOENT
	}
	id, name, ok = f.named(s.snap, p.path)
	switch {
	case !ok:
		return "", "", syscall.ENOENT
	case name == "": // by digest
		return "", "", syscall.EPERM
	}
	return id, name, nil
}

// rename gives the image of a link the name that it gets, and takes that which it had.
func (f *FS) rename(ctx context.Context, from, to place, who fuse.Caller, noReplace bool) error {
	id, was, err := f.source(ctx, from)
	if errors.Is(err, syscall.EISDIR) {
		return syscall.EPERM // and not EXDEV, for which mv would copy
	}
	if err != nil {
		return err
	}
	typed, err := to.typed()
	if err != nil {
		f.failed("link", id, fmt.Sprintf("renaming %s to %s: %v", from.path, to.path, err))
		return err
	}
	name, made, err := f.nameFor(to, id, typed)
	if made && was != "" { // what has a name does not lose it so
		err = imgsrc.Of(imgsrc.ErrInvalid, fmt.Errorf("%q is no reference: write NAME:TAG", typed))
	}
	s := f.state.Load()
	there, taken := s.names[to.sp.n].tree.Lookup(to.path)
	switch {
	case taken && there.Dir:
		return syscall.EISDIR
	case noReplace && (taken || err == nil && !made && to.sp.holder(s.snap, name) != nil):
		return imgsrc.ErrExists
	}
	if !made || err != nil {
		var gone []string
		if was != "" && was != name {
			gone = []string{was}
		}
		if err := f.changeName(ctx, to, id, name, who, err, gone...); err != nil {
			return err
		}
	}
	err = f.remake(to.sp, func(m *imgsrc.Made) {
		delete(m.Links, from.path)
		delete(m.Links, to.path)
		if made {
			m.Links[to.path] = id
		}
	})
	if err != nil {
		return err
	}
	f.moveLink(from, to, id)
	return nil
}

// unlink takes a name from its image.
func (f *FS) unlink(ctx context.Context, p place, who fuse.Caller) error {
	if s := f.state.Load().names[p.sp.n]; s.isMade(p.path) {
		if _, _, err := f.source(ctx, p); err == nil {
			return f.remake(p.sp, func(m *imgsrc.Made) { delete(m.Links, p.path) })
		}
	}
	if !f.allowRemove {
		return syscall.EPERM
	}
	id, name, err := f.source(ctx, p)
	if err != nil {
		return err
	}
	f.linger(p)
	return f.change(ctx, f.linkWrite(p, id, who, nil, "-"+name))
}

// rmdir removes a directory that mkdir has made, and that nothing is in.
func (f *FS) rmdir(p place) error {
	s := f.state.Load().names[p.sp.n]
	children, ok := s.tree.Dir(p.path)
	_, made := s.made.Dirs[p.path]
	switch {
	case len(children) > 0:
		return syscall.ENOTEMPTY
	case !ok || !made:
		return syscall.EROFS
	}
	p.sp.removed.add(p.path)
	return f.remake(p.sp, func(m *imgsrc.Made) { delete(m.Dirs, p.path) })
}
