package storage

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
	tarlayer "github.com/imgfs/imgfs/imgsrc/layer"
)

// A layer without tar-split is walked: its files are what tar-split said, but for what only the tar knows.
func TestWalkedLayer(t *testing.T) {
	for _, driver := range drivers {
		t.Run(driver, func(t *testing.T) {
			r := newReal(t, driver)
			src := t.TempDir()
			curious(t, filepath.Join(src, "one"))
			write(t, []byte("kept"), src, "two", "kept")
			write(t, []byte("gone"), src, "two", "dir", "gone")
			r.commit(t, "localhost/base", "oci", filepath.Join(src, "one"), filepath.Join(src, "two"))
			ctr := r.do(t, "buildah", "from", "--pull-never", "localhost/base")
			mnt := r.do(t, "buildah", "mount", ctr)
			if err := errors.Join(os.Remove(filepath.Join(mnt, "dir", "gone")), os.WriteFile(filepath.Join(mnt, "new"), []byte("new"), 0o600),
				unix.Setxattr(filepath.Join(mnt, "new"), "user.note", []byte("x"), 0)); err != nil {
				t.Fatal(err)
			}
			r.do(t, "buildah", "umount", ctr)
			r.do(t, "buildah", "commit", "-q", "--rm", ctr, "localhost/top")

			before := mergedPaths(t, r.source(t))
			splits, err := filepath.Glob(filepath.Join(r.root, driver+"-layers", "*.tar-split.gz"))
			if err != nil || len(splits) == 0 {
				t.Fatal(splits, err)
			}
			for _, split := range splits {
				if err := os.Remove(split); err != nil {
					t.Fatal(err)
				}
			}
			s := r.source(t)
			if after := mergedPaths(t, s); !slices.Equal(before, after) {
				t.Errorf("walked %q, listed by tar-split %q", after, before)
			}
			img := find(t, s, "localhost/top:latest")
			if _, err := img.Diff(t.Context(), 0); !errors.Is(err, imgsrc.ErrAbsent) {
				t.Errorf("the tar of a layer without tar-split: %v", err)
			}
			n := 0
			for _, err := img.Files(t.Context(), n); err == nil; _, err = img.Files(t.Context(), n) {
				n++
			}
			top, err := img.Files(t.Context(), n-1)
			if err != nil {
				t.Fatal(err)
			}
			p := make([]byte, 10)
			if k, err := top.ReadBody(t.Context(), imgsrc.Body{Path: "new", Size: 3}, p, 0); string(p[:k]) != "new" {
				t.Errorf("%q, %v", p[:k], err)
			}
			var names []string
			if err := top.Entries(t.Context(), func(f *imgsrc.File) error { names = append(names, f.Name); return nil }); err != nil {
				t.Fatal(err)
			}
			if !slices.Contains(names, "dir/.wh.gone") || !slices.Contains(names, "new") || slices.Contains(names, "kept") {
				t.Errorf("the top layer has %q", names)
			}
		})
	}
}

// mergedPaths are the paths of localhost/top's root file system, with their modes.
func mergedPaths(t *testing.T, s *Source) []string {
	t.Helper()
	img := find(t, s, "localhost/top:latest")
	var layers []*tarlayer.Index
	for n := 0; ; n++ {
		files, err := img.Files(t.Context(), n)
		if errors.Is(err, imgsrc.ErrAbsent) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		x, err := tarlayer.BuildIndex(t.Context(), files)
		if err := errors.Join(err, files.Close()); err != nil {
			t.Fatal(err)
		}
		layers = append(layers, x)
	}
	tree, err := tarlayer.Merge(t.Context(), layers)
	if err != nil {
		t.Fatal(err)
	}
	var paths []string
	for n := range tree.Len() {
		a, err := tree.Attr(n)
		if err != nil {
			t.Fatal(err)
		}
		if n > 0 {
			paths = append(paths, tree.Path(n)+" "+os.FileMode(a.Mode).String())
		}
	}
	slices.Sort(paths)
	return paths
}

// A file of a layer that is not what tar-split says is damaged, and its neighbours are not.
func TestFilesDamaged(t *testing.T) {
	r := newReal(t, "overlay")
	src := t.TempDir()
	large := make([]byte, smallBody+100)
	for name, body := range map[string][]byte{"good": []byte("good"), "other": []byte("old"), "longer": []byte("old"), "gone": []byte("x"), "large": large, "link": []byte("x")} {
		write(t, body, src, name)
	}
	r.commit(t, "localhost/x", "oci", src)
	s := r.source(t)
	files, err := find(t, s, "localhost/x:latest").Files(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := files.Close(); err != nil {
			t.Error(err)
		}
	})
	bodies := map[string]imgsrc.Body{}
	if err := files.Entries(t.Context(), func(f *imgsrc.File) error {
		bodies[f.Name] = imgsrc.Body{Path: f.Name, Size: f.Stored, Where: f.Where}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	read := func(name string) error {
		b := bodies[name]
		_, err := files.ReadBody(t.Context(), b, make([]byte, b.Size), 0)
		return err
	}
	for name := range bodies {
		if err := read(name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	dirs, err := filepath.Glob(filepath.Join(r.root, "overlay", "*", "diff", "large"))
	if err != nil || len(dirs) != 1 {
		t.Fatal(dirs, err)
	}
	dir := filepath.Dir(dirs[0])
	large[smallBody] = 1
	if err := errors.Join(
		os.WriteFile(filepath.Join(dir, "other"), []byte("new"), 0o644),
		os.WriteFile(filepath.Join(dir, "longer"), []byte("old and new"), 0o644),
		os.Remove(filepath.Join(dir, "gone")),
		os.WriteFile(filepath.Join(dir, "large"), large, 0o644),
		os.Remove(filepath.Join(dir, "link")), os.Symlink("/etc/hostname", filepath.Join(dir, "link")),
	); err != nil {
		t.Fatal(err)
	}
	for name := range bodies {
		err := read(name)
		if name == "good" && err != nil || name != "good" && !errors.Is(err, imgsrc.ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
