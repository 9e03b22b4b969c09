package fs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
)

// file is what a walk saw of one place of the tree.
type file struct {
	attr attr
	text string
	node node
}

// walk visits all that is listed from dir down, as find and cat would, and holds each place against itself: what is
// listed is found, under the same node and inode number; what stat says is what is read.
func walk(t *testing.T, f *FS, dir node, path string, all map[string]file) {
	t.Helper()
	ctx := context.Background()
	var entries []dirent
	err := f.view(dir).list(ctx, dir, 0, func(e dirent) bool {
		entries = append(entries, e)
		return true
	})
	if err != nil {
		t.Fatalf("listing %s: %v", path, err)
	}
	for i, e := range entries {
		at := path + "/" + e.name
		if i > 0 && e.cookie <= entries[i-1].cookie {
			t.Errorf("%s: cookie %d after %d", at, e.cookie, entries[i-1].cookie)
		}
		var next []string
		if err := f.view(dir).list(ctx, dir, e.cookie, func(e dirent) bool { next = append(next, e.name); return true }); err != nil || len(next) != len(entries)-i-1 {
			t.Errorf("%s: listing from cookie %d gives %q, %v", path, e.cookie, next, err)
		}
		hit, err := f.view(dir).lookup(ctx, dir, e.name)
		if err != nil || hit.node != e.node || hit.keep != e.keep {
			t.Errorf("%s: found %+v, %v; listed %+v", at, hit, err, e)
			continue
		}
		a, err := f.view(e.node).attr(ctx, e.node, false)
		if err != nil {
			t.Errorf("%s: %v", at, err)
			continue
		}
		if a.ino != e.ino || a.mode&syscall.S_IFMT != e.mode {
			t.Errorf("%s: inode %d mode %o, listed with %d %o", at, a.ino, a.mode, e.ino, e.mode)
		}
		got := file{attr: a, node: e.node}
		switch e.mode {
		case syscall.S_IFDIR:
			all[at] = got
			walk(t, f, e.node, at, all)
			continue
		case syscall.S_IFLNK:
			target, err := f.view(e.node).readlink(ctx, e.node)
			if err != nil {
				t.Errorf("%s: %v", at, err)
			}
			got.text = string(target)
		default:
			got.text = readAll(t, f, e.node, a.size)
		}
		if int64(len(got.text)) != a.size {
			t.Errorf("%s: %d bytes, size %d", at, len(got.text), a.size)
		}
		all[at] = got
	}
}

// readAll reads a file in odd pieces, past its end.
func readAll(t *testing.T, f *FS, n node, size int64) string {
	t.Helper()
	var all []byte
	for _, step := range []int{1 << 20, 7} {
		all = all[:0]
		for off := int64(0); off <= size+int64(step); off += int64(step) {
			buf := make([]byte, step)
			res, err := f.view(n).read(context.Background(), n, buf, off)
			if err != nil {
				t.Fatalf("reading node %x at %d: %v", uint64(n), off, err)
			}
			b, _ := res.Bytes(buf)
			all = append(all, b...)
		}
	}
	return string(all)
}

func TestTree(t *testing.T) {
	a, b := makeImage(t, "a", "layer one", "layer two"), makeImage(t, "b", "layer one")
	f, _, ops := newTree(t,
		named(a, "docker.io/library/web:1", "localhost/web:latest"),
		named(b, "odd/name", "web-1.0"),
		imgsrc.Listed{Image: makeImage(t, "untagged"), Containers: []string{"c0ffee"}})
	ops.lastError = "pushing"
	all := map[string]file{}
	walk(t, f, rootNode, "", all)

	ids := "/ids/" + a.desc.ID
	for path, want := range map[string]string{
		"/images/docker.io/library/web:1":           "../../../ids/" + a.desc.ID,
		"/images/localhost/web:latest":              "../../ids/" + a.desc.ID,
		"/images/odd%2Fname":                        "../ids/" + b.desc.ID,
		"/images/web-1.0":                           "../ids/" + b.desc.ID,
		ids + "/manifest.json":                      string(a.manifest),
		ids + "/config.json":                        string(a.config),
		ids + "/author":                             "a\n",
		ids + "/labels/org.example%2Fa":             "one\n",
		ids + "/labels/b":                           "",
		ids + "/tags":                               "docker.io/library/web:1\nlocalhost/web:latest\n",
		ids + "/names":                              "docker.io/library/web:1\nlocalhost/web:latest\n",
		ids + "/push":                               "",
		ids + "/layers/00/diff.tar":                 string(tarOf(t, "layer one")),
		ids + "/layers/01/diff.tar":                 string(tarOf(t, "layer two")),
		ids + "/layers/01/diff-id":                  digest.FromBytes(tarOf(t, "layer two")).String() + "\n",
		ids + "/layers/00/diff/file":                "layer one",
		ids + "/layers/01/diff/file":                "layer two",
		ids + "/layers/00/changes":                  "A /file\n",
		ids + "/layers/01/changes":                  "C /file\n",
		ids + "/rootfs/file":                        "layer two",
		"/ids/" + b.desc.ID + "/layers/00/diff.tar": string(tarOf(t, "layer one")),
	} {
		got, ok := all[path]
		if !ok || got.text != want {
			t.Errorf("%s: %q, %v; want %q", path, got.text, ok, want)
		}
	}
	for _, path := range []string{ids + "/user", ids + "/annotations", ids + "/containers", ids + "/index.json", ids + "/layers/00/blob", ids + "/layers/02"} {
		if _, ok := all[path]; ok {
			t.Errorf("%s is there", path)
		}
	}
	inodes := map[ino]string{}
	for path, got := range all {
		if was, ok := inodes[got.attr.ino]; ok {
			t.Errorf("%s and %s have one inode number", path, was)
		}
		inodes[got.attr.ino] = path
		if strings.HasSuffix(path, ".json") && !json.Valid([]byte(got.text)) {
			t.Errorf("%s is not JSON", path)
		}
	}

	again, _, _ := newTree(t, named(b, "odd/name", "web-1.0"), named(a, "localhost/web:latest", "docker.io/library/web:1"))
	others := map[string]file{}
	walk(t, again, rootNode, "", others)
	for path, got := range others {
		if was := all[path]; was.attr.ino != got.attr.ino {
			t.Errorf("%s: inode number %d in one mount and %d in another", path, was.attr.ino, got.attr.ino)
		}
		want, of := createdAt, "image"
		if strings.HasSuffix(path, "/file") {
			want, of = createdAt.Truncate(time.Second).Add(time.Second), "file"
			if a := got.attr; a.uid != 7 || a.gid != 8 || a.mode != syscall.S_IFREG|0o640 || a.nlink != 1 {
				t.Errorf("%s: %+v", path, a)
			}
		}
		if strings.HasPrefix(path, "/ids/") && !got.attr.live && !got.attr.mtime.Equal(want) {
			t.Errorf("%s: modified %v, want the %s's time %v", path, got.attr.mtime, of, want)
		}
	}
}

// What is thrown out of memory comes back as it was, and what was kept is not asked for again.
func TestRenderingIsKeptAndRepeatable(t *testing.T) {
	loads := 0
	img := makeImage(t, "a", "x")
	img.loads = &loads
	f, _, _ := newTree(t, named(img))
	first, second := map[string]file{}, map[string]file{}
	walk(t, f, idsNode, "", first)
	if loads != 1 {
		t.Errorf("the manifest was read %d times", loads)
	}
	walk(t, f, rootNode, "", first)
	f.rendered = newRenderedCache(0)
	walk(t, f, idsNode, "", second)
	walk(t, f, rootNode, "", second)
	if !maps.Equal(first, second) {
		t.Error("the second rendering differs")
	}
}

// Whoever makes the tree may have listed the catalog before, to know that it can be listed.
func TestCatalogThatWasListedBefore(t *testing.T) {
	src := &fakeSource{}
	img := makeImage(t, "a")
	src.set(named(img, "localhost/x:1"))
	catalog := imgsrc.NewCatalog(slog.New(slog.DiscardHandler), src)
	if _, err := catalog.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	f := New(Options{Layers: layerCache(t), Catalog: catalog, Ops: &fakeOps{}, Log: slog.New(slog.DiscardHandler)})
	t.Cleanup(f.OnUnmount)
	all := map[string]file{}
	walk(t, f, rootNode, "", all)
	if _, ok := all["/ids/"+img.desc.ID+"/manifest.json"]; !ok {
		t.Error("the image is not there")
	}
}

func TestListingCostsNoManifest(t *testing.T) {
	loads := 0
	var images []imgsrc.Listed
	for i := range 10 {
		img := makeImage(t, fmt.Sprint(i))
		img.loads = &loads
		images = append(images, named(img, fmt.Sprintf("localhost/i:%d", i)))
	}
	f, _, _ := newTree(t, images...)
	buf := make([]byte, 1<<20)
	for _, dir := range []node{idsNode, imagesNode} {
		list := fuse.NewDirEntryList(buf, 0)
		in := &fuse.ReadIn{}
		in.NodeId = uint64(dir)
		if s := f.ReadDirPlus(nil, in, list); s != fuse.OK {
			t.Fatal(s)
		}
	}
	if loads != 0 {
		t.Errorf("listing read %d manifests", loads)
	}
}

func TestChangesShow(t *testing.T) {
	a, b := makeImage(t, "a"), makeImage(t, "b")
	f, src, _ := newTree(t, named(a, "localhost/x:1"))
	ctx := t.Context()
	stat := func(n node) attr {
		t.Helper()
		got, err := f.view(n).attr(ctx, n, false)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	tags := f.image(1).node(viewImage, rowByName["tags"].id)
	dirA := f.image(1).node(viewImage, 0)
	ids, images, tagsA, listA := stat(idsNode), stat(imagesNode), stat(tags), stat(dirA)
	if !ids.mtime.Equal(listedAt) || !images.mtime.Equal(listedAt) || !tagsA.mtime.Equal(listedAt) || !listA.mtime.Equal(createdAt) {
		t.Errorf("times at first: %v %v %v %v", ids.mtime, images.mtime, tagsA.mtime, listA.mtime)
	}

	src.set(named(a, "localhost/x:1"), named(b, "localhost/y:1"))
	if now := stat(idsNode); !now.mtime.After(ids.mtime) {
		t.Error("a new image did not move ids/")
	}
	if now := stat(imagesNode); !now.mtime.Equal(images.mtime) {
		t.Error("a new name in localhost/ moved images/")
	}
	if now := stat(tags); now != tagsA {
		t.Error("another image's name moved tags")
	}
	linkOf := func(name string) node {
		t.Helper()
		local, err := f.view(imagesNode).lookup(ctx, imagesNode, "localhost")
		if err != nil {
			t.Fatal(err)
		}
		hit, err := f.view(local.node).lookup(ctx, local.node, name)
		if err != nil {
			t.Fatal(err)
		}
		return hit.node
	}
	was := linkOf("x:1")

	src.set(named(a), named(b, "localhost/y:1", "localhost/x:1"))
	if now := stat(tags); !now.mtime.After(tagsA.mtime) || now.size != 0 {
		t.Errorf("tags after the name went: %+v", now)
	}
	if now := stat(dirA); !now.mtime.After(listA.mtime) {
		t.Error("the file names went and the directory's time did not move")
	}
	if is := linkOf("x:1"); is == was {
		t.Error("a name that moved to another image is the same node")
	}
	if g := told(f); !slices.Contains(g, goneEntry{dir: f.spaces[spaceImages].dirNode("localhost"), name: "x:1"}) || !slices.Contains(g, goneEntry{dir: dirA, name: "names"}) {
		t.Errorf("the kernel was told to forget %+v", g)
	}
	if _, err := f.view(dirA).lookup(ctx, dirA, "names"); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("names of an untagged image: %v", err)
	}

	src.set(named(b, "localhost/x:1"))
	if _, err := f.view(idsNode).lookup(ctx, idsNode, a.desc.ID); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("a removed image: %v", err)
	}
	if _, err := f.view(dirA).attr(ctx, dirA, false); !errors.Is(err, imgsrc.ErrNotFound) {
		t.Errorf("a removed image's directory: %v", err)
	}
	if g := told(f); !slices.Contains(g, goneEntry{dir: idsNode, name: a.desc.ID}) {
		t.Errorf("the kernel was told to forget %+v", g)
	}

	src.set(named(a), named(b, "localhost/x:1"))
	if hit, err := f.view(idsNode).lookup(ctx, idsNode, a.desc.ID); err != nil || hit.node == dirA {
		t.Errorf("an image that came back, perhaps with other files: %+v, %v", hit, err)
	}
}

// told is what the kernel is to forget so far.
func told(f *FS) []goneEntry { return f.gone.takeAll() }

func TestIDsByPrefix(t *testing.T) {
	a, b := makeImage(t, "a"), makeImage(t, "b")
	b.desc.ID = a.desc.ID[:10] + strings.Repeat("0", 54)
	f, _, _ := newTree(t, named(a), named(b))
	for prefix, want := range map[string]error{a.desc.ID[:2]: syscall.ENOENT, a.desc.ID[:10]: syscall.ENOENT, a.desc.ID[:12]: nil, b.desc.ID[:12]: nil, "": syscall.ENOENT, "zzz": syscall.ENOENT} {
		hit, err := f.view(idsNode).lookup(t.Context(), idsNode, prefix)
		if !errors.Is(err, want) || err == nil && hit.keep != keepNot {
			t.Errorf("ids/%s: %+v, %v; want %v", prefix, hit, err, want)
		}
		if err != nil {
			continue
		}
		// A link, for one directory has one path.
		target, err := f.view(hit.node).readlink(t.Context(), hit.node)
		if attr, _ := f.view(hit.node).attr(t.Context(), hit.node, false); err != nil || !strings.HasPrefix(string(target), prefix) || attr.mode&syscall.S_IFMT != syscall.S_IFLNK {
			t.Errorf("ids/%s leads to %q, %v", prefix, target, err)
		}
	}
}

// Two manifests over one config share a directory; a first manifest that changes makes another image of it.
func TestManifestsShareAConfig(t *testing.T) {
	a, b := makeImage(t, "a"), makeImage(t, "a")
	b.manifest = append(b.manifest, '\n')
	b.desc.Digest, b.desc.Size = digest.FromBytes(b.manifest), int64(len(b.manifest))
	f, src, _ := newTree(t, named(a, "localhost/x:1"), named(b, "localhost/x:2"))
	all := map[string]file{}
	walk(t, f, rootNode, "", all)
	dir := "/ids/" + a.desc.ID
	if got := all[dir+"/manifest.json"].text; got != string(a.manifest) {
		t.Errorf("manifest.json: %q", got)
	}
	if got := all[dir+"/manifest-sha256-"+b.desc.Digest.Encoded()+".json"].text; got != string(b.manifest) {
		t.Errorf("the other manifest: %q", got)
	}
	if got := all[dir+"/tags"].text; got != "localhost/x:1\nlocalhost/x:2\n" {
		t.Errorf("tags: %q", got)
	}
	src.set(named(b, "localhost/x:2"))
	after := map[string]file{}
	f.refresh(t.Context())
	walk(t, f, rootNode, "", after)
	if got := after[dir+"/manifest.json"]; got.text != string(b.manifest) || got.node == all[dir+"/manifest.json"].node {
		t.Errorf("manifest.json after the first manifest went: %q, node %x", got.text, got.node)
	}
}

// What is damaged fails alone.
func TestDamage(t *testing.T) { synctest.Test(t, testDamage) }

func testDamage(t *testing.T) {
	img, good := makeImage(t, "a", "x"), makeImage(t, "good")
	img.broken = fmt.Errorf("reading config %s: %w", img.desc.Config, imgsrc.ErrDamaged)
	f, _, _ := newTree(t, named(img, "localhost/bad:1"), named(good, "localhost/good:1"))
	n := f.state.Load().byID[img.desc.ID].node(viewImage, 0)
	var names []string
	if err := f.view(n).list(t.Context(), n, 0, func(e dirent) bool { names = append(names, e.name); return true }); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]error{"manifest.json": nil, "digest": nil, "tags": nil, "config.json": imgsrc.ErrDamaged, "config.oci.json": imgsrc.ErrDamaged} {
		if !slices.Contains(names, name) {
			t.Errorf("%s is not listed among %q", name, names)
			continue
		}
		hit, err := f.view(n).lookup(t.Context(), n, name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if _, err := f.view(hit.node).read(t.Context(), hit.node, make([]byte, 10), 0); !errors.Is(err, want) {
			t.Errorf("reading %s: %v, want %v", name, err, want)
		}
	}
	for _, name := range []string{"author", "user", "labels.json", "history"} {
		if slices.Contains(names, name) {
			t.Errorf("%s is listed, although nobody can know whether the image has it", name)
		}
	}
	all := map[string]file{}
	walk(t, f, f.state.Load().byID[good.desc.ID].node(viewImage, 0), "", all)
	if all["/author"].text != "good\n" {
		t.Error("the other image cannot be read")
	}
	img.broken = nil
	time.Sleep(damagedKept + 1)
	hit, _ := f.view(n).lookup(t.Context(), n, "config.json")
	if _, err := f.view(hit.node).read(t.Context(), hit.node, make([]byte, 10), 0); err != nil {
		t.Errorf("after the repair: %v", err)
	}
}

func TestWritesElsewhere(t *testing.T) {
	f, _, ops := newTree(t, named(makeImage(t, "a"), "localhost/x:1"))
	at := func(name string) uint64 { return uint64(f.image(1).node(viewImage, rowByName[name].id)) }
	write := func(n uint64, uid uint32, flags uint32) fuse.Status {
		in := &fuse.WriteIn{WriteFlags: flags}
		in.NodeId, in.Uid = n, uid
		_, s := f.Write(nil, in, []byte("x\n"))
		return s
	}
	setattr := func(n uint64, uid, valid uint32) fuse.Status {
		in := &fuse.SetAttrIn{}
		in.NodeId, in.Caller.Uid, in.Valid = n, uid, valid
		return f.SetAttr(nil, in, &fuse.AttrOut{})
	}
	for what, got := range map[string][2]fuse.Status{
		"write to manifest.json":    {write(at("manifest.json"), 0, 0), fuse.EROFS},
		"write to the root":         {write(1, 0, 0), fuse.EROFS},
		"write by another user":     {write(at("tags"), 7, 0), fuse.EACCES},
		"write from a mapping":      {write(at("tags"), 0, writeFromCache), fuse.EIO},
		"truncate tags":             {setattr(at("tags"), 0, fuse.FATTR_SIZE|fuse.FATTR_MTIME), fuse.OK},
		"truncate tags of another":  {setattr(at("tags"), 7, fuse.FATTR_SIZE), fuse.EACCES},
		"truncate manifest.json":    {setattr(at("manifest.json"), 0, fuse.FATTR_SIZE), fuse.EROFS},
		"chmod tags":                {setattr(at("tags"), 0, fuse.FATTR_MODE), fuse.EPERM},
		"touch manifest.json":       {setattr(at("manifest.json"), 0, fuse.FATTR_MTIME), fuse.EPERM},
		"rm in images/":             {f.Unlink(nil, &fuse.InHeader{NodeId: uint64(imagesNode)}, "x"), fuse.EPERM},
		"rmdir in ids/":             {f.Rmdir(nil, &fuse.InHeader{NodeId: uint64(idsNode)}, "x"), fuse.EPERM},
		"rm in an image":            {f.Unlink(nil, &fuse.InHeader{NodeId: uint64(f.image(1).node(viewImage, 0))}, "id"), fuse.EROFS},
		"a node that never was":     {f.GetAttr(nil, &fuse.GetAttrIn{InHeader: fuse.InHeader{NodeId: 1 << 60}}, &fuse.AttrOut{}), fuse.ENOENT},
		"a view that never was":     {f.GetAttr(nil, &fuse.GetAttrIn{InHeader: fuse.InHeader{NodeId: uint64(makeNode(1, 9999, 0))}}, &fuse.AttrOut{}), fuse.ENOENT},
		"an entry that never was":   {f.GetAttr(nil, &fuse.GetAttrIn{InHeader: fuse.InHeader{NodeId: uint64(makeNode(1, viewLayers, maxEntry))}}, &fuse.AttrOut{}), fuse.ENOENT},
		"a name that never was":     {f.GetAttr(nil, &fuse.GetAttrIn{InHeader: fuse.InHeader{NodeId: uint64(makeNode(0, viewNames, 999))}}, &fuse.AttrOut{}), fuse.ENOENT},
		"a link that never was":     {f.GetAttr(nil, &fuse.GetAttrIn{InHeader: fuse.InHeader{NodeId: uint64(makeNode(0, viewLinks, 999))}}, &fuse.AttrOut{}), fuse.ENOENT},
		"a manifest that never was": {f.GetAttr(nil, &fuse.GetAttrIn{InHeader: fuse.InHeader{NodeId: uint64(makeNode(1, viewManifests, 5))}}, &fuse.AttrOut{}), fuse.ENOENT},
		"a label that never was":    {f.GetAttr(nil, &fuse.GetAttrIn{InHeader: fuse.InHeader{NodeId: uint64(makeNode(1, viewLabels, 50))}}, &fuse.AttrOut{}), fuse.ENOENT},
	} {
		if got[0] != got[1] {
			t.Errorf("%s: %v, want %v", what, got[0], got[1])
		}
	}
	if n := len(ops.writes); n != 0 {
		t.Errorf("%d writes were carried out", n)
	}
}

func TestErrno(t *testing.T) {
	for _, test := range []struct {
		err  error
		want syscall.Errno
	}{
		{nil, 0},
		{syscall.ENOTDIR, syscall.ENOTDIR},
		{fmt.Errorf("x: %w", imgsrc.ErrInvalid), syscall.EINVAL},
		{fmt.Errorf("x: %w: %w", imgsrc.ErrDamaged, syscall.ENOENT), syscall.EIO},
		{fmt.Errorf("x: %w", syscall.ENOSPC), syscall.ENOSPC},
		{fmt.Errorf("x: %w", syscall.ECONNREFUSED), syscall.ECONNREFUSED},
		{fmt.Errorf("x: %w", syscall.ENETUNREACH), syscall.EHOSTUNREACH},
		{fmt.Errorf("x: %w", context.DeadlineExceeded), syscall.ETIMEDOUT},
		{fmt.Errorf("x: %w", syscall.ECANCELED), syscall.ECANCELED},
		{fmt.Errorf("x: %w", context.Canceled), syscall.EINTR},
		{fmt.Errorf("x: %w", io.ErrUnexpectedEOF), syscall.EIO},
		{errors.New("x"), syscall.EIO},
	} {
		if got := errnoOf(test.err); got != test.want {
			t.Errorf("errnoOf(%v) = %v, want %v", test.err, got, test.want)
		}
	}
}

func TestNodes(t *testing.T) {
	n := makeNode(1<<24-1, 1<<16-1, maxEntry)
	if n.image() != 1<<24-1 || n.view() != 1<<16-1 || n.entry() != maxEntry {
		t.Errorf("%x: %x %x %x", uint64(n), n.image(), n.view(), n.entry())
	}
	if rootNode.image() != 0 || rootNode.view() != viewTop || rootNode.entry() != topRoot {
		t.Error("the root's node is not FUSE's")
	}
	seen := map[ino]bool{}
	for i := range 100_000 {
		n := ino(12345).nth(uint64(i))
		if n <= 1 || n == ^ino(0) || seen[n] {
			t.Fatalf("inode number %d of %d", n, i)
		}
		seen[n] = true
	}
}

func TestOwner(t *testing.T) {
	f, _, _ := newTree(t, named(makeImage(t, "a"), "localhost/x:1"))
	uid, gid, umask := uint32(7), uint32(8), uint32(0o027)
	f.owner = Owner{&uid, &gid, &umask}
	show := func(name string) (node, fuse.Attr) {
		n := f.image(1).node(viewImage, rowByName[name].id)
		out := &fuse.AttrOut{}
		if s := f.GetAttr(nil, &fuse.GetAttrIn{InHeader: fuse.InHeader{NodeId: uint64(n)}}, out); s != fuse.OK {
			t.Fatal(s)
		}
		return n, out.Attr
	}
	if _, a := show("digest"); a.Uid != uid || a.Gid != gid || a.Mode != syscall.S_IFREG|0o440 {
		t.Errorf("owner %d:%d, mode %o", a.Uid, a.Gid, a.Mode)
	}
	tags, a := show("tags")
	if a.Uid != f.uid || a.Gid != f.gid || a.Mode != syscall.S_IFREG|0o644 {
		t.Errorf("a control is %d:%d's, mode %o: only who mounted may write it", a.Uid, a.Gid, a.Mode)
	}
	in := &fuse.WriteIn{}
	in.NodeId, in.Uid = uint64(tags), uid
	if _, s := f.Write(nil, in, []byte("x\n")); s != fuse.EACCES {
		t.Errorf("a write by the owner that is shown, who did not mount: %v", s)
	}
}

// The layers of an image that is in a registry and here are read here, whichever source is named first.
func TestNearest(t *testing.T) {
	near := makeImage(t, "a", "one")
	far, close := &fakeSource{}, &fakeSource{}
	far.set(named(farImage{near, map[int]bool{}}))
	close.set(named(near))
	f := New(Options{
		Layers: layerCache(t), Catalog: imgsrc.NewCatalog(slog.New(slog.DiscardHandler), far, close), Ops: &fakeOps{},
		Log: slog.New(slog.DiscardHandler),
	})
	t.Cleanup(f.OnUnmount)
	f.refresh(t.Context())
	if img := f.image(1); !img.isLocal(0) {
		t.Error("what is here would be fetched")
	}
	close.set()
	f.refresh(t.Context())
	hit, err := f.view(idsNode).lookup(t.Context(), idsNode, near.desc.ID)
	if err != nil || f.image(hit.node.image()).isLocal(0) {
		t.Errorf("it is here no more: %v", err)
	}
}

// An image that another source has now is another to the kernel: the numbers of its files may be others.
func TestImageElsewhere(t *testing.T) {
	img := makeImage(t, "a")
	first, second := &fakeSource{}, &fakeSource{}
	first.set(named(img))
	second.set(named(img))
	f := New(Options{
		Layers: layerCache(t), Catalog: imgsrc.NewCatalog(slog.New(slog.DiscardHandler), first, second), Ops: &fakeOps{},
		Log: slog.New(slog.DiscardHandler),
	})
	t.Cleanup(f.OnUnmount)
	dir := func() node {
		t.Helper()
		hit, err := f.view(idsNode).lookup(t.Context(), idsNode, img.desc.ID)
		if err != nil {
			t.Fatal(err)
		}
		return hit.node
	}
	was := dir()
	first.set()
	is := dir()
	if is == was {
		t.Error("the nodes stayed")
	}
	if !slices.Contains(told(f), goneEntry{dir: idsNode, name: img.desc.ID}) {
		t.Error("the kernel was not told")
	}
	if _, err := f.view(was).attr(t.Context(), was, false); !errors.Is(err, imgsrc.ErrNotFound) {
		t.Errorf("the old directory: %v", err)
	}
	if f.renew(f.image(is.image())); dir() == is {
		t.Error("the nodes stayed although their numbers have changed")
	}
}

// A change shows although the image says that it will be made tomorrow.
func TestFutureImage(t *testing.T) {
	img := makeImage(t, "a")
	img.config = bytes.Replace(img.config, []byte(`"created":"2`), []byte(`"created":"9`), 1)
	if !bytes.Contains(img.config, []byte(`"created":"9`)) {
		t.Fatalf("%s", img.config)
	}
	f, src, _ := newTree(t, named(img, "localhost/x:1"))
	dir := f.image(1).node(viewImage, 0)
	stat := func() attr {
		t.Helper()
		a, err := f.view(dir).attr(t.Context(), dir, false)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	was := stat()
	src.set(named(img))
	if is := stat(); is.mtime.Equal(was.mtime) {
		t.Errorf("the listing changed and its time is %v as before", is.mtime)
	}
}

// farImage is an image in a registry.
type farImage struct {
	*fakeImage
	local map[int]bool
}

func (i farImage) Local(n int) bool { return i.local[n] }

func (farImage) Lacks() (int64, bool) { return 0, false }

// What takes a layer's bytes is not listed before they are here, and found by its name all the same.
func TestRemoteImage(t *testing.T) {
	far := farImage{makeImage(t, "a", "one", "two"), map[int]bool{}}
	f, _, _ := newTree(t, named(far, "localhost/x:1"))
	img := f.image(1)
	dir, layer := img.node(viewImage, 0), img.node(viewLayers, layerEntry(0, 0))
	names := func(n node) string {
		t.Helper()
		var all []string
		if err := f.view(n).list(t.Context(), n, 0, func(d dirent) bool { all = append(all, d.name); return true }); err != nil {
			t.Fatal(err)
		}
		return " " + strings.Join(all, " ") + " "
	}
	stat := func(n node) attr {
		t.Helper()
		a, err := f.view(n).attr(t.Context(), n, false)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	wasDir, wasLayer := stat(dir), stat(layer)
	if !wasLayer.live {
		t.Error("the kernel may keep a listing that will grow")
	}
	for _, name := range []string{"rootfs", "diff", "diff.tar", "changes"} {
		if strings.Contains(names(dir)+names(layer), " "+name+" ") {
			t.Errorf("%s is listed", name)
		}
	}
	for name, at := range map[string]node{"rootfs": dir, "diff": layer, "diff.tar": layer, "changes": layer} {
		if _, err := f.view(at).lookup(t.Context(), at, name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	far.local[0] = true
	if is := stat(layer); is.mtime.Equal(wasLayer.mtime) || !strings.Contains(names(layer), " diff.tar ") {
		t.Errorf("a layer has come: %v, %s", is.mtime, names(layer))
	}
	if strings.Contains(names(dir), " rootfs ") {
		t.Error("rootfs is listed when half of it is here")
	}
	far.local[1] = true
	if is := stat(dir); is.mtime.Equal(wasDir.mtime) || !strings.Contains(names(dir), " rootfs ") {
		t.Errorf("all layers have come: %v, %s", is.mtime, names(dir))
	}
}

// fakeRemotes has images to be followed.
type fakeRemotes struct {
	src   *fakeSource
	has   map[string]imgsrc.Listed
	asked []string
}

func (r *fakeRemotes) Follow(_ context.Context, ref string) (string, error) {
	r.asked = append(r.asked, ref)
	img, ok := r.has[ref]
	if !ok {
		return "", imgsrc.ErrNotFound
	}
	img.RemoteNames = []string{ref}
	r.src.set(img)
	return img.Desc().ID, nil
}

// Below registry/ whatever can be a place is a directory, and whatever can be a reference is asked for.
func TestRegistry(t *testing.T) {
	img := makeImage(t, "a")
	f, src, _ := newTree(t)
	remotes := &fakeRemotes{src: src, has: map[string]imgsrc.Listed{"quay.io/team/app:1": {Image: img}}}
	f.remotes = remotes
	walk := func(path ...string) (node, error) {
		n := registryNode
		for _, name := range path {
			hit, err := f.view(n).lookup(t.Context(), n, name)
			if err != nil {
				return 0, err
			}
			n = hit.node
		}
		return n, nil
	}
	names := func(n node) (all []string) {
		t.Helper()
		if err := f.view(n).list(t.Context(), n, 0, func(d dirent) bool { all = append(all, d.name); return true }); err != nil {
			t.Fatal(err)
		}
		return all
	}
	for _, path := range [][]string{{".git"}, {"nginx"}, {"nginx:1.27"}, {"quay.io", "UPPER"}, {"quay.io", ".git", "a:1"}} {
		if _, err := walk(path...); !errors.Is(err, syscall.ENOENT) {
			t.Errorf("%q: %v", path, err)
		}
	}
	team, err := walk("quay.io", "team")
	if err != nil || len(remotes.asked) > 0 {
		t.Fatalf("a directory: %v; asked %q", err, remotes.asked)
	}
	if got := names(team); len(got) > 0 {
		t.Errorf("nothing is known there, and listed is %q", got)
	}
	if _, err := walk("quay.io", "team", "app:2"); !errors.Is(err, imgsrc.ErrNotFound) {
		t.Errorf("a tag that is not there: %v", err)
	}
	n, err := walk("quay.io", "team", "app:1")
	if err != nil {
		t.Fatal(err)
	}
	target, err := f.view(n).readlink(t.Context(), n)
	if err != nil || string(target) != "../../../ids/"+img.desc.ID {
		t.Errorf("the link leads to %q, %v", target, err)
	}
	if hit, err := f.view(idsNode).lookup(t.Context(), idsNode, img.desc.ID); err != nil || hit.node == 0 {
		t.Errorf("the image is not in ids/: %v", err)
	}
	asked := len(remotes.asked)
	if got := names(team); !slices.Equal(got, []string{"app:1"}) || !slices.Equal(names(registryNode), []string{"quay.io"}) || len(remotes.asked) != asked {
		t.Errorf("listed is %q, asked %q", got, remotes.asked)
	}
	if _, err := walk("quay.io", "team", "app:1"); err != nil || len(remotes.asked) != asked {
		t.Errorf("what was followed is asked for again: %v", err)
	}
	if got := names(imagesNode); len(got) > 0 {
		t.Errorf("images/ has %q", got)
	}
}

// What is known of an image whose config was damaged is known anew when that is repaired.
func TestRepairedInfo(t *testing.T) {
	img := makeImage(t, "a")
	sound := img.config
	img.config = []byte("[]")
	f, _, _ := newTree(t, named(img))
	info := func() string {
		t.Helper()
		n := f.image(1).node(viewImage, rowByName["info.json"].id)
		res, err := f.view(n).read(t.Context(), n, make([]byte, 1<<16), 0)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := res.Bytes(nil)
		return string(b)
	}
	if !strings.Contains(info(), `"damaged"`) {
		t.Fatalf("nothing is damaged: %s", info())
	}
	img.config = sound
	f.rendered = newRenderedCache(renderedBytes) // as a second later
	if strings.Contains(info(), `"damaged"`) {
		t.Errorf("it is still damaged: %s", info())
	}
}
