package fs

import (
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// This file is the kernel's side of writing: controls take writes, everything else says why it does not.

// A WRITE that comes out of the page cache was made through a shared mapping: nobody waits for its result, and it may
// hold half of what was meant.
const writeFromCache = 1 // FUSE_WRITE_CACHE

// Write carries out what is written to a control.
func (f *FS) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	n := node(in.NodeId)
	if !f.isControl(n) {
		return 0, fuse.EROFS
	}
	if in.WriteFlags&writeFromCache != 0 {
		f.control.spoilt(n)
		return 0, fuse.EIO
	}
	if in.Uid != f.uid {
		return 0, fuse.EACCES
	}
	if f.readOnly {
		return 0, fuse.EROFS
	}
	if isJob(n) {
		if err := f.writeJob(n, in.Caller, data); err != nil {
			return 0, fuse.Status(errnoOf(err))
		}
		return uint32(len(data)), fuse.OK
	}
	if err := f.control.write(f.request(cancel), n, in.Caller, data, int64(in.Offset)); err != nil {
		return 0, fuse.Status(errnoOf(err))
	}
	return uint32(len(data)), fuse.OK
}

// SetAttr lets a shell's > empty a control, which does nothing, and nothing else.
func (f *FS) SetAttr(cancel <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	n := node(in.NodeId)
	if in.Valid&fuse.FATTR_SIZE == 0 {
		return fuse.EPERM
	}
	if !f.isControl(n) || f.readOnly {
		return fuse.EROFS
	}
	if in.Caller.Uid != f.uid { // in.Uid is the owner that a file should get
		return fuse.EACCES
	}
	return f.GetAttr(cancel, &fuse.GetAttrIn{InHeader: in.InHeader}, out)
}

// Fsync has nothing to do: a control's write is done when it returns.
func (f *FS) Fsync(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status { return fuse.OK }

// FsyncDir has nothing to do either.
func (f *FS) FsyncDir(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status { return fuse.OK }

// Create makes no files. A shell's > asks for it where a job is gone.
func (f *FS) Create(cancel <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	if node(in.NodeId) == jobsNode {
		return fuse.ENOENT
	}
	return fuse.EROFS
}

// Mknod makes no files.
func (f *FS) Mknod(cancel <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	return fuse.EROFS
}

// SetXAttr sets no attributes.
func (f *FS) SetXAttr(cancel <-chan struct{}, in *fuse.SetXAttrIn, name string, data []byte) fuse.Status {
	return fuse.Status(syscall.EROFS)
}

// RemoveXAttr removes none.
func (f *FS) RemoveXAttr(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return fuse.Status(syscall.EROFS)
}
