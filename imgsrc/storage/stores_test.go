package storage

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.podman.io/storage/types"
	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/sourcetest"
	"github.com/imgfs/imgfs/test/needs"
)

func TestReadOnlyFileSystem(t *testing.T) {
	r := newReal(t, "overlay")
	src := t.TempDir()
	write(t, []byte("x"), src, "x")
	r.commit(t, "localhost/x", "oci", src)
	at := t.TempDir()
	if err := unix.Mount(r.root, at, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, 0); err != nil {
			t.Error(err)
		}
	})
	if err := unix.Mount("", at, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	s := real{at, r.run, "overlay"}.source(t)
	img := find(t, s, "localhost/x:latest")
	diff, err := img.Diff(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sourcetest.ReadAll(t.Context(), diff); err != nil {
		t.Error(err)
	}
	if err := s.Tag(t.Context(), img.Desc(), []string{"localhost/y:latest"}, nil); !errors.Is(err, imgsrc.ErrReadOnly) {
		t.Errorf("tagging on a read-only file system: %v", err)
	}
}

func TestAdditionalStore(t *testing.T) {
	base, top := newReal(t, "overlay"), newReal(t, "overlay")
	src := t.TempDir()
	write(t, []byte("base"), src, "base", "b")
	write(t, []byte("top"), src, "top", "t")
	base.commit(t, "localhost/base", "oci", filepath.Join(src, "base"))
	conf := write(t, fmt.Appendf(nil, "[storage]\ndriver = \"overlay\"\ngraphroot = %q\nrunroot = %q\n[storage.options]\nadditionalimagestores = [%q]\n",
		top.root, top.run, base.root), t.TempDir(), "storage.conf")
	t.Setenv("CONTAINERS_STORAGE_CONF", conf)
	ctr := needs.Line(t, "buildah", "from", "--pull-never", "localhost/base")
	needs.Run(t, "buildah", "copy", ctr, filepath.Join(src, "top"), "/")
	needs.Run(t, "buildah", "commit", "--rm", ctr, "localhost/top")

	// The configuration is read once for the process, so that it is given here.
	s, err := open(Options{}, types.StoreOptions{GraphRoot: top.root, RunRoot: top.run, GraphDriverName: "overlay",
		GraphDriverOptions: []string{"imagestore=" + base.root}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if s.Name() != "containers-storage:" || !slices.Equal(s.Dirs(), []string{top.root, base.root}) {
		t.Errorf("%s: %v", s.Name(), s.Dirs())
	}
	img := find(t, s, "localhost/top:latest")
	layers := strings.Fields(needs.Run(t, "podman", "image", "inspect", "--format", "{{range .RootFS.Layers}}{{.}} {{end}}", "localhost/top"))
	if len(layers) != 2 {
		t.Fatal(layers)
	}
	for n, want := range layers {
		diff, err := img.Diff(t.Context(), n)
		if err != nil {
			t.Fatal(err)
		}
		if data, err := sourcetest.ReadAll(t.Context(), diff); err != nil || sha(data) != want {
			t.Errorf("layer %d: %d bytes, %v", n, len(data), err)
		}
	}
	below := find(t, s, "localhost/base:latest")
	before := tree(t, filepath.Join(base.root, "overlay-images"))
	if err := s.Tag(t.Context(), below.Desc(), []string{"localhost/z:latest"}, nil); err != nil {
		t.Errorf("tagging in an additional store: %v", err)
	}
	if got := find(t, s, "localhost/z:latest"); got.Desc().ID != below.Desc().ID || !slices.Contains(got.Names, "localhost/base:latest") {
		t.Errorf("%s has the names %v", got.Desc().ID, got.Names)
	}
	if err := s.Remove(t.Context(), []imgsrc.Desc{below.Desc()}, []string{"localhost/base:latest", "localhost/z:latest"}); err != nil {
		t.Errorf("removing the record of an additional store's image: %v", err)
	}
	if got := find(t, s, "localhost/base:latest"); len(got.Names) != 1 {
		t.Errorf("it is left with the names %v", got.Names)
	}
	// What has another image's name by now is that image's, also for whoever takes names away.
	if err := s.Tag(t.Context(), img.Desc(), []string{"localhost/base:latest"}, nil); err != nil {
		t.Error(err)
	}
	if got := find(t, s, "localhost/base:latest"); got.Desc().ID != img.Desc().ID {
		t.Errorf("the name leads to %s", got.Desc().ID)
	}
	if err := s.Tag(t.Context(), below.Desc(), nil, []string{"localhost/base:latest"}); !errors.Is(err, imgsrc.ErrNotFound) {
		t.Errorf("taking away a name that another image has: %v", err)
	}
	if err := s.Tag(t.Context(), below.Desc(), []string{"localhost/z:latest"}, nil); !errors.Is(err, imgsrc.ErrExists) {
		t.Errorf("tagging an image whose name another one has: %v", err)
	}
	if err := s.Tag(t.Context(), img.Desc(), nil, []string{"localhost/base:latest"}); err != nil {
		t.Error(err)
	}
	if tree(t, filepath.Join(base.root, "overlay-images")) != before {
		t.Error("a tag has written to the additional store")
	}
	if err := s.Tag(t.Context(), img.Desc(), []string{"localhost/y:latest"}, nil); err != nil {
		t.Error(err)
	}
	find(t, s, "localhost/y:latest")
	// A missing additional store leaves the rest.
	if err := os.Rename(base.root, base.root+"-gone"); err != nil {
		t.Fatal(err)
	}
	list, err := s.List(t.Context())
	if err != nil || len(list.Images) != 1 || len(list.Problems) != 1 {
		t.Errorf("%v, %v", list, err)
	}
}
