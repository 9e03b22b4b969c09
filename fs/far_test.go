package fs

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/imgfs/imgfs/imgsrc"
)

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
