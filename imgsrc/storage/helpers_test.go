package storage

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/test/needs"
)

// A real is a store that podman and buildah work on.
type real struct {
	root, run, driver string
}

func newReal(t testing.TB, driver string) real {
	t.Helper()
	needs.Root(t)
	needs.Programs(t, "podman", "buildah", "skopeo")
	dir, err := os.MkdirTemp("", "imgfs") // podman takes no run root of more than 50 characters
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// podman leaves the driver's directory mounted onto itself, now and then.
		err := unix.Unmount(filepath.Join(dir, "root", driver), unix.MNT_DETACH)
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			t.Error(err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return real{filepath.Join(dir, "root"), filepath.Join(dir, "run"), driver}
}

func (r real) options() Options {
	return Options{GraphRoot: r.root, RunRoot: r.run, Driver: r.driver}
}

func (r real) source(t testing.TB) *Source {
	t.Helper()
	s, err := Open(t.Context(), r.options())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// do runs podman or buildah on the store, and returns what it prints.
func (r real) do(t testing.TB, tool string, args ...string) string {
	t.Helper()
	return needs.Line(t, tool, append([]string{"--root", r.root, "--runroot", r.run, "--storage-driver", r.driver}, args...)...)
}

// commit makes an image with one layer for each directory.
func (r real) commit(t testing.TB, name string, format string, dirs ...string) {
	t.Helper()
	from := "scratch"
	for i, dir := range dirs {
		ctr := r.do(t, "buildah", "from", "--pull-never", from)
		if dir != "" {
			r.do(t, "buildah", "copy", ctr, dir, "/")
		}
		from = name
		if i < len(dirs)-1 {
			from = fmt.Sprintf("%s-%d", name, i)
		}
		r.do(t, "buildah", "commit", "--rm", "--format", format, ctr, from)
	}
}

// inspected is what podman says of an image.
type inspected struct {
	ID          string `json:"Id"`
	Digest      string
	RepoTags    []string
	RepoDigests []string
	RootFS      struct{ Layers []string }
}

func (r real) inspect(t testing.TB, name string) inspected {
	t.Helper()
	var list []inspected
	if err := json.Unmarshal([]byte(r.do(t, "podman", "image", "inspect", name)), &list); err != nil {
		t.Fatal(err)
	}
	return list[0]
}

// write makes a file with directories above it.
func write(t testing.TB, data []byte, elem ...string) string {
	t.Helper()
	file := filepath.Join(elem...)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

// noise is n bytes that are always the same for one seed.
func noise(seed uint64, n int) []byte {
	data := make([]byte, n)
	if _, err := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), 1}).Read(data); err != nil {
		panic(err) // it never fails
	}
	return data
}

// curious fills a directory with all that a layer may hold.
func curious(t testing.TB, dir string) {
	t.Helper()
	write(t, []byte("hello\n"), dir, "hello")
	write(t, nil, dir, "empty")
	write(t, noise(1, 3<<20), dir, "big")
	write(t, noise(2, smallBody), dir, "small-at-most")
	write(t, noise(3, smallBody+1), dir, "big-at-least")
	write(t, noise(4, 512), dir, "one-block")
	write(t, []byte("umlaut"), dir, "gr\xfc\xdf", "latin1-\xe4")
	write(t, []byte("long"), dir, strings.Repeat("d", 120), strings.Repeat("f", 200))
	deep := filepath.Join(strings.Repeat("a", 90), strings.Repeat("b", 90), strings.Repeat("c", 90), strings.Repeat("d", 90))
	write(t, []byte("very long"), dir, deep, "file")
	for i := range 300 {
		write(t, noise(uint64(i), i*7), dir, "many", fmt.Sprintf("file-%03d", i))
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Link(filepath.Join(dir, "hello"), filepath.Join(dir, "hardlink")))
	must(os.Symlink("hello", filepath.Join(dir, "symlink")))
	must(os.Symlink("/etc/passwd", filepath.Join(dir, "absolute")))
	must(unix.Setxattr(filepath.Join(dir, "hello"), "user.colour", []byte("blue"), 0))
	sparse, err := os.Create(filepath.Join(dir, "sparse"))
	must(err)
	_, err = sparse.WriteAt([]byte("end"), 1<<20)
	must(err)
	must(sparse.Close())
}

// tarOf is a tar as no tool of this store writes it: names with ./ and with PAX, GNU and old headers, and much padding.
func tarOf(t testing.TB) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	add := func(h *tar.Header, data string) {
		t.Helper()
		h.Size = int64(len(data))
		h.Mode = 0o644
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, data); err != nil {
			t.Fatal(err)
		}
	}
	add(&tar.Header{Name: "./", Typeflag: tar.TypeDir}, "")
	add(&tar.Header{Name: "./dotted", Format: tar.FormatGNU}, "dotted")
	add(&tar.Header{Name: "/absolute"}, "absolute")
	add(&tar.Header{Name: "pax", PAXRecords: map[string]string{"SCHILY.xattr.user.x": "y", "IMGFS.comment": strings.Repeat("c", 100_000)}}, "pax")
	add(&tar.Header{Name: strings.Repeat("gnu/", 80) + "long", Format: tar.FormatGNU}, "long")
	add(&tar.Header{Name: "fifo", Typeflag: tar.TypeFifo}, "")
	add(&tar.Header{Name: "link", Linkname: "dotted", Typeflag: tar.TypeLink}, "")
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	buf.Write(make([]byte, 3<<20)) // GNU tar pads to a record, others to more
	return buf.Bytes()
}

// build makes the images that the tests look at: several layers, both formats, an import.
func (r real) build(t testing.TB) []string {
	t.Helper()
	src := t.TempDir()
	curious(t, filepath.Join(src, "one"))
	write(t, []byte("other\n"), src, "two", "hello")
	write(t, []byte("new\n"), src, "two", "new", "file")
	r.commit(t, "localhost/multi:1", "oci", filepath.Join(src, "one"), filepath.Join(src, "two"))

	ctr := r.do(t, "buildah", "from", "--pull-never", "localhost/multi:1")
	mnt := r.do(t, "buildah", "mount", ctr)
	if err := errors.Join(os.Remove(filepath.Join(mnt, "hello")), os.RemoveAll(filepath.Join(mnt, "many")),
		os.Mkdir(filepath.Join(mnt, "many"), 0o700)); err != nil {
		t.Error(err)
	}
	write(t, []byte("after"), mnt, "many", "again")
	r.do(t, "buildah", "umount", ctr)
	r.do(t, "buildah", "commit", "--rm", ctr, "localhost/whiteouts")
	r.commit(t, "localhost/docker:1", "docker", filepath.Join(src, "two"))
	r.commit(t, "localhost/nothing", "oci", filepath.Join(src, "two"), "")
	r.do(t, "podman", "import", write(t, tarOf(t), src, "import.tar"), "localhost/imported:1")
	return []string{"localhost/multi:1", "localhost/whiteouts", "localhost/docker:1", "localhost/nothing", "localhost/imported:1"}
}

// find returns the first image with a name.
func find(t testing.TB, s *Source, name string) imgsrc.Listed {
	t.Helper()
	list, err := s.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range list.Problems {
		t.Error(p)
	}
	for _, img := range list.Images {
		for _, n := range img.Names {
			if n == name {
				return img
			}
		}
	}
	t.Fatalf("there is no image %s", name)
	return imgsrc.Listed{}
}

func sha(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// tree is all that lies below directories: names, modes, sizes and times.
func tree(t testing.TB, dirs ...string) string {
	t.Helper()
	var out strings.Builder
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			id := identityIn(info)
			fmt.Fprintln(&out, path, info.Mode(), id.ino, id.size, id.mtime, id.ctime)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return out.String()
}

// parallel runs f n times at once.
func parallel(n int, f func(i int)) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { f(i) })
	}
	wg.Wait()
}

// lock holds a lock of the store as another process would, until the test ends.
func lock(t testing.TB, file string) (unlock func()) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}); err != nil {
		t.Fatal(err)
	}
	return func() { f.Close() }
}
