package fs

import (
	"testing"
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
