package storage

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	tarsplit "github.com/vbatts/tar-split/tar/storage"
	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
	tarlayer "github.com/imgfs/imgfs/imgsrc/layer"
	"github.com/imgfs/imgfs/test/needs"
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

// swapped is a tar-split file in which the target of the link "to-xy" has been made "to-yx", which leaves all checksums
// and lengths as they are.
func swapped(t *testing.T, file string) []byte {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	in, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	lines := json.NewEncoder(w)
	for read := json.NewDecoder(in); ; {
		var e tarsplit.Entry
		if err := read.Decode(&e); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if e.Type == tarsplit.SegmentType {
			e.Payload = bytes.ReplaceAll(e.Payload, []byte("to-xy"), []byte("to-yx"))
		}
		if err := lines.Encode(e); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// What a store says of a layer is its own affair: another one with the same layer is not taken in, and neither is the
// same one when it has been repaired. Where nothing has changed, the layer is read once.
func TestFilesOfTwoStores(t *testing.T) {
	r := newReal(t, "overlay")
	src := t.TempDir()
	if err := os.Symlink("to-xy", filepath.Join(src, "link")); err != nil {
		t.Fatal(err)
	}
	r.commit(t, "localhost/x", "oci", src)
	other := real{r.root + "-other", r.run, r.driver}
	needs.Run(t, "cp", "-a", r.root, other.root)
	splits, err := filepath.Glob(filepath.Join(other.root, "overlay-layers", "*.tar-split.gz"))
	if err != nil || len(splits) != 1 {
		t.Fatal(splits, err)
	}
	sound, err := os.ReadFile(splits[0])
	if err != nil {
		t.Fatal(err)
	}
	before := baseFiles(t, other)
	if err := os.WriteFile(splits[0], swapped(t, splits[0]), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := before.Entries(t.Context(), func(*imgsrc.File) error { return nil }); err == nil {
		t.Error("files that were opened before list what is there now")
	}
	cacheDir := t.TempDir()
	opened := 0
	link := func(r real) string {
		t.Helper()
		cache, err := tarlayer.OpenCache(cacheDir, 0, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer cache.Close()
		files := baseFiles(t, r)
		x, err := cache.Index(t.Context(), tarlayer.Layer{Key: files.Key(), From: files.Key().Digest, Open: func(context.Context) (imgsrc.Files, error) {
			opened++
			return baseFiles(t, r), nil
		}})
		if err != nil {
			t.Fatal(err)
		}
		tree := tarlayer.NewTree(nil, x)
		n, _ := tree.Child(0, "link")
		target, _ := tree.Readlink(n)
		return target
	}
	for range 2 {
		if got := link(other); got != "to-yx" {
			t.Errorf("the other store has %q", got)
		}
		if got := link(r); got != "to-xy" {
			t.Errorf("the store has %q, which is the other's", got)
		}
	}
	if opened != 2 {
		t.Errorf("the layer was read %d times, want once for each store", opened)
	}
	if err := os.WriteFile(splits[0], sound, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := link(other); got != "to-xy" {
		t.Errorf("the other store has %q when it has been repaired", got)
	}
}

// baseFiles opens the files of the base of localhost/x.
func baseFiles(t *testing.T, r real) imgsrc.Files {
	t.Helper()
	files, err := find(t, r.source(t), "localhost/x:latest").Files(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := files.Close(); err != nil {
			t.Error(err)
		}
	})
	return files
}
