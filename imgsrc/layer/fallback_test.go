package layer

import (
	"bytes"
	"context"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/test/needs"
)

// smallDisk mounts a file system of 8 MiB.
func smallDisk(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=8m,mode=0700"); err != nil {
		needs.Unmet(t, "mounting a tmpfs: "+err.Error())
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
			unix.Unmount(dir, unix.MNT_DETACH)
		}
	})
	return dir
}

// logged opens a cache and collects its log.
func logged(t *testing.T, dir string) (*Cache, *bytes.Buffer) {
	t.Helper()
	var log bytes.Buffer
	c, err := OpenCache(dir, 0, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c, &log
}

// checkFallback reads two layers that cannot be kept, and wants one line in the log.
func checkFallback(t *testing.T, c *Cache, log *bytes.Buffer) {
	t.Helper()
	for _, size := range []int{10 << 20, 10<<20 + 5} {
		plain := payload(size)
		blob := &testBlob{bytes: zstded(t, plain)}
		d := c.Diff(blob.digest(), digest.FromBytes(plain), blob.open)
		wantContent(t, d, plain)
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if n := strings.Count(log.String(), "\n"); n != 1 {
		t.Errorf("%d lines in the log, want one: %s", n, log)
	}
}

func TestFullDisk(t *testing.T) {
	disk := smallDisk(t)
	c, log := logged(t, filepath.Join(disk, "cache"))
	// Small layers are kept, and make room for each other; one that is larger than the disk goes elsewhere.
	for i := range 8 {
		plain := payload(3<<20 + i)
		blob := &testBlob{bytes: zstded(t, plain)}
		d := c.Diff(blob.digest(), digest.FromBytes(plain), blob.open)
		wantContent(t, d, plain)
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if log.Len() > 0 {
		t.Errorf("small layers were not kept: %s", log)
	}
	checkFallback(t, c, log)
	if left := files(t, filepath.Join(disk, "cache"), partDir); left != nil {
		t.Errorf("left: %v", left)
	}
	if err := c.Close(); err != nil { // or the disk stays busy
		t.Fatal(err)
	}
}

func TestReadOnlyDir(t *testing.T) {
	disk := smallDisk(t)
	plain := payload(1 << 20)
	blob := &testBlob{bytes: zstded(t, plain)}
	c := testCache(t, disk, 0)
	wantContent(t, c.Diff(blob.digest(), digest.FromBytes(plain), blob.open), plain)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", disk, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	c, log := logged(t, disk)
	wantContent(t, c.Diff(blob.digest(), digest.FromBytes(plain), blob.open), plain)
	if n := blob.opened.Load(); n != 1 {
		t.Errorf("the blob was opened %d times, although the file is there", n)
	}
	checkFallback(t, c, log)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}

// Where others may write, nothing is trusted.
func TestSharedDir(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, version), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, version), 0o770); err != nil {
		t.Fatal(err)
	}
	c, log := logged(t, dir)
	checkFallback(t, c, log)
	if left := files(t, dir, "."); left != nil {
		t.Errorf("written: %v", left)
	}
}

// Nothing can be written anywhere.
func TestReplay(t *testing.T) {
	t.Setenv("TMPDIR", filepath.Join(t.TempDir(), "missing"))
	c := testCache(t, "", 0)
	plain := payload(10<<20 + 5)
	blob := &testBlob{bytes: zstded(t, plain)}
	d := c.Diff(blob.digest(), digest.FromBytes(plain), blob.open)
	wantContent(t, d, plain)
	if n := blob.opened.Load(); n != 2 {
		t.Errorf("reading through took %d passes, want 2", n)
	}
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(3, uint64(i)))
			for range 10 {
				p, off := make([]byte, 100000), r.Int64N(int64(len(plain)-100000))
				if n, err := d.ReadAt(t.Context(), p, off); err != nil || !bytes.Equal(p[:n], plain[off:off+int64(n)]) {
					t.Errorf("at %d: %d, %v", off, n, err)
				}
			}
		})
	}
	wg.Wait()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := d.ReadAt(ctx, make([]byte, 1), 0); err != context.Canceled {
		t.Errorf("%v, want context.Canceled", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}
