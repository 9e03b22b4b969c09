package storage

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/imgfs/imgfs/imgsrc"
)

func TestRemove(t *testing.T) {
	for _, driver := range drivers {
		t.Run(driver, func(t *testing.T) {
			r, s, a, b := tagged(t, driver)
			ctx := t.Context()
			mounts := mountsBelow(t, r.root)
			remove := func(d imgsrc.Desc, names ...string) error { return s.Remove(ctx, []imgsrc.Desc{d}, names) }

			ctr := r.do(t, "buildah", "from", "--pull-never", "localhost/a")
			err := remove(a, "localhost/a:latest")
			id := r.do(t, "buildah", "inspect", "--type", "container", "--format", "{{.ContainerID}}", ctr)
			if !errors.Is(err, imgsrc.ErrInUse) || !strings.Contains(err.Error(), id) {
				t.Errorf("used by %s: %v", id, err)
			}
			r.do(t, "buildah", "rm", ctr)

			r.do(t, "podman", "tag", "localhost/a", "localhost/new")
			if err := remove(a, "localhost/a:latest"); !errors.Is(err, imgsrc.ErrInUse) || !strings.Contains(err.Error(), "localhost/new:latest") {
				t.Errorf("it has got another name: %v", err)
			}
			stamp := s.Stamp()
			if err := remove(a, "localhost/a:latest", "localhost/new:latest"); err != nil {
				t.Fatal(err)
			}
			if s.Stamp() == stamp {
				t.Error("the stamp has not moved")
			}
			if ids := r.do(t, "podman", "images", "-aq", "--no-trunc"); !strings.HasSuffix(ids, b.ID) || strings.Contains(ids, a.ID) {
				t.Errorf("podman has %s", ids)
			}
			if err := remove(a); !errors.Is(err, imgsrc.ErrNotFound) {
				t.Errorf("again: %v", err)
			}
			if err := s.Remove(ctx, nil, nil); !errors.Is(err, imgsrc.ErrNotFound) {
				t.Errorf("nothing: %v", err)
			}
			if err := remove(b, "localhost/b:latest"); err != nil {
				t.Fatal(err)
			}
			if now := mountsBelow(t, r.root); now != mounts {
				t.Errorf("mounts before %q, after %q", mounts, now)
			}
			if left := layerDirs(t, r); len(left) > 0 {
				t.Errorf("left of the layers: %q", left)
			}
		})
	}
}

// layerDirs are the directories of layers in a store.
func layerDirs(t *testing.T, r real) []string {
	t.Helper()
	dir := filepath.Join(r.root, r.driver)
	if r.driver == "vfs" {
		dir = filepath.Join(dir, "dir")
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, e := range entries {
		if len(e.Name()) == 64 {
			ids = append(ids, e.Name())
		}
	}
	return ids
}

// What others were made from goes; they keep their layers, and can be read.
func TestRemoveParent(t *testing.T) {
	r := newReal(t, "overlay")
	src := t.TempDir()
	write(t, []byte("one"), src, "1", "one")
	write(t, []byte("two"), src, "2", "two")
	r.commit(t, "localhost/child", "oci", filepath.Join(src, "1"), filepath.Join(src, "2"))
	s := r.source(t)
	parent, child := find(t, s, "localhost/child-0:latest"), find(t, s, "localhost/child:latest")
	if err := s.Remove(t.Context(), []imgsrc.Desc{parent.Desc()}, parent.Names); err != nil {
		t.Fatal(err)
	}
	if got := r.inspect(t, "localhost/child"); got.ID != child.Desc().ID || len(layerDirs(t, r)) != 2 {
		t.Errorf("podman has %v, with the layers %q", got, layerDirs(t, r))
	}
	files, err := child.Files(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := files.Close(); err != nil {
		t.Error(err)
	}
}

func TestRemoveFromAdditionalStore(t *testing.T) {
	_, other, a, _ := tagged(t, "overlay")
	mine := newReal(t, "overlay")
	mine.do(t, "podman", "images")
	s := mine.source(t)
	s.stores = slices.Concat(s.stores, other.stores)
	if err := s.Remove(t.Context(), []imgsrc.Desc{a}, []string{"localhost/a:latest"}); !errors.Is(err, imgsrc.ErrReadOnly) {
		t.Errorf("%v, want ErrReadOnly", err)
	}
	find(t, other, "localhost/a:latest")
}
