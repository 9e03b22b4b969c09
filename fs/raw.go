package fs

import (
	"context"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// This file is the kernel's side of the tree: each request is taken apart, answered by the view that its node stands in,
// and put together again with the caching rules of the package comment.

var _ fuse.RawFileSystem = (*FS)(nil)

// forever is how long the kernel may keep what cannot change, in seconds.
const forever = 365 * 24 * 3600

// request is the context of one request: it ends when the kernel says that nobody waits for the answer any more.
type request struct {
	context.Context
	cancel <-chan struct{}
}

func (f *FS) request(cancel <-chan struct{}) context.Context {
	return request{f.ctx, cancel}
}

func (r request) Done() <-chan struct{} { return r.cancel }

func (r request) Err() error {
	select {
	case <-r.cancel:
		return context.Canceled
	default:
		return nil
	}
}

func (r request) Deadline() (time.Time, bool) { return time.Time{}, false }

// String is the file system's type: what follows "fuse." in the mount table.
func (f *FS) String() string { return "imgfs" }

// Init keeps the server, to tell the kernel about names that are gone.
func (f *FS) Init(s *fuse.Server) { f.server.Store(s) }

// OnUnmount ends what runs on the mount's behalf.
func (f *FS) OnUnmount() {
	f.cancel()
	f.contents.close()
	f.files.close()
}

// Forget is not needed: a node id says all there is to know about its node.
func (f *FS) Forget(nodeid, nlookup uint64) {}

// Lookup finds a name in a directory.
func (f *FS) Lookup(cancel <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	dir := node(h.NodeId)
	v := f.view(dir)
	if v == nil {
		return fuse.ENOENT
	}
	ctx := f.request(cancel)
	hit, err := v.lookup(ctx, dir, name)
	if err != nil {
		if len(name) > maxFileName && errnoOf(err) == syscall.ENOENT && !f.takesNames(dir) {
			return fuse.Status(syscall.ENAMETOOLONG)
		}
		return f.fail("looking up "+name, dir, err)
	}
	a, err := f.view(hit.node).attr(ctx, hit.node, false)
	if err != nil {
		return f.fail("looking up "+name, hit.node, err)
	}
	f.fillEntry(out, hit.node, a, hit.keep)
	return fuse.OK
}

// maxFileName is how many bytes a name may have. What is longer is no file, as everywhere on Linux; but an image's name may
// be, and is found although it cannot be listed.
const maxFileName = 255

// takesNames says whether a directory is one of images' names.
func (f *FS) takesNames(dir node) bool { return dir.image() == 0 && dir.view() != viewTop }

func (f *FS) fillEntry(out *fuse.EntryOut, n node, a attr, k keep) {
	out.NodeId = uint64(n)
	out.Generation = f.early.generation(n)
	switch k {
	case keepForever:
		out.EntryValid = forever
	case keepMoment:
		out.EntryValid = 1
	}
	if !a.live {
		out.AttrValid = forever
	}
	f.fillAttr(&out.Attr, a)
}

func (f *FS) fillAttr(out *fuse.Attr, a attr) {
	t := a.mtime
	if t.Before(time.Unix(0, 0)) && !a.layered {
		t = time.Unix(0, 0)
	}
	*out = fuse.Attr{
		Ino:       uint64(a.ino),
		Size:      uint64(a.size),
		Blocks:    uint64(a.size+511) / 512,
		Mode:      a.mode,
		Nlink:     a.nlink,
		Owner:     fuse.Owner{Uid: f.uid, Gid: f.gid},
		Mtime:     uint64(t.Unix()),
		Mtimensec: uint32(t.Nanosecond()),
	}
	if a.layered {
		out.Uid, out.Gid, out.Rdev = a.uid, a.gid, a.rdev
		out.Blocks = uint64(a.stored+511) / 512
	}
	out.Atime, out.Atimensec = out.Mtime, out.Mtimensec
	out.Ctime, out.Ctimensec = out.Mtime, out.Mtimensec
	if a.control { // whoever else is shown as the owner may not write
		return
	}
	if f.owner.UID != nil {
		out.Uid = *f.owner.UID
	}
	if f.owner.GID != nil {
		out.Gid = *f.owner.GID
	}
	if f.owner.Umask != nil && a.mode&syscall.S_IFMT != syscall.S_IFLNK {
		out.Mode &^= *f.owner.Umask
	}
}

// GetAttr describes a node.
func (f *FS) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	n := node(in.NodeId)
	v := f.view(n)
	if v == nil {
		return fuse.ENOENT
	}
	lend := in.Flags()&fuse.FUSE_GETATTR_FH != 0 && n.isArchive()
	if lend {
		f.lent.add(n)
	}
	a, err := v.attr(f.request(cancel), n, false)
	if err != nil {
		return f.fail("reading attributes", n, err)
	}
	switch {
	case !a.live:
		out.AttrValid = forever
	case lend:
		out.SetTimeout(lentTime)
	}
	f.fillAttr(&out.Attr, a)
	return fuse.OK
}

// Access is answered once: whoever may use the mount at all may read everything in it.
func (f *FS) Access(cancel <-chan struct{}, in *fuse.AccessIn) fuse.Status { return fuse.ENOSYS }

// Open is answered once: the kernel then opens by itself and keeps what it has of the file from one open to the next.
func (f *FS) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	return fuse.ENOSYS
}

// OpenDir is answered once, like Open: the kernel caches every listing, by the directory's modification time.
func (f *FS) OpenDir(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	return fuse.ENOSYS
}

// Flush is answered once: a control has its say when it is written.
func (f *FS) Flush(cancel <-chan struct{}, in *fuse.FlushIn) fuse.Status { return fuse.ENOSYS }

// Release and ReleaseDir are not sent for what was never opened.
func (f *FS) Release(cancel <-chan struct{}, in *fuse.ReleaseIn) {}

// ReleaseDir is not sent either.
func (f *FS) ReleaseDir(in *fuse.ReleaseIn) {}

// ReadDir lists names.
func (f *FS) ReadDir(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return f.readDir(cancel, in, out, false)
}

// ReadDirPlus lists names with their attributes, where those are cheap.
func (f *FS) ReadDirPlus(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return f.readDir(cancel, in, out, true)
}

// The kernel sees the offsets 1 and 2 behind the dots, and a view's cookies plus 2 behind its entries.
func (f *FS) readDir(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList, plus bool) fuse.Status {
	dir := node(in.NodeId)
	v := f.view(dir)
	if v == nil {
		return fuse.ENOENT
	}
	ctx := f.request(cancel)
	add := func(e dirent) bool {
		de := fuse.DirEntry{Name: e.name, Mode: e.mode, Ino: uint64(e.ino), Off: e.cookie}
		if !plus {
			return out.AddDirEntry(de)
		}
		eo := out.AddDirLookupEntry(de)
		if eo == nil {
			return false
		}
		*eo = fuse.EntryOut{} // node id 0: a name without attributes
		if e.node == 0 {
			return true
		}
		if e.attr != nil {
			f.fillEntry(eo, e.node, *e.attr, e.keep)
			return true
		}
		if a, err := f.view(e.node).attr(ctx, e.node, true); err == nil {
			f.fillEntry(eo, e.node, a, e.keep)
		}
		return true
	}
	var here ino // of the directory itself, where that costs nothing to know
	if in.Offset == 0 {
		if a, err := v.attr(ctx, dir, true); err == nil {
			here = a.ino
		}
	}
	for off, e := range []dirent{{name: ".", ino: here}, {name: ".."}} {
		e.mode, e.cookie = syscall.S_IFDIR, uint64(off)+1
		if in.Offset <= uint64(off) && !add(e) {
			return fuse.OK
		}
	}
	from := uint64(0)
	if in.Offset > 2 {
		from = in.Offset - 2
	}
	err := v.list(ctx, dir, from, func(e dirent) bool {
		e.cookie += 2
		return add(e)
	})
	if err != nil {
		return f.fail("listing", dir, err)
	}
	return fuse.OK
}

// Read reads a file.
func (f *FS) Read(cancel <-chan struct{}, in *fuse.ReadIn, dest []byte) (fuse.ReadResult, fuse.Status) {
	n := node(in.NodeId)
	v := f.view(n)
	if v == nil {
		return nil, fuse.ENOENT
	}
	res, err := v.read(f.request(cancel), n, dest[:min(len(dest), int(in.Size))], int64(in.Offset))
	if err != nil {
		return nil, f.fail("reading", n, err)
	}
	return res, fuse.OK
}

// Readlink reads a symbolic link.
func (f *FS) Readlink(cancel <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	n := node(h.NodeId)
	v := f.view(n)
	if v == nil {
		return nil, fuse.ENOENT
	}
	target, err := v.readlink(f.request(cancel), n)
	if err != nil {
		return nil, f.fail("reading link", n, err)
	}
	return target, fuse.OK
}

// StatFs shows a file system that has no size of its own.
func (f *FS) StatFs(cancel <-chan struct{}, h *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	*out = fuse.StatfsOut{Bsize: 4096, Frsize: 4096, NameLen: maxFileName}
	return fuse.OK
}

// GetXAttr returns an extended attribute of a file out of a layer; nothing else has any. The answer for labels and ACLs
// that are not there is the one that makes ls stop asking for them.
func (f *FS) GetXAttr(cancel <-chan struct{}, h *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	xattrs, err := f.xattrs(f.request(cancel), node(h.NodeId))
	if err != nil {
		return 0, f.fail("reading extended attributes", node(h.NodeId), err)
	}
	for _, x := range xattrs {
		if x.Name == name {
			return giveXattr(x.Value, dest)
		}
	}
	switch name {
	case "security.selinux", "system.posix_acl_access", "system.posix_acl_default":
		return 0, fuse.Status(syscall.EOPNOTSUPP)
	}
	return 0, fuse.ENOATTR
}

// ListXAttr lists the names of a file's extended attributes.
func (f *FS) ListXAttr(cancel <-chan struct{}, h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	xattrs, err := f.xattrs(f.request(cancel), node(h.NodeId))
	if err != nil {
		return 0, f.fail("reading extended attributes", node(h.NodeId), err)
	}
	var names string
	for _, x := range xattrs {
		names += x.Name + "\x00"
	}
	return giveXattr(names, dest)
}

// giveXattr answers a request for bytes into dest, or for their number if dest has no room at all.
func giveXattr(value string, dest []byte) (uint32, fuse.Status) {
	if len(dest) > 0 && len(value) > len(dest) {
		return 0, fuse.ERANGE
	}
	copy(dest, value)
	return uint32(len(value)), fuse.OK
}

// Lseek finds data and holes.
func (f *FS) Lseek(cancel <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	n := node(in.NodeId)
	v := f.view(n)
	if v == nil {
		return fuse.ENOENT
	}
	off, err := f.seek(f.request(cancel), n, int64(in.Offset), in.Whence)
	if err != nil {
		return f.fail("seeking", n, err)
	}
	out.Offset = uint64(off)
	return fuse.OK
}
