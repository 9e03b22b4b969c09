package fs

import (
	"strings"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
)

func TestUnlistedNames(t *testing.T) {
	web, other, tool := makeImage(t, "web"), makeImage(t, "other"), makeImage(t, "tool")
	f, _, _ := newTree(t,
		named(web, "localhost/web:1", "docker.io/library/nginx:latest"),
		named(other, "quay.io/team/web:1", "quay.io/team/app:2", "docker.io/team/tool:latest"),
		named(tool, "ghcr.io/x/tool:latest", "ghcr.io/x/y/tool:3"))
	d := web.desc.Digest.String()
	for path, want := range map[string]string{
		"web:1":                   web.desc.ID, // localhost comes first
		"nginx":                   web.desc.ID,
		"nginx:latest":            web.desc.ID,
		"library/nginx":           web.desc.ID,
		"app:2":                   other.desc.ID,
		"team/app:2":              other.desc.ID,
		"team/tool":               other.desc.ID,
		"tool:3":                  tool.desc.ID,
		"tool":                    "", // two images
		"app":                     "",
		"pp:2":                    "",
		"web:2":                   "",
		".git":                    "",
		"web@" + d:                web.desc.ID,
		"localhost/web@" + d:      web.desc.ID,
		"quay.io/team/web@" + d:   "", // another image's digest
		"web@sha256:0":            "",
		"docker.io/library/nginx": web.desc.ID,
	} {
		if id, _, ok := f.named(f.state.Load().snap, path); id != want && ok || ok != (want != "") {
			t.Errorf("images/%s: %.12s, %v; want %.12s", path, id, ok, want)
		}
	}
	// The beginning of a short name is a directory that nobody lists.
	dir, err := f.view(imagesNode).lookup(t.Context(), imagesNode, "team")
	if err != nil || dir.keep != keepNot {
		t.Fatalf("images/team: %+v, %v", dir, err)
	}
	if hit, err := f.view(dir.node).lookup(t.Context(), dir.node, "app:2"); err != nil || hit.node.view() != viewLinks {
		t.Errorf("images/team/app:2: %+v, %v", hit, err)
	}
	if _, err := f.view(imagesNode).lookup(t.Context(), imagesNode, "tea"); err == nil {
		t.Error("images/tea is there")
	}
	hit, err := f.view(imagesNode).lookup(t.Context(), imagesNode, "nginx")
	if err != nil || hit.keep != keepNot {
		t.Fatalf("images/nginx: %+v, %v", hit, err)
	}
	target, err := f.view(hit.node).readlink(t.Context(), hit.node)
	if err != nil || string(target) != "../ids/"+web.desc.ID {
		t.Errorf("images/nginx is a link to %q, %v", target, err)
	}
}

// A layout's name may begin as another one's repository does.
func TestUnlistedLayoutNames(t *testing.T) {
	plain, tagged, deep, full := makeImage(t, "a"), makeImage(t, "a/b"), makeImage(t, "a/b:c"), makeImage(t, "full")
	f, _, _ := newTree(t,
		named(plain, "a"), named(tagged, "x/b"), named(deep, "x/b:c", "only/here:1"), named(full, "localhost/a:latest", "quay.io/x/b:d", "h.io/a/b:c"))
	for path, want := range map[string]*fakeImage{
		"a": plain, "x/b:c": deep, "x/b:d": full, "only/here:1": deep, "x%2Fb": tagged, "x%2Fb:c": deep, "only%2Fhere:1": deep,
		"h.io/a/b:c": full, "localhost/a:latest": full, "localhost/a": full,
	} {
		n := imagesNode
		for elem := range strings.SplitSeq(path, "/") {
			hit, err := f.view(n).lookup(t.Context(), n, elem)
			if err != nil {
				t.Errorf("images/%s: %s: %v", path, elem, err)
				break
			}
			n = hit.node
		}
		if target, err := f.view(n).readlink(t.Context(), n); err != nil || !strings.HasSuffix(string(target), "/ids/"+want.desc.ID) {
			t.Errorf("images/%s leads to %q, %v", path, target, err)
		}
	}
}

// A name that is too long for a file is told from one that is not there; an image's name may be that long.
func TestLongNames(t *testing.T) {
	img := makeImage(t, "a", "one")
	repo := "localhost/" + strings.Repeat("r", 200)
	f, _, _ := newTree(t, named(img, repo+":"+strings.Repeat("t", 100)))
	look := func(dir node, name string) (fuse.EntryOut, fuse.Status) {
		var out fuse.EntryOut
		s := f.Lookup(nil, &fuse.InHeader{NodeId: uint64(dir)}, name, &out)
		return out, s
	}
	long := strings.Repeat("x", 256)
	at := f.state.Load().byID[img.desc.ID]
	for _, dir := range []node{rootNode, idsNode, at.node(viewImage, 0), at.node(viewRootfs, 0), at.node(viewLayers, 0)} {
		if _, s := look(dir, long); s != fuse.Status(syscall.ENAMETOOLONG) {
			t.Errorf("256 bytes in directory %x: %v", uint64(dir), s)
		}
		if _, s := look(dir, long[1:]); s != fuse.ENOENT {
			t.Errorf("255 bytes in directory %x: %v", uint64(dir), s)
		}
	}
	if _, s := look(imagesNode, long); s != fuse.ENOENT {
		t.Errorf("images/: %v", s)
	}
	localhost, s := look(imagesNode, "localhost")
	if s != fuse.OK {
		t.Fatal(s)
	}
	if _, s := look(node(localhost.NodeId), repo[len("localhost/"):]+":"+strings.Repeat("t", 100)); s != fuse.OK {
		t.Errorf("an image's long name: %v", s)
	}
}
