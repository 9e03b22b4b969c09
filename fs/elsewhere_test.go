package fs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/imgfs/imgfs/imgsrc"
)

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

// brokenManifest is an image whose manifest cannot be read.
type brokenManifest struct{ *fakeImage }

func (brokenManifest) Manifest(context.Context) ([]byte, error) { return nil, syscall.ECONNREFUSED }

func (brokenManifest) Config(context.Context) ([]byte, error) { return nil, syscall.ECONNREFUSED }

// What cannot be read is perhaps an index, unless its source says what it is.
func TestPerhapsIndex(t *testing.T) {
	for mediaType, want := range map[string]struct {
		index, config error
		listed        []string
	}{
		"":                        {syscall.ECONNREFUSED, syscall.ECONNREFUSED, []string{"manifest.json", "config.json"}},
		v1.MediaTypeImageManifest: {syscall.ENOENT, syscall.ECONNREFUSED, []string{"manifest.json", "config.json"}},
		v1.MediaTypeImageIndex:    {syscall.ECONNREFUSED, syscall.ECONNREFUSED, []string{"index.json"}},
	} {
		img := makeImage(t, "a")
		img.desc.MediaType, img.desc.Config = mediaType, ""
		f, _, _ := newTree(t, named(brokenManifest{img}, "localhost/x:1"))
		for name, want := range map[string]error{"index.json": want.index, "config.json": want.config, "user": syscall.ECONNREFUSED} {
			if _, _, err := lookUp(t, f, img.desc.ID, name); !errors.Is(err, want) {
				t.Errorf("of type %q: %s: %v, want %v", mediaType, name, err, want)
			}
		}
		var listed []string
		dir := f.image(1).node(viewImage, 0)
		err := f.view(dir).list(t.Context(), dir, 0, func(d dirent) bool {
			if slices.Contains([]string{"index.json", "manifest.json", "config.json"}, d.name) {
				listed = append(listed, d.name)
			}
			return true
		})
		if err != nil || !slices.Equal(listed, want.listed) {
			t.Errorf("of type %q: listed are %q, %v", mediaType, listed, err)
		}
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
