package fs

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
)

// exported finds an archive of an image and returns its attributes and its bytes.
func exported(t *testing.T, f *FS, img *image, name string) (attr, string) {
	t.Helper()
	dir := img.node(viewExport, exportDir)
	hit, err := f.view(dir).lookup(t.Context(), dir, name)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	a, err := f.view(hit.node).attr(t.Context(), hit.node, false)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	text := readAll(t, f, hit.node, a.size)
	if int64(len(text)) != a.size {
		t.Errorf("%s: %d bytes, size %d", name, len(text), a.size)
	}
	return a, text
}

func membersOf(t *testing.T, archive string) map[string]string {
	t.Helper()
	all := map[string]string{}
	r := tar.NewReader(strings.NewReader(archive))
	for {
		h, err := r.Next()
		if err == io.EOF {
			return all
		}
		b, readErr := io.ReadAll(r)
		if err := errors.Join(err, readErr); err != nil {
			t.Fatal(err)
		}
		all[h.Name] = string(b)
	}
}

func TestExport(t *testing.T) {
	fake := makeImage(t, "a", "layer one", "layer two")
	f, src, _ := newTree(t, named(fake, "localhost/x:1", "local"))
	img := f.image(1)

	var listed []string
	dir := img.node(viewExport, exportDir)
	if err := f.view(dir).list(t.Context(), dir, 0, func(d dirent) bool { listed = append(listed, d.name); return true }); err != nil || strings.Join(listed, " ") != "README" {
		t.Errorf("export/ lists %q, %v", listed, err)
	}
	if _, err := f.view(dir).lookup(t.Context(), dir, "docker.tar.gz"); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("another name: %v", err)
	}

	was, docker := exported(t, f, img, "docker.tar")
	all := membersOf(t, docker)
	var list []struct {
		Config           string
		RepoTags, Layers []string
	}
	if err := json.Unmarshal([]byte(all["manifest.json"]), &list); err != nil || fmt.Sprint(list[0].RepoTags) != "[localhost/x:1]" || all[list[0].Config] != string(fake.config) {
		t.Errorf("manifest.json: %s, %v", all["manifest.json"], err)
	}
	for n, name := range list[0].Layers {
		if all[name] != string(fake.layers[n]) {
			t.Errorf("layer %d is another", n)
		}
	}
	if !was.live || !was.mtime.Equal(listedAt) {
		t.Errorf("docker.tar is live: %v, and of %v", was.live, was.mtime)
	}

	wasOCI, oci := exported(t, f, img, "oci.tar")
	all = membersOf(t, oci)
	for n, l := range fake.layers { // the source has no blobs
		if d := digest.FromBytes(l); all["blobs/sha256/"+d.Encoded()] != string(fake.layers[n]) {
			t.Errorf("oci.tar has no layer %d", n)
		}
	}
	if !strings.Contains(all["index.json"], `"localhost/x:1"`) || strings.Count(all["index.json"], "digest") != 1 {
		t.Errorf("index.json: %s", all["index.json"])
	}

	a, rootfs := exported(t, f, img, "rootfs.tar")
	if all := membersOf(t, rootfs); len(all) != 2 || all["file"] != "layer two" {
		t.Errorf("rootfs.tar has %q", all)
	}
	if a.live || !a.mtime.Equal(createdAt) {
		t.Errorf("rootfs.tar is live: %v, and of %v", a.live, a.mtime)
	}

	// Another mount has the same bytes.
	other, _, _ := newTree(t, named(fake, "localhost/x:1", "local"))
	for name, text := range map[string]string{"docker.tar": docker, "oci.tar": oci, "rootfs.tar": rootfs} {
		if _, again := exported(t, other, other.image(1), name); again != text {
			t.Errorf("%s is another in another mount", name)
		}
	}

	// Another image comes, and nothing has changed; then a name, and all but the end stays where it is.
	src.set(named(fake, "localhost/x:1", "local"), named(makeImage(t, "b")))
	if a, again := exported(t, f, img, "docker.tar"); again != docker || !a.mtime.Equal(was.mtime) {
		t.Errorf("docker.tar is another, or of %v, after an image came", a.mtime)
	}
	src.set(named(fake, "localhost/x:1", "localhost/y:2", "local"), named(makeImage(t, "b")))
	is, renamed := exported(t, f, img, "docker.tar")
	if !is.mtime.After(was.mtime) || !strings.Contains(membersOf(t, renamed)["manifest.json"], "localhost/y:2") {
		t.Errorf("the name is not there, or the time %v as before", is.mtime)
	}
	if tail := strings.Index(docker, "manifest.json"); renamed[:tail] != docker[:tail] {
		t.Error("what lies before the names has changed")
	}
	src.set(named(fake, "localhost/z:1"), named(makeImage(t, "b")))
	if isOCI, text := exported(t, f, img, "oci.tar"); !isOCI.mtime.After(wasOCI.mtime) || !strings.Contains(text, "localhost/z:1") || strings.Contains(text, "localhost/x") {
		t.Errorf("oci.tar has the name of before, or its time %v", isOCI.mtime)
	}
}

// brokenImage is one whose layers cannot be had as they should.
type brokenImage struct {
	*fakeImage
	absent  error          // of all layers' tars
	content imgsrc.Content // likewise
}

func (i brokenImage) Diff(ctx context.Context, n int) (imgsrc.Content, error) {
	if i.absent != nil {
		return nil, i.absent
	}
	if i.content != nil {
		return i.content, nil
	}
	return i.fakeImage.Diff(ctx, n)
}

// shortContent has fewer bytes than it says.
type shortContent struct{ fakeContent }

func (c shortContent) Size(context.Context) (int64, error) { return 10000, nil }

func TestExportOfBrokenImages(t *testing.T) {
	fake := makeImage(t, "a", "one")
	look := func(img imgsrc.Image, name string) (node, error) {
		f, _, _ := newTree(t, named(img, "localhost/x:1"))
		dir := f.image(1).node(viewExport, exportDir)
		hit, err := f.view(dir).lookup(t.Context(), dir, name)
		if err == nil {
			_, err = f.view(hit.node).attr(t.Context(), hit.node, false)
		}
		if err != nil {
			return 0, err
		}
		buf := make([]byte, 1<<16)
		_, err = f.view(hit.node).read(t.Context(), hit.node, buf, 0)
		return hit.node, err
	}
	for _, test := range []struct {
		img  imgsrc.Image
		name string
		want syscall.Errno
	}{
		{brokenImage{fakeImage: fake, absent: imgsrc.ErrAbsent}, "docker.tar", syscall.ENOENT},
		{brokenImage{fakeImage: fake, absent: imgsrc.ErrAbsent}, "oci.tar", syscall.ENOENT},
		{brokenImage{fakeImage: fake, absent: imgsrc.ErrUnsupported}, "docker.tar", syscall.ENOENT},
		{brokenImage{fakeImage: fake, absent: imgsrc.ErrUnsupported}, "oci.tar", syscall.ENOENT},
		{brokenImage{fakeImage: fake, absent: imgsrc.ErrUnsupported}, "rootfs.tar", 0},
		{brokenImage{fakeImage: fake, absent: imgsrc.ErrDamaged}, "docker.tar", syscall.EIO},
		{brokenImage{fakeImage: fake, content: shortContent{fakeContent{bytes.NewReader([]byte("short"))}}}, "docker.tar", syscall.EIO},
		{brokenImage{fakeImage: fake, content: shortContent{fakeContent{bytes.NewReader([]byte("short"))}}}, "oci.tar", syscall.EIO},
		{fake, "docker.tar", 0},
	} {
		if _, err := look(test.img, test.name); errnoOf(err) != test.want {
			t.Errorf("%T: %s: %v, want %v", test.img, test.name, err, test.want)
		}
	}
}
