package blobs

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/layer"
)

// archive is a tar of these members: a text, or a link to what stands behind an arrow.
func archive(t testing.TB, members ...[2]string) []byte {
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

// setAge makes a file one that was written so long ago: what is written next has another time, and so has what was written just
// now, however coarse the file system's clock is.
func setAge(t *testing.T, file string, age time.Duration) {
	t.Helper()
	then := time.Now().Add(-age)
	if err := os.Chtimes(file, then, then); err != nil {
		t.Fatal(err)
	}
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

// Wherever an archive is cut, what is not found in it is not said to be absent, and what is cut is said with it.
func TestWhereTarIsCut(t *testing.T) {
	whole := archive(t, [2]string{"dir/", ""}, [2]string{"a", strings.Repeat("\x00", 1000)}, [2]string{"b", "x"})
	for at, want := range map[int]string{
		512:                  "at byte 512, after 1 member",
		512 + 100:            "at byte 612, after 1 member",
		512 + 512 + 100:      `at byte 1124, within "a"`,
		512 + 512 + 1000:     "at byte 2024, after 2 members",
		512 + 512 + 1024:     "at byte 2048, after 2 members",
		512 + 1536 + 512 + 1: "at byte 2561, after 3 members",
		512 + 1536 + 1024:    "at byte 3072, after 3 members",
	} {
		d := openTar(t, writeArchive(t, whole[:at]))
		if _, _, err := ReadFile(d, "c", 100); !errors.Is(err, imgsrc.ErrDamaged) || !errors.Is(err, fs.ErrNotExist) || !strings.HasSuffix(err.Error(), "its tar is cut short "+want) {
			t.Errorf("cut at %d: %v", at, err)
		}
		if d.Rest() == nil || (at > 512*3 && d.Problem() != nil) {
			t.Errorf("cut at %d: %v, %v", at, d.Rest(), d.Problem())
		}
	}
	d := openTar(t, writeArchive(t, whole[:3072+512])) // half an end is one
	if _, _, err := ReadFile(d, "c", 100); errors.Is(err, imgsrc.ErrDamaged) || d.Rest() != nil {
		t.Errorf("not cut: %v, %v", err, d.Rest())
	}
}

func TestCompressedTarCutShort(t *testing.T) {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(archive(t, sample...)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	cache, err := layer.OpenCache(t.TempDir(), 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer cache.Close()
	_, err = OpenTar(t.Context(), writeArchive(t, b.Bytes()[:100]), cache)
	if !errors.Is(err, imgsrc.ErrDamaged) || !strings.HasSuffix(err.Error(), "it is cut short at byte 100, within its gzip stream") {
		t.Error(err)
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

// A name of a MiB is nothing in a compressed archive, and must not be kept.
func TestTarNames(t *testing.T) {
	long := strings.Repeat("a", MaxPath+1)
	b := archive(t, [2]string{long, "x"}, [2]string{"to", "-> " + long}, [2]string{"a", "kept"})
	d := openTar(t, writeArchive(t, b))
	if got, _, err := ReadFile(d, "a", 100); err != nil || string(got) != "kept" {
		t.Errorf("%q, %v", got, err)
	}
	if len(d.now.entries) != 1 {
		t.Errorf("%d members are kept", len(d.now.entries))
	}
	if _, err := ReadMembers(t.Context(), d.now.plain, "archive", int64(len(b)), 0); !errors.Is(err, imgsrc.ErrUnsupported) {
		t.Errorf("more names than may be: %v", err)
	}
}

// What GNU tar writes with --sparse has another length than its header says: its bytes are the next member's.
func TestTarSparse(t *testing.T) {
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, h := range []*tar.Header{
		{Name: "a", Typeflag: tar.TypeReg, Mode: 0o644, Size: 3}, {Name: "b", Typeflag: tar.TypeReg, Mode: 0o644, Size: 600},
	} {
		if err := tw.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write(bytes.Repeat([]byte("x"), int(h.Size))); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	// The first one becomes GNU's: one run of 3 bytes at the end of a file of 1000.
	h := b.Bytes()[:512]
	copy(h[257:], "ustar  \x00")
	h[156] = tar.TypeGNUSparse
	copy(h[386:], "00000001745\x0000000000003\x00")
	copy(h[483:], "00000001750\x00")
	copy(h[148:], "        ")
	sum := 0
	for _, c := range h {
		sum += int(c)
	}
	copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
	d := openTar(t, writeArchive(t, b.Bytes()))
	if got, _, err := ReadFile(d, "a", 2000); !errors.Is(err, imgsrc.ErrUnsupported) {
		t.Errorf("%q, %v", got, err)
	}
	if got, _, err := ReadFile(d, "b", 2000); err != nil || len(got) != 600 {
		t.Errorf("behind it: %d bytes, %v", len(got), err)
	}
	if err := d.Problem(); err != nil {
		t.Errorf("a whole archive: %v", err)
	}
}

// An archive that was replaced by something else is looked at once, and not by everybody who wants a member.
func TestTarReplacedByNone(t *testing.T) {
	file := writeArchive(t, archive(t, [2]string{"a", "x"}))
	d := openTar(t, file)
	if err := os.WriteFile(file, []byte("no tar at all, whoever looks at it"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, first := d.Open("a")
	_, second := d.Stat("a")
	if !errors.Is(first, imgsrc.ErrNoSource) || first != second {
		t.Errorf("%v, and again: %v", first, second)
	}
	if err := os.WriteFile(file, archive(t, [2]string{"a", "repaired"}), 0o644); err != nil {
		t.Fatal(err)
	}
	setAge(t, file, time.Minute)
	if got, _, err := ReadFile(d, "a", 100); err != nil || string(got) != "repaired" {
		t.Errorf("%q, %v", got, err)
	}
}

type failing struct{ io.Closer }

func (failing) ReadAt([]byte, int64) (int, error) { return 0, syscall.EIO }

// A disk that fails is no archive that is cut short.
func TestTarUnreadable(t *testing.T) {
	m, err := ReadMembers(t.Context(), failing{}, "archive", 10240, maxNames)
	if !errors.Is(err, syscall.EIO) || isVerdict(err) || m != nil {
		t.Errorf("%v, %v", err, m)
	}
}

func FuzzTar(f *testing.F) {
	f.Add(archive(f, sample...))
	f.Add(archive(f, sample...)[:2000])
	f.Add(append(archive(f, [2]string{"a", "x"}), 1, 2, 3))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := OpenTar(t.Context(), writeArchive(t, b), nil)
		if err != nil {
			return
		}
		defer d.Close()
		for name := range d.now.entries {
			if got, id, err := ReadFile(d, name, 1<<20); err == nil && int64(len(got)) != id.Size() {
				t.Errorf("%q: %d bytes of %d", name, len(got), id.Size())
			}
		}
	})
}

func TestNoTar(t *testing.T) {
	for name, b := range map[string][]byte{"nothing": nil, "text": []byte("no tar at all, whoever looks at it"), "zeros and text": append(make([]byte, 100), "x"...)} {
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
