package layer

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/cachefile"
)

// Whatever happens to a cache file, nobody reads wrong bytes: it is made again.
func TestCacheFileDamaged(t *testing.T) {
	plain := payload(2*chunkSize + 999)
	packed := gzipped(t, plain)
	edit := func(off int64) func(t *testing.T, path string) {
		return func(t *testing.T, path string) {
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			i := (off + int64(len(b))) % int64(len(b))
			b[i] ^= 0xff
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	cut := func(by int64) func(t *testing.T, path string) {
		return func(t *testing.T, path string) {
			fi, err := os.Stat(path)
			if err == nil {
				err = os.Truncate(path, max(0, fi.Size()-by))
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, damage := range map[string]func(t *testing.T, path string){
		"first byte":        edit(0),
		"in a later chunk":  edit(chunkSize + 100),
		"a checksum":        edit(int64(len(plain)) + 5),
		"the magic":         edit(-int64(footerLen)),
		"the length":        edit(-5),
		"the last byte":     edit(-1),
		"cut by a byte":     cut(1),
		"cut by the footer": cut(int64(footerLen)),
		"cut in half":       cut(int64(len(plain) / 2)),
		"empty":             cut(1 << 40),
		"removed":           func(t *testing.T, path string) { os.Remove(path) },
		"a directory": func(t *testing.T, path string) {
			os.Remove(path)
			if err := os.Mkdir(path, 0o700); err != nil {
				t.Fatal(err)
			}
		},
		"a fifo": func(t *testing.T, path string) {
			os.Remove(path)
			if err := unix.Mkfifo(path, 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"another layer's": func(t *testing.T, path string) {
			other := payload(5000)
			blob := &testBlob{bytes: gzipped(t, other)}
			dir := t.TempDir()
			wantContent(t, testCache(t, dir, 0).Diff(blob.digest(), digest.FromBytes(other), blob.open), other)
			if err := os.Rename(files(t, dir, diffKind)[0], path); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, open := range []bool{false, true} { // at the moment of the damage
				dir := t.TempDir()
				blob := &testBlob{bytes: packed}
				c := testCache(t, dir, 0)
				d := c.Diff(blob.digest(), digest.FromBytes(plain), blob.open)
				wantContent(t, d, plain)
				path := files(t, dir, diffKind)[0]
				if !open {
					if err := d.Close(); err != nil {
						t.Fatal(err)
					}
				}
				damage(t, path)
				later := time.Now().Add(time.Second) // however coarse the file system's clock is
				_ = os.Chtimes(path, later, later)   // if it is there
				wantContent(t, d, plain)
				wantContent(t, testCache(t, dir, 0).Diff(blob.digest(), digest.FromBytes(plain), blob.open), plain)
				if n := blob.opened.Load(); !open && n != 2 {
					t.Errorf("the blob was opened %d times, want twice", n)
				}
			}
		})
	}
}

// A source whose bytes change under a reader that decompresses as it reads.
func TestBlobChanges(t *testing.T) {
	t.Setenv("TMPDIR", filepath.Join(t.TempDir(), "missing"))
	plain, other := payload(2*chunkSize), payload(2*chunkSize+1)
	blob := &testBlob{bytes: gzipped(t, plain)}
	d := testCache(t, "", 0).Diff(blob.digest(), digest.FromBytes(plain), blob.open)
	if _, err := d.Size(t.Context()); err != nil {
		t.Fatal(err)
	}
	blob.bytes = gzipped(t, other)
	for range 2 {
		if n, err := d.ReadAt(t.Context(), make([]byte, 100), chunkSize); n != 0 || !errors.Is(err, imgsrc.ErrDamaged) {
			t.Errorf("%d, %v, want ErrDamaged", n, err)
		}
	}
}

// The cache may be deleted while it is in use.
func TestDeleted(t *testing.T) {
	dir := t.TempDir()
	c := testCache(t, dir, 0)
	read := func(size int) {
		t.Helper()
		plain := payload(size)
		blob := &testBlob{bytes: gzipped(t, plain)}
		d := c.Diff(blob.digest(), digest.FromBytes(plain), blob.open)
		wantContent(t, d, plain)
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
	read(1000)
	for _, kind := range []string{diffKind, blobKind, tagsKind + diffKind, partDir} {
		if err := os.RemoveAll(filepath.Join(dir, version, kind)); err != nil {
			t.Fatal(err)
		}
	}
	read(1000)
	if n := len(files(t, dir, diffKind)); n != 1 {
		t.Errorf("%d files, want one that was made again", n)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	read(1000)
}

func TestSweep(t *testing.T) {
	dir := t.TempDir()
	testCache(t, dir, 0)
	part := filepath.Join(dir, version, partDir, "diff-sha256-dead")
	if err := os.WriteFile(part, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(part)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := cachefile.Flock(f, unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	testCache(t, dir, 0)
	if n := len(files(t, dir, partDir)); n != 1 {
		t.Errorf("%d part files, want the locked one", n)
	}
	if err := cachefile.Flock(f, unix.LOCK_UN); err != nil {
		t.Fatal(err)
	}
	testCache(t, dir, 0)
	if n := len(files(t, dir, partDir)); n != 0 {
		t.Errorf("%d part files, want none", n)
	}
}

// What somebody goes on with stays, within the limit and for a week.
func TestSweepResumed(t *testing.T) {
	dir := t.TempDir()
	testCache(t, dir, 0)
	part := func(name string, age time.Duration) string {
		path := filepath.Join(dir, version, partDir, ResumedPrefix+"sha256-"+name)
		if err := os.WriteFile(path, payload(100_000), 0o600); err != nil {
			t.Fatal(err)
		}
		then := time.Now().Add(-age)
		if err := os.Chtimes(path, then, then); err != nil {
			t.Fatal(err)
		}
		return path
	}
	part("old", resumedFor+time.Hour)
	young, younger := part("young", time.Hour), part("younger", time.Minute)
	testCache(t, dir, 250_000)
	if left := files(t, dir, partDir); !slices.Equal(left, []string{young, younger}) {
		t.Errorf("left: %v, want those of this week", left)
	}
	testCache(t, dir, 150_000)
	if left := files(t, dir, partDir); !slices.Equal(left, []string{younger}) {
		t.Errorf("left: %v, want the youngest", left)
	}
}

func TestEvict(t *testing.T) {
	dir := t.TempDir()
	const size = 100000
	c := testCache(t, dir, 3*size+size/2)
	var held []imgsrc.Content
	var paths []string
	now := time.Now()
	for i := range 5 {
		plain := payload(size + i)
		blob := &testBlob{bytes: gzipped(t, plain)}
		d := c.Diff(blob.digest(), digest.FromBytes(plain), blob.open)
		wantContent(t, d, plain)
		k := key{diffKind, digest.FromBytes(plain)}
		path := filepath.Join(dir, version, k.path())
		paths = append(paths, path)
		if i == 0 {
			held = append(held, d) // the oldest, but in use
		} else if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, now, now.Add(time.Duration(i-100)*time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	// 0 is held; 1 and then 2 were the oldest when the fourth and the fifth came.
	for i, want := range []bool{true, false, false, true, true} {
		if _, err := os.Stat(paths[i]); (err == nil) != want {
			t.Errorf("file %d: there is %v, want %v", i, err == nil, want)
		}
	}
	wantContent(t, held[0], payload(size))
	// Reading makes a file young again.
	old := payload(size + 3)
	d := c.Diff(digest.FromBytes(gzipped(t, old)), digest.FromBytes(old), nil) // it is there: nothing is opened
	wantContent(t, d, old)
	if err := errors.Join(d.Close(), held[0].Close()); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(paths[0], now, now.Add(-time.Hour)); err != nil {
		t.Fatal(err)
	}
	testCache(t, dir, 2*size) // one of 100,003 bytes and its trailer
	if left := files(t, dir, diffKind); !slices.Equal(left, []string{paths[3]}) {
		t.Errorf("left: %v, want the one that was read last", left)
	}
}

func TestBomb(t *testing.T) {
	plain := make([]byte, 20<<20)
	c := testCache(t, t.TempDir(), 0)
	c.bomb = bomb{free: 10 << 20, ratio: 200}
	for _, b := range [][]byte{gzipped(t, plain), zstded(t, plain)} {
		blob := &testBlob{bytes: b}
		if _, err := c.Diff(blob.digest(), digest.FromBytes(plain), blob.open).Size(t.Context()); !errors.Is(err, imgsrc.ErrDamaged) {
			t.Errorf("%v, want ErrDamaged", err)
		}
	}
	blob := &testBlob{bytes: gzipped(t, plain[:10<<20])}
	wantContent(t, c.Diff(blob.digest(), "", blob.open), plain[:10<<20])
}

func TestOpenCacheErrors(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{file, filepath.Join(file, "below")} {
		if c, err := OpenCache(dir, 0, slog.New(slog.DiscardHandler)); !errors.Is(err, unix.ENOTDIR) {
			t.Errorf("%s: %v, %v, want ENOTDIR", dir, c, err)
		}
	}
}
