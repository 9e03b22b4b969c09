package mount

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// tree makes a directory with what the tests of mountpoints need, and returns its path without symlinks.
func tree(t *testing.T) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"empty", "full/sub", "source/blobs", "real/deep"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{"file", "full/.hidden"} {
		if err := os.WriteFile(filepath.Join(dir, f), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{
		"to-empty": "empty", "to-file": "file", "to-real": filepath.Join(dir, "real"), "dangling": "real/new",
		"loop-a": "loop-b", "loop-b": "loop-a", "to-source": "source", "real/up": "../source",
	} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestCheck(t *testing.T) {
	dir := tree(t)
	tests := []struct {
		mountpoint string
		path       string // as it is resolved, if it is usable
		err        error
	}{
		{"empty", "empty", nil},
		{"empty/", "empty", nil},
		{"./full/../empty", "empty", nil},
		{"missing", "missing", nil},
		{"to-empty", "empty", nil},
		{"to-real/deep", "real/deep", nil},
		{"to-real/missing", "real/missing", nil},
		{"dangling", "real/new", nil},
		{"file", "", ErrNotDirectory},
		{"to-file", "", ErrNotDirectory},
		{"file/below", "", ErrNotDirectory},
		{"full", "", ErrNotEmpty},
		{"missing/below", "", ErrNoParent},
		{"loop-a", "", unix.ELOOP},
		{"/", "", ErrForeign},
		{"/proc", "", ErrForeign},
		{"source", "", ErrOverlap},
		{"source/", "", ErrOverlap},
		{"to-source", "", ErrOverlap},
		{"source/blobs", "", ErrOverlap},
		{"source/missing", "", ErrOverlap},
		{"to-source/missing", "", ErrOverlap},
		{"real/up/blobs", "", ErrOverlap},
		{"cache", "", ErrOverlap},        // the cache is to be made in it
		{"cache/imgfs", "", ErrNoParent}, // the same place, which is not there yet
	}
	for _, test := range tests {
		name := test.mountpoint
		if !strings.HasPrefix(name, "/") {
			name = dir + "/" + name
		}
		p, err := Check(name, Dir{Path: dir + "/source", What: "the source"}, Dir{Path: dir + "/cache/imgfs", What: "the cache"})
		switch {
		case test.err != nil:
			if !errors.Is(err, test.err) {
				t.Errorf("%s: error %v, want %v", test.mountpoint, err, test.err)
			}
		case err != nil:
			t.Errorf("%s: %v", test.mountpoint, err)
		case p.Path() != filepath.Join(dir, test.path):
			t.Errorf("%s: resolved to %s", test.mountpoint, p.Path())
		}
		if err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: an error of two lines: %q", test.mountpoint, err)
		}
	}
	if _, err := os.Lstat(dir + "/missing"); err == nil {
		t.Error("Check made a directory")
	}
}

func TestCheckSourceBelowMountpoint(t *testing.T) {
	dir := tree(t)
	for _, source := range []string{dir + "/real/deep", dir + "/to-real/deep", dir + "/to-real/deep/not/there"} {
		if _, err := Check(dir+"/real", Dir{Path: source, What: "the source"}); !errors.Is(err, ErrOverlap) {
			t.Errorf("%s: error %v", source, err)
		}
	}
	if _, err := Check(dir+"/empty", Dir{Path: dir + "/empty-not", What: "the source"}); err != nil {
		t.Errorf("a source with a longer name: %v", err)
	}
}

func TestCheckRelative(t *testing.T) {
	dir := tree(t)
	t.Chdir(dir)
	for _, name := range []string{"empty", "missing"} {
		p, err := Check(name)
		if err != nil || p.Path() != dir+"/"+name {
			t.Errorf("%s: %v, error %v", name, p, err)
		}
	}
	if _, err := Check(""); err == nil {
		t.Error("an empty name is taken")
	}
}

func TestCheckForeignMount(t *testing.T) {
	needRoot(t)
	dir := tree(t)
	for _, c := range []struct {
		name, source, fsType string
		flags                uintptr
	}{
		{"empty", "tmpfs", "tmpfs", 0},
		{"real", dir + "/source", "", unix.MS_BIND},
	} {
		at := dir + "/" + c.name
		if err := unix.Mount(c.source, at, c.fsType, c.flags, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := unix.Unmount(at, 0); err != nil {
				t.Error(err)
			}
		})
		if _, err := Check(at); !errors.Is(err, ErrForeign) {
			t.Errorf("%s: error %v", c.name, err)
		}
	}
	// The source is mounted at real: what lies below real lies in the source.
	if _, err := Check(dir+"/real/blobs", Dir{Path: dir + "/source", What: "the source"}); !errors.Is(err, ErrOverlap) {
		t.Errorf("through a bind mount: error %v", err)
	}
	if err := Unmount(t.Context(), dir+"/empty", false); !errors.Is(err, ErrForeign) {
		t.Errorf("unmounting a tmpfs: error %v", err)
	}
	if err := Unmount(t.Context(), dir+"/full", false); !errors.Is(err, ErrNotMount) {
		t.Errorf("unmounting a directory: error %v", err)
	}
	if err := Unmount(t.Context(), dir+"/missing", false); !errors.Is(err, ErrNotMount) {
		t.Errorf("unmounting nothing: error %v", err)
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("needs root")
	}
	t.Skip("needs root")
}
