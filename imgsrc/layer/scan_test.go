package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/test/needs"
)

// memory is a tar in memory.
type memory struct{ *bytes.Reader }

func (m memory) Size(context.Context) (int64, error) { return m.Reader.Size(), nil }
func (m memory) Close() error                        { return nil }
func (m memory) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	return m.Reader.ReadAt(p, off)
}

func inMemory(b []byte) imgsrc.Files {
	return TarFiles(memory{bytes.NewReader(b)}, imgsrc.FilesKey{Form: TarForm, Digest: digest.FromBytes(b)}, nil)
}

// checkAgainstLibrary compares what TarFiles says of a tar with what the standard library reads out of it, bodies included.
// It returns false if the library does not take it.
func checkAgainstLibrary(t *testing.T, b []byte) bool {
	t.Helper()
	var got []imgsrc.File
	files := inMemory(b)
	err := files.Entries(t.Context(), func(f *imgsrc.File) error {
		got = append(got, *f)
		return nil
	})
	r := tar.NewReader(bytes.NewReader(b))
	n := 0
	for {
		h, wantErr := r.Next()
		if wantErr == io.EOF {
			break
		}
		var want []byte
		if wantErr == nil && h.Size < 1<<20 {
			if want, wantErr = io.ReadAll(r); wantErr != nil && n < len(got) && got[n].Extents != nil {
				return err == nil // a sparse file with more data than its map needs: what it needs is there
			}
		}
		if wantErr != nil {
			if err == nil {
				t.Errorf("the library: %v; no error here", wantErr)
			}
			return false
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		if n >= len(got) {
			if err == nil {
				t.Errorf("%d entries, and the library has %q", n, h.Name)
			}
			return false
		}
		f := got[n]
		n++
		if f.Name != h.Name || f.Link != h.Linkname || f.Mode != uint32(h.Mode)&0o7777 || f.UID != uint32(h.Uid) || f.Sec != h.ModTime.Unix() {
			t.Errorf("%+v, and the library has %+v", f, h)
		}
		if f.Type != '0' || h.Size >= 1<<20 {
			continue
		}
		body := make([]byte, h.Size)
		at := int64(0)
		extents := f.Extents
		if extents == nil {
			extents = []imgsrc.Extent{{Off: 0, Len: f.Size}}
		}
		for _, x := range extents {
			k, err := files.ReadBody(t.Context(), imgsrc.Body{Size: f.Stored, Where: f.Where}, body[x.Off:x.Off+x.Len], at)
			if int64(k) != x.Len {
				t.Errorf("%q: %d of %d bytes at %d, %v", f.Name, k, x.Len, at, err)
			}
			at += x.Len
		}
		if !bytes.Equal(body, want) {
			t.Errorf("%q: other bytes than the library's", f.Name)
		}
	}
	if err == nil && n != len(got) {
		t.Errorf("%d entries, and the library has %d", len(got), n)
	}
	return err == nil
}

// gnuTar makes a tar of sparse and other files with GNU tar.
func gnuTar(t testing.TB, runs int, format ...string) []byte {
	t.Helper()
	needs.Programs(t, "tar")
	dir := t.TempDir()
	for name, extents := range map[string][]imgsrc.Extent{
		"none": {}, "head": {{Off: 0, Len: 10}}, "tail": {{Off: 1 << 19, Len: 777}}, "many": manyExtents(runs),
	} {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range extents {
			if _, err := f.WriteAt(payload(int(x.Len)), x.Off); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(f.Truncate(1<<19+4096), f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	long := filepath.Join(dir, strings.Repeat("d", 200))
	if err := errors.Join(os.Mkdir(long, 0o700), os.WriteFile(filepath.Join(long, strings.Repeat("f", 200)), []byte("long"), 0o600)); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("tar", append([]string{"-C", dir, "--sparse", "-cf", "-", "."}, format...)...).Output()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func manyExtents(n int) []imgsrc.Extent {
	var all []imgsrc.Extent
	for i := range int64(n) {
		all = append(all, imgsrc.Extent{Off: i * 8192, Len: 4096})
	}
	return all
}

func TestScanTar(t *testing.T) {
	for name, format := range map[string][]string{
		"gnu": {"--format=gnu"}, "pax 0.0": {"--format=posix", "--sparse-version=0.0"},
		"pax 0.1": {"--format=posix", "--sparse-version=0.1"}, "pax 1.0": {"--format=posix", "--sparse-version=1.0"},
	} {
		t.Run(name, func(t *testing.T) {
			b := gnuTar(t, 60, format...)
			if !checkAgainstLibrary(t, b) {
				t.Error("not taken")
			}
			sparse := 0
			err := inMemory(b).Entries(t.Context(), func(f *imgsrc.File) error {
				if f.Extents != nil {
					sparse++
				}
				return nil
			})
			if err != nil || sparse < 3 {
				t.Errorf("%d sparse files, %v", sparse, err)
			}
		})
	}
}

func smallTar(t testing.TB) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range []tar.Header{
		{Name: "a", Typeflag: tar.TypeReg, Size: 600, Mode: 0o4755, ModTime: time.Unix(5, 7), Format: tar.FormatPAX},
		{Name: "b", Typeflag: tar.TypeReg, Size: 1, PAXRecords: map[string]string{"SCHILY.xattr.user.z": "1", "SCHILY.xattr.user.a": "a\nb", "SCHILY.xattr.no-namespace": "1", "SCHILY.xattr.user.": "1"}},
		{Name: "c", Typeflag: tar.TypeChar, Devmajor: 300, Devminor: 70000},
	} {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(payload(int(h.Size))); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestScanTarFields(t *testing.T) {
	x, err := BuildIndex(t.Context(), inMemory(smallTar(t)))
	if err != nil {
		t.Fatal(err)
	}
	tree := NewTree(nil, x)
	a, _ := tree.Child(0, "a")
	if attr, err := tree.Attr(a); err != nil || attr.Sec != 5 || attr.Nsec != 7 || attr.Mode != 0o104755 || attr.Size != 600 {
		t.Errorf("%+v, %v", attr, err)
	}
	b, _ := tree.Child(0, "b")
	if got := tree.Xattrs(b); len(got) != 2 || got[0] != (imgsrc.Xattr{Name: "user.a", Value: "a\nb"}) || got[1].Name != "user.z" {
		t.Errorf("%q", got)
	}
	c, _ := tree.Child(0, "c")
	if attr, err := tree.Attr(c); err != nil || attr.Rdev != 70000&0xff|300<<8|(70000&^0xff)<<12 {
		t.Errorf("%+v, %v", attr, err)
	}
}

// A tar that is cut off anywhere but between two entries is damaged, whatever was read of it.
func TestScanTarCut(t *testing.T) {
	whole := smallTar(t)
	for n := range whole {
		_, err := BuildIndex(t.Context(), inMemory(whole[:n]))
		_, want := readLibrary(whole[:n])
		if (err == nil) != (want == nil) || err != nil && !errors.Is(err, imgsrc.ErrDamaged) {
			t.Errorf("%d bytes: %v; the library: %v", n, err, want)
		}
	}
	garbage := bytes.Clone(whole)
	copy(garbage[1536+1024:], "garbage") // the header of b's extension
	if _, err := BuildIndex(t.Context(), inMemory(garbage)); !errors.Is(err, imgsrc.ErrDamaged) {
		t.Errorf("garbage: %v", err)
	}
}

func readLibrary(b []byte) (n int, err error) {
	r := tar.NewReader(bytes.NewReader(b))
	for ; ; n++ {
		if _, err := r.Next(); err == io.EOF {
			return n, nil
		} else if err != nil {
			return n, err
		}
		if _, err := io.Copy(io.Discard, r); err != nil {
			return n, err
		}
	}
}

// A disk that fails is not a tar that is broken.
func TestScanTarReadError(t *testing.T) {
	err := ScanTar(io.MultiReader(bytes.NewReader(smallTar(t)[:700]), iotest.ErrReader(os.ErrDeadlineExceeded)), func(*imgsrc.File) error { return nil })
	if !errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, imgsrc.ErrDamaged) {
		t.Error(err)
	}
}

func FuzzScanTar(f *testing.F) {
	f.Add(smallTar(f))
	for _, format := range []string{"--format=gnu", "--sparse-version=0.1", "--sparse-version=1.0"} {
		f.Add(gnuTar(f, 2, "--format=posix", format))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		checkAgainstLibrary(t, b)
		x, err := BuildIndex(t.Context(), inMemory(b))
		if err != nil {
			return
		}
		tree, err := Merge(t.Context(), []*Index{x, x})
		if err != nil {
			t.Fatal(err)
		}
		show(t, tree)
		k := key{indexKind + "-tar", digest.FromBytes(b)}
		if y, err := decodeIndex(k, x.encode(k)); err != nil || show(t, NewTree(nil, y)) != show(t, NewTree(nil, x)) {
			t.Errorf("written and read again it differs: %v", err)
		}
	})
}
