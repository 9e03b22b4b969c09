package storage

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.podman.io/storage/types"

	"github.com/imgfs/imgfs/imgsrc"
)

// confNone is the configuration of somebody who has none.
var confNone = types.StoreOptions{GraphRoot: "/nonexistent/graph", RunRoot: "/nonexistent/run"}

func TestOpen(t *testing.T) {
	dir := t.TempDir()
	mkdir := func(elem ...string) string {
		t.Helper()
		d := filepath.Join(append([]string{dir}, elem...)...)
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
		return d
	}
	mkdir("overlay", "overlay-images")
	mkdir("vfs", "vfs-images")
	mkdir("both", "vfs-images")
	mkdir("both", "overlay-images")
	mkdir("btrfs", "btrfs-images")
	empty := mkdir("empty")
	file := write(t, nil, dir, "file")
	inConf := func(root, driver string) types.StoreOptions {
		return types.StoreOptions{GraphRoot: filepath.Join(dir, root), RunRoot: "/run/c", GraphDriverName: driver,
			GraphDriverOptions: []string{"overlay.imagestore=/a,/b", "vfs.imagestore=/v", ".imagestore=/c", "additionalimagestore=/d", "overlay.mountopt=nodev"}}
	}
	for _, tt := range []struct {
		name   string
		o      Options
		conf   types.StoreOptions
		driver string // empty: an error
		more   int    // additional stores
		text   string // in the error, or of the name
	}{
		{"overlay", Options{GraphRoot: filepath.Join(dir, "overlay")}, confNone, "overlay", 0, "[overlay@" + dir + "/overlay+/nonexistent/run]"},
		{"vfs", Options{GraphRoot: filepath.Join(dir, "vfs"), RunRoot: "/r"}, confNone, "vfs", 0, "vfs+/r]"},
		{"both", Options{GraphRoot: filepath.Join(dir, "both")}, confNone, "overlay", 0, ""},
		{"the other", Options{GraphRoot: filepath.Join(dir, "both"), Driver: "vfs"}, confNone, "vfs", 0, ""},
		{"overlay2", Options{GraphRoot: filepath.Join(dir, "overlay"), Driver: "overlay2"}, confNone, "overlay", 0, ""},
		{"configured", Options{}, inConf("overlay", ""), "overlay", 4, "containers-storage:"},
		{"configured driver", Options{}, inConf("vfs", "vfs"), "vfs", 3, ""},
		{"as configured", Options{GraphRoot: filepath.Join(dir, "overlay")}, inConf("overlay", ""), "overlay", 4, ""},
		{"not as configured", Options{GraphRoot: filepath.Join(dir, "vfs")}, inConf("overlay", "overlay"), "vfs", 0, ""},
		{"no default store", Options{}, confNone, "", 0, "podman and buildah make it with their first image"},
		{"missing", Options{GraphRoot: dir + "/missing"}, confNone, "", 0, "no such directory"},
		{"a file", Options{GraphRoot: file}, confNone, "", 0, "not a directory"},
		{"below a file", Options{GraphRoot: file + "/x"}, confNone, "", 0, ""},
		{"not a store", Options{GraphRoot: empty}, confNone, "", 0, "not a store"},
		{"another driver", Options{GraphRoot: filepath.Join(dir, "vfs"), Driver: "overlay"}, confNone, "", 0, "made with the driver vfs"},
		{"unsupported store", Options{GraphRoot: filepath.Join(dir, "btrfs")}, confNone, "", 0, "overlay, vfs"},
		{"unsupported driver", Options{GraphRoot: filepath.Join(dir, "btrfs"), Driver: "btrfs"}, confNone, "", 0, "btrfs"},
		{"no driver", Options{GraphRoot: filepath.Join(dir, "overlay"), Driver: "../x"}, confNone, "", 0, ""},
	} {
		before := tree(t, dir)
		s, err := open(tt.o, tt.conf)
		if tt.driver == "" {
			if !errors.Is(err, imgsrc.ErrNoSource) || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("%s: %v", tt.name, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if s.driver != tt.driver || len(s.stores) != 1+tt.more || !strings.Contains(s.Name(), tt.text) {
			t.Errorf("%s: driver %s, stores %v, name %s", tt.name, s.driver, s.stores, s.Name())
		}
		list, err := s.List(t.Context())
		if err != nil || len(list.Images) != 0 || !list.ModTime.IsZero() {
			t.Errorf("%s: %v, %v", tt.name, list, err)
		}
		s.Close()
		if tree(t, dir) != before {
			t.Errorf("%s: a trace", tt.name)
		}
	}
}

// Of two drivers the one is meant whose images have changed last.
func TestOpenTwoDrivers(t *testing.T) {
	dir := t.TempDir()
	for i, d := range []string{"vfs", "overlay", "vfs"} {
		file := filepath.Join(dir, d+"-images", "images.json")
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte("[]"), 0o600),
			os.Chtimes(file, time.Time{}, time.Unix(int64(i+1), 0))); err != nil {
			t.Fatal(err)
		}
		s, err := open(Options{GraphRoot: dir}, confNone)
		if err != nil {
			t.Fatal(err)
		}
		if s.driver != d {
			t.Errorf("driver %s, want %s", s.driver, d)
		}
		s.Close()
	}
}

func TestOpenRelativePath(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "g", "vfs-images"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	s, err := open(Options{GraphRoot: "g", RunRoot: "r"}, confNone)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if want := []string{filepath.Join(dir, "g")}; !slices.Equal(s.Dirs(), want) {
		t.Errorf("%v, not %v", s.Dirs(), want)
	}
}

func TestSeparateImageStore(t *testing.T) {
	dir := t.TempDir()
	images, graph := filepath.Join(dir, "images"), filepath.Join(dir, "graph")
	for _, d := range []string{images, graph} {
		if err := os.MkdirAll(filepath.Join(d, "overlay-images"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	s, err := open(Options{}, types.StoreOptions{GraphRoot: graph, RunRoot: dir, ImageStore: images})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if !slices.Equal(s.Dirs(), []string{images, graph}) {
		t.Errorf("%v", s.Dirs())
	}
}
