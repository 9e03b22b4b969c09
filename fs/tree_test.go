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
	"strings"
	"syscall"
	"testing"
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
