package storage

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/sourcetest"
)

// plainStore makes a store whose image localhost/x has the layers base and top, which have no tar-split, and returns
// where their files are.
func plainStore(t *testing.T, driver string) (root, base, top string) {
	t.Helper()
	root = filepath.Join(t.TempDir(), "store")
	write(t, fmt.Appendf(nil, `[{"id":%q,"names":["localhost/x:latest"],"layer":"top"}]`, strings.Repeat("a", 64)), root, driver+"-images", "images.json")
	write(t, []byte(`[{"id":"base"},{"id":"top","parent":"base"}]`), root, driver+"-layers", "layers.json")
	dir := func(id string) string {
		if driver == "vfs" {
			return filepath.Join(root, "vfs", "dir", id)
		}
		return filepath.Join(root, "overlay", id, "diff")
	}
	base, top = dir("base"), dir("top")
	write(t, []byte("base"), base, "sub", "secret")
	write(t, []byte("top"), top, "sub", "file")
	return root, base, top
}

// outside moves something elsewhere, and leaves a link to it.
func outside(t *testing.T, path string) {
	t.Helper()
	to := filepath.Join(t.TempDir(), "moved")
	if err := errors.Join(os.Rename(path, to), os.Symlink(to, path)); err != nil {
		t.Fatal(err)
	}
}

// walkedNames returns the names of the files of a layer of localhost/x, and the body of the one that is name.
func walkedNames(t *testing.T, root string, n int, name string) (names []string, body string, err error) {
	t.Helper()
	s, err := open(Options{GraphRoot: root}, confNone)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	files, err := find(t, s, "localhost/x:latest").Files(t.Context(), n)
	if err != nil {
		return nil, "", err
	}
	defer files.Close()
	err = files.Entries(t.Context(), func(f *imgsrc.File) error { names = append(names, f.Name); return nil })
	p := make([]byte, 100)
	for _, size := range []int64{4, smallBody + 1} { // they are read in two ways
		k, bodyErr := files.ReadBody(t.Context(), imgsrc.Body{Path: name, Size: size}, p, 0)
		body += string(p[:k])
		if size == 4 && bodyErr != io.EOF {
			err = errors.Join(err, bodyErr)
		}
	}
	return names, body, err
}

func TestLinksOutOfTheStore(t *testing.T) {
	for driver, links := range map[string][]string{
		"overlay": {"overlay/base", "overlay/base/diff"},
		"vfs":     {"vfs/dir", "vfs/dir/base"},
	} {
		for _, link := range links {
			root, _, _ := plainStore(t, driver)
			outside(t, filepath.Join(root, link))
			names, body, err := walkedNames(t, root, 0, "sub/secret")
			if len(names) > 0 || body != "" || !errors.Is(err, imgsrc.ErrDamaged) {
				t.Errorf("%s is a link: the files %q, the body %q, error %v", link, names, body, err)
			}
		}
	}
	// The names of the layer below show in the whiteouts of the one above.
	root, base, _ := plainStore(t, "vfs")
	outside(t, base)
	if names, _, err := walkedNames(t, root, 1, "sub/file"); len(names) > 0 || !errors.Is(err, imgsrc.ErrDamaged) {
		t.Errorf("the layer below is a link: the files %q, error %v", names, err)
	}
	// A link in a layer is a file of it.
	root, base, _ = plainStore(t, "overlay")
	outside(t, filepath.Join(base, "sub"))
	if names, body, _ := walkedNames(t, root, 0, "sub/secret"); !slices.Equal(names, []string{"sub"}) || body != "" {
		t.Errorf("a directory of the layer is a link: the files %q, the body %q", names, body)
	}
}

// Whoever sets a store up may put it where there is room.
func TestLinksToTheStore(t *testing.T) {
	for _, driver := range drivers {
		for _, link := range []string{"", driver, driver + "-images", driver + "-layers"} {
			root, _, _ := plainStore(t, driver)
			outside(t, filepath.Join(root, link))
			names, body, err := walkedNames(t, root, 0, "sub/secret")
			if !slices.Equal(names, []string{"sub", "sub/secret"}) || body != "base" || err != nil {
				t.Errorf("%s/%s is a link: the files %q, the body %q, error %v", driver, link, names, body, err)
			}
		}
	}
}

func TestLinkOutOfTheStoreWithTarSplit(t *testing.T) {
	for _, size := range []int{6, smallBody + 1} {
		_, s, img, dir, _ := damaged(t, noise(7, size))
		outside(t, filepath.Dir(dir))
		diff, err := img.Diff(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := sourcetest.ReadAll(t.Context(), diff); !errors.Is(err, imgsrc.ErrDamaged) {
			t.Errorf("%d bytes: the tar: %v", size, err)
		}
		files, err := img.Files(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := files.Entries(t.Context(), func(f *imgsrc.File) error {
			if f.Type != '0' {
				return nil
			}
			p := make([]byte, f.Stored)
			if n, err := files.ReadBody(t.Context(), imgsrc.Body{Path: f.Name, Size: f.Stored, Where: f.Where}, p, 0); n > 0 || !errors.Is(err, imgsrc.ErrDamaged) {
				t.Errorf("%d bytes: %s: %d bytes, %v", size, f.Name, n, err)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
		if err := files.Close(); err != nil {
			t.Error(err)
		}
		s.Close()
	}
}

// A layer's tar may have gone through one of its own links when it was unpacked.
func TestBodyBehindALinkOfTheLayer(t *testing.T) {
	dir := t.TempDir()
	write(t, []byte("x"), dir, "d", "layer", "real", "file")
	l := &layerIndex{dir: filepath.Join(dir, "d", "layer")}
	if err := os.Symlink("/real", filepath.Join(l.dir, "link")); err != nil {
		t.Fatal(err)
	}
	f, err := (&Source{}).openFile(l, "./link/file")
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
}

// Where openat2 is not to be had, the same holds.
func TestWithoutOpenat2(t *testing.T) {
	dir := t.TempDir()
	write(t, []byte("x"), dir, "layer", "sub", "deep", "file")
	write(t, []byte("x"), dir, "secret", "file")
	layer := filepath.Join(dir, "layer")
	for name, to := range map[string]string{"up": "../secret", "out": dir + "/secret", "in": "sub"} {
		if err := os.Symlink(to, filepath.Join(layer, name)); err != nil {
			t.Fatal(err)
		}
	}
	root, err := unix.Open(layer, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(root)
	for name, ok := range map[string]bool{
		"sub/deep/file": true, "in/deep/file": true, "up/file": false, "out/file": false, "../secret/file": false, "missing": false,
	} {
		fd, err := openSlowly(root, name)
		if err == nil {
			unix.Close(fd)
		} else if err := explain(layer, name, err); !errors.Is(err, imgsrc.ErrDamaged) {
			t.Errorf("opening %s: %v", name, err)
		}
		if (err == nil) != ok {
			t.Errorf("opening %s: %v", name, err)
		}
	}
	for name, ok := range map[string]bool{".": true, "sub": true, "sub/deep": true, "in": false, "in/deep": false, "up": false, "out": false, "missing": false} {
		fd, err := subdirSlowly(root, name)
		if err == nil {
			unix.Close(fd)
		}
		if (err == nil) != ok {
			t.Errorf("listing %s: %v", name, err)
		}
		if f, err := subdir(root, name); err == nil {
			f.Close()
			if !ok {
				t.Errorf("listing %s by openat2: no error", name)
			}
		} else if ok {
			t.Errorf("listing %s by openat2: %v", name, err)
		}
	}
}

// A walk opens as few directories at a time as it can: they may lie deep.
func TestWalkIsNotLimitedByOpenFiles(t *testing.T) {
	root, base, _ := plainStore(t, "vfs")
	deep := filepath.Join(base, strings.Repeat("d/", 1500))
	if err := os.MkdirAll(deep, 0o755); err != nil {
		t.Fatal(err)
	}
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 200, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	names, _, err := walkedNames(t, root, 0, "sub/secret")
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	if err != nil || len(names) != 1502 {
		t.Errorf("%d files, error %v", len(names), err)
	}
}

func BenchmarkOpenBody(b *testing.B) {
	dir := b.TempDir()
	write(b, []byte("x"), dir, "overlay", "layer", "diff", "usr", "share", "file")
	l := &layerIndex{dir: filepath.Join(dir, "overlay", "layer", "diff")}
	for b.Loop() {
		f, err := (&Source{}).openFile(l, "usr/share/file")
		if err != nil {
			b.Fatal(err)
		}
		f.Close()
	}
}

func BenchmarkReadSmallBody(b *testing.B) {
	dir := b.TempDir()
	write(b, []byte("x"), dir, "overlay", "layer", "diff", "usr", "share", "file")
	u := &unpacked{dir: filepath.Join(dir, "overlay", "layer", "diff")}
	defer u.Close()
	p := make([]byte, 1)
	for b.Loop() {
		if _, err := u.ReadBody(b.Context(), imgsrc.Body{Path: "usr/share/file", Size: 1}, p, 0); err != nil {
			b.Fatal(err)
		}
	}
}

// A pipe in the place of a list, in a store that is somebody else's, stops nobody.
func TestPipeForAList(t *testing.T) {
	root, _, _ := plainStore(t, "overlay")
	s, err := open(Options{GraphRoot: root}, confNone)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	pipe := func(elements ...string) {
		t.Helper()
		file := filepath.Join(append([]string{root}, elements...)...)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o700), os.RemoveAll(file), unix.Mkfifo(file, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	pipe("overlay-containers", "containers.json")
	if list, err := s.List(t.Context()); err != nil || len(list.Images) != 1 || len(list.Problems) == 0 {
		t.Errorf("for containers.json: %+v, %v", list, err)
	}
	pipe("overlay-layers", "layers.json")
	if _, err := s.chain("top"); !errors.Is(err, imgsrc.ErrDamaged) {
		t.Errorf("for layers.json: %v", err)
	}
	pipe("overlay-images", "images.json")
	if _, err := s.List(t.Context()); !errors.Is(err, imgsrc.ErrDamaged) {
		t.Errorf("for images.json: %v", err)
	}
}
