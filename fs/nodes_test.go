package fs

import (
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/imgfs/imgfs/imgsrc"
)

// anyNode is a node id that is one of those that the kernel knows, almost one, or any number.
func anyNode(r *rand.Rand, known []node) uint64 {
	n := known[r.IntN(len(known))]
	image, view, entry := n.image(), n.view(), n.entry()
	switch r.IntN(8) {
	case 0:
		return r.Uint64()
	case 1:
		image = uint32(r.IntN(6))
	case 2:
		view = uint16(r.IntN(firstDiff + 4))
	case 3:
		entry = uint32(r.IntN(64))
	case 4:
		entry = maxEntry - uint32(r.IntN(3))
	case 5:
		image, view, entry = uint32(r.IntN(4)), uint16(r.IntN(firstDiff+4)), uint32(r.IntN(64))
	}
	return uint64(makeNode(image, view, entry))
}

func anyOffset(r *rand.Rand) uint64 {
	switch r.IntN(4) {
	case 0:
		return r.Uint64()
	case 1:
		return -uint64(r.IntN(8))
	case 2:
		return uint64(r.IntN(1 << 20))
	}
	return uint64(r.IntN(16))
}

// whatever is what a request from a kernel that is out of its mind would have.
type whatever struct {
	f     *FS
	r     *rand.Rand
	known []node
	names []string
}

func (w *whatever) header() fuse.InHeader {
	return fuse.InHeader{NodeId: anyNode(w.r, w.known), Caller: fuse.Caller{Owner: fuse.Owner{Uid: uint32(w.r.IntN(8) / 7)}, Pid: uint32(w.r.IntN(3))}}
}

func (w *whatever) name() string { return w.names[w.r.IntN(len(w.names))] }

// ask sends one request, and returns what it was.
func (w *whatever) ask(kind int) (what string) {
	h, f, r := w.header(), w.f, w.r
	buf := make([]byte, 1<<r.IntN(14))
	done := make(chan struct{})
	if r.IntN(20) == 0 {
		close(done) // interrupted before it began
	}
	a, b := w.name(), w.name()
	off := anyOffset(r)
	what = fmt.Sprintf("request %d on %x, names %q %q, offset %d", kind, h.NodeId, a, b, off)
	defer func() {
		if p := recover(); p != nil {
			panic(fmt.Sprintf("%s: %v\n%s", what, p, debug.Stack()))
		}
	}()
	var entry fuse.EntryOut
	var attr fuse.AttrOut
	switch kind {
	case 0:
		if f.Lookup(done, &h, a, &entry) == fuse.OK && len(w.known) < 1<<12 {
			w.known = append(w.known, node(entry.NodeId))
		}
	case 1:
		f.GetAttr(done, &fuse.GetAttrIn{InHeader: h}, &attr)
	case 2:
		f.ReadDir(done, &fuse.ReadIn{InHeader: h, Offset: off, Size: uint32(len(buf))}, fuse.NewDirEntryList(buf, off))
	case 3:
		f.ReadDirPlus(done, &fuse.ReadIn{InHeader: h, Offset: off, Size: uint32(len(buf))}, fuse.NewDirEntryList(buf, off))
	case 4:
		f.Read(done, &fuse.ReadIn{InHeader: h, Offset: off, Size: uint32(r.IntN(len(buf) + 2))}, buf)
	case 5:
		f.Readlink(done, &h)
	case 6:
		f.GetXAttr(done, &h, a, buf)
	case 7:
		f.ListXAttr(done, &h, buf)
	case 8:
		f.Lseek(done, &fuse.LseekIn{InHeader: h, Offset: off, Whence: uint32(r.IntN(6))}, &fuse.LseekOut{})
	case 9:
		f.Write(done, &fuse.WriteIn{InHeader: h, Offset: off, WriteFlags: uint32(r.IntN(2))}, []byte(a+"\n"+b))
	case 10:
		f.SetAttr(done, &fuse.SetAttrIn{SetAttrInCommon: fuse.SetAttrInCommon{InHeader: h, Valid: uint32(r.IntN(256)), Size: off}}, &attr)
	case 11:
		f.Symlink(done, &h, a, b, &entry)
	case 12:
		f.Mkdir(done, &fuse.MkdirIn{InHeader: h}, a, &entry)
	case 13:
		f.Rename(done, &fuse.RenameIn{InHeader: h, Newdir: anyNode(r, w.known), Flags: uint32(r.IntN(5))}, a, b)
	case 14:
		f.Unlink(done, &h, a)
	case 15:
		f.Rmdir(done, &h, a)
	case 16:
		f.Create(done, &fuse.CreateIn{InHeader: h}, a, &fuse.CreateOut{})
		f.Mknod(done, &fuse.MknodIn{InHeader: h}, a, &entry)
		f.Link(done, &fuse.LinkIn{InHeader: h, Oldnodeid: anyNode(r, w.known)}, a, &entry)
		f.SetXAttr(done, &fuse.SetXAttrIn{InHeader: h}, a, buf)
		f.RemoveXAttr(done, &h, a)
	}
	return what
}

// TestAnyNode: whatever node ids, names and offsets requests have, none panics. The server would make EIO of it, and the log a
// stack; but a lock that was held would stay so.
func TestAnyNode(t *testing.T) {
	a, b := makeImage(t, "a", "layer one", "layer two"), makeImage(t, "b", "layer one")
	g := newTagged(t, a, b)
	g.allowRemove = true
	all := map[string]file{}
	walk(t, g.FS, rootNode, "", all)
	w := &whatever{f: g.FS, known: []node{rootNode, idsNode, imagesNode, registryNode, jobsNode, ociNode}}
	w.names = []string{
		"", ".", "..", "x", "x:1", "a/b", "\x00", "\xff", "localhost", "a:1", "CuAbCdEf", ".tmp", "../ids/" + a.desc.ID, "../../ids/" + b.desc.ID[:13],
		a.desc.ID, a.desc.ID[:6], "oci.tar", "docker.tar", "rootfs.tar", "README", "1", "4294967297", "18446744073709551616", "rootfs", "layers", "00", "diff",
		"annotations", "index.json", "sha256", "sha512", a.desc.Digest.Encoded(), "export", "platforms", "tags", "/mnt/images/localhost/a:1", "/", "///",
	}
	for _, got := range all {
		w.known = append(w.known, got.node)
	}
	known, id := w.known, a.desc.ID
	for seed := range uint64(40) {
		w.r, w.known = rand.New(rand.NewPCG(seed, 1)), known
		for range 2000 {
			w.ask(w.r.IntN(17))
		}
		g.src.set(named(b, "localhost/b:1")) // a is gone: its nodes lead nowhere
		g.refresh(t.Context())
		for range 500 {
			w.ask(w.r.IntN(9))
		}
		g.src.set(named(a, "localhost/a:1"), imgsrc.Listed{Image: b})
		g.refresh(t.Context())
	}
	if g.state.Load().byID[id] == nil {
		t.Error("the image that came back is not there")
	}
}
