package blobs

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/layer"
)

// archive is a tar of these members: a text, or a link to what stands behind an arrow.
func archive(t *testing.T, members ...[2]string) []byte {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, m := range members {
		h := &tar.Header{Name: m[0], Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(m[1]))}
		body := m[1]
		for arrow, typ := range map[string]byte{"-> ": tar.TypeSymlink, "=> ": tar.TypeLink} {
			if target, ok := strings.CutPrefix(m[1], arrow); ok {
				h.Typeflag, h.Linkname, h.Size, body = typ, target, 0, ""
			}
		}
		if strings.HasSuffix(m[0], "/") {
			h.Typeflag, h.Size, body = tar.TypeDir, 0, ""
		}
		if err := tw.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(tw, body); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func writeArchive(t *testing.T, b []byte) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "archive.tar")
	if err := os.WriteFile(file, b, 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

func openTar(t *testing.T, file string) *Tar {
	t.Helper()
	cache, err := layer.OpenCache(t.TempDir(), 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cache.Close() })
	d, err := OpenTar(t.Context(), file, cache)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

var sample = [][2]string{
	{"./dir/", ""}, {"./dir/a", "the first"}, {"b", "before"}, {"/b", "after"}, {"../up", "cleaned"},
	{"dir/link", "-> ../b"}, {"hard", "=> dir/a"}, {"twice", "-> dir/link"}, {"out", "-> ../../etc/passwd"},
	{"loop", "-> loop"}, {"dangling", "-> nowhere"},
}

func TestTar(t *testing.T) {
	plain := archive(t, sample...)
	var zipped bytes.Buffer
	zw := gzip.NewWriter(&zipped)
	if _, err := zw.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{"plain": plain, "gzip": zipped.Bytes()} {
		t.Run(name, func(t *testing.T) {
			d := openTar(t, writeArchive(t, b))
			for path, want := range map[string]string{
				"dir/a": "the first", "./dir/a": "the first", "b": "after", "up": "cleaned", "dir/link": "after",
				"hard": "the first", "twice": "after",
			} {
				got, id, err := ReadFile(d, path, 100)
				if err != nil || string(got) != want || id.Size() != int64(len(want)) {
					t.Errorf("%s: %q, %v", path, got, err)
				}
				if stat, err := d.Stat(path); err != nil || stat != id {
					t.Errorf("%s: another identity, %v", path, err)
				}
			}
			for path, want := range map[string]error{
				"dir": fs.ErrNotExist, "nothing": fs.ErrNotExist, "dangling": fs.ErrNotExist, "out": fs.ErrNotExist, "loop": imgsrc.ErrDamaged,
			} {
				if got, _, err := ReadFile(d, path, 100); !errors.Is(err, want) {
					t.Errorf("%s: %q, %v, want %v", path, got, err, want)
				}
			}
			if _, _, err := ReadFile(d, "b", 3); !errors.Is(err, imgsrc.ErrDamaged) {
				t.Errorf("a file that is too long: %v", err)
			}
			if err := d.Problem(); err != nil {
				t.Errorf("a whole archive: %v", err)
			}
		})
	}
}

func TestTarCutShort(t *testing.T) {
	whole := archive(t, [2]string{"a", "first"}, [2]string{"b", strings.Repeat("x", 2000)}, [2]string{"c", "last"})
	d := openTar(t, writeArchive(t, whole[:512*3+1000]))
	if got, _, err := ReadFile(d, "a", 100); err != nil || string(got) != "first" {
		t.Errorf("before the end: %q, %v", got, err)
	}
	if got, _, err := ReadFile(d, "b", 1<<20); err == nil {
		t.Errorf("%d bytes of a member that is cut short", len(got))
	}
	if _, _, err := ReadFile(d, "c", 100); !errors.Is(err, imgsrc.ErrDamaged) || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("behind the end: %v", err)
	}
	if d.Problem() == nil {
		t.Error("the archive is taken for a whole one")
	}
}

func TestTarReplaced(t *testing.T) {
	file := writeArchive(t, archive(t, [2]string{"a", "was"}))
	d := openTar(t, file)
	f, err := d.Open("a")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := os.WriteFile(file+".new", archive(t, [2]string{"before", "x"}, [2]string{"a", "is now"}), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
	if got, id, err := ReadFile(d, "a", 100); err != nil || string(got) != "is now" || id == f.Identity() {
		t.Errorf("%q, %v", got, err)
	}
	p := make([]byte, 3)
	if _, err := f.ReadAt(p, 0); err != nil || string(p) != "was" {
		t.Errorf("what was open: %q, %v", p, err)
	}
	if now, err := f.Now(); err != nil {
		t.Error(err)
	} else if now.Size() != 3 {
		t.Errorf("size %d", now.Size())
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Open("a"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("gone: %v", err)
	}
}

func TestNoTar(t *testing.T) {
	for name, b := range map[string][]byte{"text": []byte("no tar at all, whoever looks at it"), "zeros and text": append(make([]byte, 100), "x"...)} {
		if d, err := OpenTar(t.Context(), writeArchive(t, b), nil); !errors.Is(err, imgsrc.ErrNoSource) {
			t.Errorf("%s: %v, %v", name, d, err)
		}
	}
	if _, err := OpenTar(t.Context(), t.TempDir(), nil); !errors.Is(err, imgsrc.ErrNoSource) {
		t.Errorf("a directory: %v", err)
	}
	if _, err := OpenTar(t.Context(), filepath.Join(t.TempDir(), "nothing"), nil); !errors.Is(err, imgsrc.ErrNoSource) {
		t.Errorf("nothing: %v", err)
	}
}
