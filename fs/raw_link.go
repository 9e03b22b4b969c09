package fs

import (
	"context"
	"errors"
	"fmt"
	"path"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/imgfs/imgfs/imgsrc"
)

// This file is the kernel's side of ln, mv, mkdir, rm and rmdir. While it waits for one of these answers the kernel holds the
// locks of the directories that are concerned; so nothing here asks it for anything but what takes no such lock.

// patience is how long the work for a request goes on whose caller has been interrupted. Unlike a write it cannot come back
// as if nothing had happened: the name would be there already.
const patience = 900 * time.Millisecond

// lockTime is how long a request may wait, for a store that somebody has locked or for a registry: nobody can list the
// directory as long.
const lockTime = 10 * time.Second

// errGivenUp is why a request ends that has waited for so long, also for the work that is done for it.
var errGivenUp = imgsrc.Of(syscall.ETIMEDOUT, fmt.Errorf("given up after %s: ln, mv, rm and rmdir wait no longer", lockTime))

// patiently returns a context that ends some time after the caller of a request has given up, and after lockTime. Each
// request whose caller holds the lock of a directory begins with it, and ends with the function that it returns.
func (f *FS) patiently(cancel <-chan struct{}) (context.Context, func()) {
	answered := f.gone.changing()
	ctx, stop := context.WithTimeoutCause(f.ctx, lockTime, errGivenUp)
	go func() {
		select {
		case <-ctx.Done():
		case <-cancel:
			select {
			case <-ctx.Done():
			case <-time.After(patience):
				stop()
			}
		}
	}()
	return ctx, func() {
		stop()
		answered()
	}
}

// mayChange says why a caller may change no names, OK if there is no reason.
func (f *FS) mayChange(who fuse.Caller) fuse.Status {
	switch {
	case who.Uid != f.uid:
		return fuse.EACCES
	case f.readOnly:
		return fuse.EROFS
	}
	return fuse.OK
}

// takesWrites shows that names can be made in a directory: where the kernel checks modes, the owner needs it.
func (f *FS) takesWrites(a *attr, yes bool) {
	if yes {
		a.mode |= 0o200
	}
}

// Symlink gives an image a name.
func (f *FS) Symlink(cancel <-chan struct{}, h *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	p, ok := f.place(node(h.NodeId), name)
	if !ok {
		return f.refuseLink(h, target, name)
	}
	if s := f.mayChange(h.Caller); s != fuse.OK {
		return s
	}
	ctx, stop := f.patiently(cancel)
	defer stop()
	hit, err := f.link(ctx, p, h.Caller, target)
	if err != nil {
		return fuse.Status(errnoOf(err))
	}
	return f.answerNew(ctx, hit, out)
}

// answerNew fills in the entry of what has been made.
func (f *FS) answerNew(ctx context.Context, hit found, out *fuse.EntryOut) fuse.Status {
	a, err := f.view(hit.node).attr(ctx, hit.node, false)
	if err != nil {
		return f.fail("reading attributes", hit.node, err)
	}
	f.fillEntry(out, hit.node, a, hit.keep)
	return fuse.OK
}

// refuseLink answers for a link elsewhere.
func (f *FS) refuseLink(h *fuse.InHeader, target, name string) fuse.Status {
	if name == path.Base(target) {
		if f.followed(node(h.NodeId), h.Caller, "add -n, as in ln -sfn "+target+" images/NAME") {
			return fuse.Status(syscall.EEXIST)
		}
	}
	return fuse.EROFS
}

// followed says whether ln or mv has followed a name that is there, and would make another one in the image's directory.
func (f *FS) followed(dir node, who fuse.Caller, instead string) bool {
	img := f.image(dir.image())
	if img == nil || dir.view() != viewImage || f.mayChange(who) != fuse.OK {
		return false
	}
	if _, err := img.current(); err != nil {
		return false
	}
	f.failed("link", img.id, "naming something in an image's directory: the name that leads there exists already: "+instead)
	return true
}

// Mkdir makes a directory for names, in memory.
func (f *FS) Mkdir(cancel <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	p, ok := f.place(node(in.NodeId), name)
	if !ok || p.remote() {
		return fuse.EROFS
	}
	if s := f.mayChange(in.Caller); s != fuse.OK {
		return s
	}
	ctx, stop := f.patiently(cancel)
	defer stop()
	s := f.refresh(ctx).names[p.sp.n]
	if _, ok := s.tree.Lookup(p.path); ok {
		return fuse.Status(syscall.EEXIST)
	}
	if _, err := f.ops.CheckName("", p.path+"/x:1", false); err != nil {
		return f.fail("making directory "+p.path, p.dir, err)
	}
	if err := f.remake(p.sp, func(m *imgsrc.Made) { m.Dirs[p.path] = true }); err != nil {
		return f.fail("making directory "+p.path, p.dir, err)
	}
	return f.answerNew(ctx, found{node: p.sp.dirNode(p.path), keep: keepMoment}, out)
}

// Link makes no hard links.
func (f *FS) Link(cancel <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	return fuse.EROFS
}

// The flags of renameat2(2).
const renameNoReplace = 1

// Rename gives an image another name.
func (f *FS) Rename(cancel <-chan struct{}, in *fuse.RenameIn, oldName, newName string) fuse.Status {
	from, ok := f.place(node(in.NodeId), oldName)
	to, okTo := f.place(node(in.Newdir), newName)
	if ok && !okTo && from.name == newName {
		f.followed(node(in.Newdir), in.Caller, "add -T, as in mv -T images/"+from.path+" images/NAME")
	}
	if !ok || !okTo || from.sp != to.sp {
		return fuse.EROFS
	}
	if s := f.mayChange(in.Caller); s != fuse.OK {
		return s
	}
	if in.Flags&^renameNoReplace != 0 {
		return fuse.EINVAL
	}
	ctx, stop := f.patiently(cancel)
	defer stop()
	return fuse.Status(errnoOf(f.rename(ctx, from, to, in.Caller, in.Flags&renameNoReplace != 0)))
}

// Unlink takes a name away, if the mount allows it. If not that is no event and no line in the log: an rm -rf of the
// mountpoint would make thousands.
func (f *FS) Unlink(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	p, ok := f.place(node(h.NodeId), name)
	if !ok {
		return f.refuseRemoval(h)
	}
	if s := f.mayChange(h.Caller); s != fuse.OK {
		return s
	}
	ctx, stop := f.patiently(cancel)
	defer stop()
	return fuse.Status(errnoOf(f.unlink(ctx, p, h.Caller)))
}

// Rmdir removes an image, if the mount allows it, or a directory that mkdir has made.
func (f *FS) Rmdir(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	ctx, stop := f.patiently(cancel)
	defer stop()
	if p, ok := f.place(node(h.NodeId), name); ok {
		if s := f.mayChange(h.Caller); s != fuse.OK {
			return s
		}
		return fuse.Status(errnoOf(f.rmdir(p)))
	}
	if node(h.NodeId) != idsNode {
		return fuse.EROFS
	}
	if s := f.mayChange(h.Caller); s != fuse.OK {
		return s
	}
	if !f.allowRemove {
		return fuse.EPERM
	}
	if f.refresh(ctx).byID[name] == nil {
		return fuse.ENOENT
	}
	err := f.change(ctx, Write{Control: "remove", Image: name, UID: h.Uid, PID: h.Pid})
	if errors.Is(err, ctx.Err()) && f.refresh(f.ctx).byID[name] == nil {
		err = nil // what it takes on the disk is still being given back
	}
	return fuse.Status(errnoOf(err))
}

// refuseRemoval tells what could be removed, if this mount allowed it, from what never can.
func (f *FS) refuseRemoval(h *fuse.InHeader) fuse.Status {
	if node(h.NodeId) == idsNode {
		return fuse.EPERM
	}
	return fuse.EROFS
}

// change has ops change something, which then shows at once. The kernel is told of other names than the caller's later.
func (f *FS) change(ctx context.Context, w Write) error {
	err := f.ops.Do(ctx, w)
	f.refresh(f.ctx)
	return err
}

// failed records that something failed before ops was asked. An image's id may be missing.
func (f *FS) failed(kind, id, text string) {
	f.log.Warn(text, "image", id)
	f.ops.Record(kind+"-error", id, text)
}
