package fs

import (
	"errors"
	"strings"
	"testing"

	"github.com/imgfs/imgfs/imgsrc"
)

func TestTargets(t *testing.T) {
	a, b := makeImage(t, "a", "layer"), makeImage(t, "b")
	f, _, _ := newTree(t, named(a, "localhost/web:1", "quay.io/x/y:2"), named(b, "odd/name"))
	f.mountpoint = "/mnt/images"
	id := a.desc.ID
	for _, test := range []struct {
		dir, target string
		want        string // empty: an error
		err         error
	}{
		{dir: "images/localhost", target: "../../ids/" + id, want: id},
		{dir: "images", target: "../ids/" + id, want: id},
		{dir: "images", target: "../ids/" + id + "/", want: id},
		{dir: "images", target: ".././ids//" + id + "/.", want: id},
		{dir: "images/localhost", target: "web:1", want: id},
		{dir: "images/localhost", target: "web:1/../web:1", err: imgsrc.ErrNotFound}, // as the kernel has it: that is in ids/
		{dir: "images/localhost", target: "web:1/../../images/quay.io/x/y:2", want: id},
		{dir: "images/localhost", target: "../quay.io/x/y:2", want: id},
		{dir: "images/localhost", target: "../odd%2Fname", want: b.desc.ID},
		{dir: "images", target: "web:1", want: id},
		{dir: "images/localhost", target: "../../ids/" + id[:8], want: id},
		{dir: "images/localhost", target: "/mnt/images/ids/" + id, want: id},
		{dir: "images/localhost", target: "/mnt/images/images/localhost/web:1", want: id},
		{dir: "images/localhost", target: "//mnt/../mnt/./images/images/localhost/web:1", want: id},
		{dir: "images/localhost", target: "../../../images/ids/" + id[:8], want: id}, // out of the mount and in again
		{dir: "images/localhost", target: "../../../../../../../mnt/images/ids/" + id[:8], want: id},
		{dir: "images/localhost", target: "images/localhost/web:1", want: id}, // from the mountpoint
		{dir: "images/localhost", target: "ids/" + id[:8], want: id},
		{dir: "images", target: "./images/quay.io/x/y:2", want: id},
		{dir: "images", target: "localhost/web:1", want: id},
		{dir: "images/localhost", target: "../images/images/localhost/web:1", want: id}, // /mnt/images is called images
		{dir: "images/localhost", target: "images/localhost", err: imgsrc.ErrInvalid},
		{dir: "images/localhost", target: "images/localhost/none:1", err: imgsrc.ErrNotFound},
		{dir: "images/localhost", target: id, want: id},
		{dir: "images/localhost", target: id[:12], want: id},
		{dir: "images/localhost", target: id[:8], err: imgsrc.ErrNotFound},
		{dir: "images/localhost", target: "ids/" + id, want: id},
		{dir: "images/localhost", target: "/elsewhere/" + id, want: id},
		{dir: "images/localhost", target: "/mnt/imagesx/ids/" + id, want: id},
		{dir: "images/localhost", target: "/mnt/imagesx/ids/" + id[:8], err: imgsrc.ErrNotFound},
		{dir: "images/localhost", target: "/mnt/other/images/localhost/web:1", err: imgsrc.ErrNotFound},
		{dir: "images/localhost", target: "", err: imgsrc.ErrInvalid},
		{dir: "images/localhost", target: ".", err: imgsrc.ErrInvalid},
		{dir: "images/localhost", target: "..", err: imgsrc.ErrInvalid},
		{dir: "images/localhost", target: "../..", err: imgsrc.ErrInvalid},
		{dir: "images/localhost", target: "../../..", err: imgsrc.ErrNotFound},
		{dir: "images/localhost", target: "/", err: imgsrc.ErrNotFound},
		{dir: "images/localhost", target: "/mnt/images", err: imgsrc.ErrInvalid},
		{dir: "images/localhost", target: "../../README", err: imgsrc.ErrInvalid},
		{dir: "images/localhost", target: "nothing:1", err: imgsrc.ErrNotFound},
		{dir: "images/localhost", target: "web:1/rootfs", err: imgsrc.ErrInvalid},
		{dir: "images/localhost", target: "web:1/layers/00/diff/file", err: imgsrc.ErrInvalid},
		{dir: "images/localhost", target: "web:1/manifest.json", err: imgsrc.ErrInvalid},
		{dir: "images/localhost", target: "\x00", err: imgsrc.ErrNotFound},
		{dir: "images/localhost", target: strings.Repeat("../ids/", 500), err: imgsrc.ErrNotFound},
	} {
		got, err := f.imageOf(t.Context(), test.dir, test.target)
		if got != test.want || test.err != nil && !errors.Is(err, test.err) || test.err == nil && err != nil {
			t.Errorf("%s -> %q: %q, %v; want %q, %v", test.dir, test.target, got, err, test.want, test.err)
		}
	}
}

func FuzzTargets(f *testing.F) {
	a := makeImage(f, "a")
	tree, _, _ := newTree(f, named(a, "localhost/web:1"))
	tree.mountpoint = "/mnt"
	f.Add("../../ids/" + a.desc.ID)
	f.Add("/mnt/images/localhost/web:1")
	f.Add("web:1/../..//./x")
	f.Fuzz(func(t *testing.T, target string) {
		if id, err := tree.imageOf(t.Context(), "images/localhost", target); err == nil && id != a.desc.ID {
			t.Errorf("%q is %q", target, id)
		}
	})
}
