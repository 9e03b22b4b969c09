package layer

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
)

// files lists the cache files of one kind.
func files(t *testing.T, dir, kind string) []string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(filepath.Join(dir, version, kind), func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			names = append(names, path)
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return names
}

func TestDiff(t *testing.T) {
	for _, size := range []int{0, 1, chunkSize - 1, chunkSize, chunkSize + 1, 3*chunkSize + 12345} {
		plain := payload(size)
		for _, known := range []bool{true, false} {
			dir := t.TempDir()
			blob := &testBlob{bytes: gzipped(t, plain)}
			diffID, kind := digest.FromBytes(plain), diffKind
			if !known {
				diffID, kind = "", blobKind
			}
			c := testCache(t, dir, 0)
			d := c.Diff(blob.digest(), diffID, blob.open)
			wantContent(t, d, plain)
			if n := len(files(t, dir, kind)); n != 1 {
				t.Errorf("%d files in %s, want 1", n, kind)
			}
			// After Close the file is opened again, and another cache finds it too.
			if err := errors.Join(d.Close(), d.Close()); err != nil {
				t.Fatal(err)
			}
			wantContent(t, d, plain)
			wantContent(t, testCache(t, dir, 0).Diff(blob.digest(), diffID, blob.open), plain)
			if n := blob.opened.Load(); n != 1 {
				t.Errorf("the blob was opened %d times, want once", n)
			}
			if n := len(files(t, dir, partDir)); n != 0 {
				t.Errorf("%d part files are left", n)
			}
		}
	}
}

func TestReadAt(t *testing.T) {
	plain := payload(3*chunkSize + 12345)
	size := int64(len(plain))
	blob := &testBlob{bytes: zstded(t, plain)}
	d := testCache(t, t.TempDir(), 0).Diff(blob.digest(), digest.FromBytes(plain), blob.open)
	for _, test := range []struct {
		off int64
		len int
		n   int
		err error
	}{
		{0, 0, 0, nil},
		{size, 0, 0, io.EOF},
		{size, 1, 0, io.EOF},
		{size + 1<<40, 1, 0, io.EOF},
		{size - 1, 1, 1, nil},
		{size - 1, 2, 1, io.EOF},
		{0, len(plain), len(plain), nil},
		{0, len(plain) + 1, len(plain), io.EOF},
		{chunkSize - 1, 2, 2, nil},
		{-1, 1, 0, fs.ErrInvalid},
	} {
		p := make([]byte, test.len)
		n, err := d.ReadAt(t.Context(), p, test.off)
		if n != test.n || !errors.Is(err, test.err) {
			t.Errorf("%d bytes at %d: %d, %v, want %d, %v", test.len, test.off, n, err, test.n, test.err)
		} else if n > 0 && !bytes.Equal(p[:n], plain[test.off:test.off+int64(n)]) {
			t.Errorf("%d bytes at %d differ", test.len, test.off)
		}
	}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(2, uint64(i)))
			for range 200 {
				p, off := make([]byte, r.IntN(200000)), r.Int64N(size)
				n, err := d.ReadAt(t.Context(), p, off)
				if err != nil && err != io.EOF || !bytes.Equal(p[:n], plain[off:off+int64(n)]) {
					t.Errorf("%d bytes at %d: %d, %v", len(p), off, n, err)
				}
			}
		})
	}
	wg.Wait()
}

func TestDiffDamaged(t *testing.T) {
	plain := payload(2*chunkSize + 5)
	good := gzipped(t, plain)
	flipped := slices.Clone(good)
	flipped[len(good)/2] ^= 1
	trailing := append(slices.Clone(good), 0, 0) // the same layer, other bytes
	for name, test := range map[string]struct {
		bytes        []byte
		blob, diffID digest.Digest
		names        string // must be in the error
	}{
		"flipped bit":      {flipped, digest.FromBytes(good), digest.FromBytes(plain), digest.FromBytes(good).String()},
		"cut short":        {good[:len(good)/2], digest.FromBytes(good), "", digest.FromBytes(good).String()},
		"other blob":       {trailing, digest.FromBytes(good), digest.FromBytes(plain), digest.FromBytes(trailing).String()},
		"other diff id":    {good, digest.FromBytes(good), digest.FromString("x"), digest.FromBytes(plain).String()},
		"broken, as named": {flipped, digest.FromBytes(flipped), "", digest.FromBytes(flipped).String()},
		"not a digest":     {good, "sha256:../../../etc/passwd", "", "etc/passwd"},
		"unknown digest":   {good, "md5:d41d8cd98f00b204e9800998ecf8427e", "", "md5"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			blob := &testBlob{bytes: test.bytes}
			d := testCache(t, dir, 0).Diff(test.blob, test.diffID, blob.open)
			for range 2 {
				_, err := d.Size(t.Context())
				if !errors.Is(err, imgsrc.ErrDamaged) || !strings.Contains(err.Error(), test.names) {
					t.Errorf("%v, want ErrDamaged naming %s", err, test.names)
				}
				if _, err := d.ReadAt(t.Context(), make([]byte, 1), 0); !errors.Is(err, imgsrc.ErrDamaged) {
					t.Errorf("%v, want ErrDamaged", err)
				}
			}
			if n := blob.opened.Load(); n > 1 {
				t.Errorf("a damaged blob was decompressed %d times", n)
			}
			if left := slices.Concat(files(t, dir, diffKind), files(t, dir, blobKind), files(t, dir, partDir)); left != nil {
				t.Errorf("left in the cache: %v", left)
			}
		})
	}
}

// A layer under two compressions is one file; one of the blobs being damaged does not take the other's bytes away.
func TestDiffTwoBlobs(t *testing.T) {
	plain := payload(chunkSize + 5)
	diffID := digest.FromBytes(plain)
	good := &testBlob{bytes: zstded(t, plain)}
	bad := &testBlob{bytes: gzipped(t, plain)[:1000], gate: make(chan struct{})}
	c := testCache(t, t.TempDir(), 0)
	broken, sound := c.Diff(bad.digest(), diffID, bad.open), c.Diff(good.digest(), diffID, good.open)
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := broken.Size(t.Context()); !errors.Is(err, imgsrc.ErrDamaged) {
			t.Errorf("%v, want ErrDamaged", err)
		}
	})
	for bad.opened.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	wg.Go(func() {
		if size, err := sound.Size(t.Context()); err != nil || size != int64(len(plain)) {
			t.Errorf("%d, %v", size, err)
		}
	})
	close(bad.gate)
	wg.Wait()
	wantContent(t, broken, plain) // whose bytes it is makes no difference
}

// An error that is not the blob's fault is not remembered.
func TestDiffSourceError(t *testing.T) {
	plain := payload(chunkSize + 5)
	blob := &testBlob{bytes: gzipped(t, plain)}
	fail := true
	d := testCache(t, t.TempDir(), 0).Diff(blob.digest(), digest.FromBytes(plain), func(ctx context.Context) (io.ReadCloser, error) {
		if fail {
			return io.NopCloser(io.MultiReader(bytes.NewReader(blob.bytes[:500]), iotest.ErrReader(unix.EIO))), nil
		}
		return blob.open(ctx)
	})
	if _, err := d.Size(t.Context()); !errors.Is(err, unix.EIO) || errors.Is(err, imgsrc.ErrDamaged) {
		t.Errorf("%v, want EIO", err)
	}
	fail = false
	wantContent(t, d, plain)
}

func TestDiffOnePass(t *testing.T) {
	plain := payload(2 * chunkSize)
	blob := &testBlob{bytes: gzipped(t, plain), gate: make(chan struct{})}
	c := testCache(t, t.TempDir(), 0)

	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan error)
	go func() {
		_, err := c.Diff(blob.digest(), digest.FromBytes(plain), blob.open).Size(ctx)
		left <- err
	}()
	for blob.opened.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	cancel() // the pass is under way, and cannot end before the gate opens
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want context.Canceled", err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() { wantContentIn(t, c.Diff(blob.digest(), digest.FromBytes(plain), blob.open), plain) })
	}
	close(blob.gate)
	wg.Wait()
	if n := blob.opened.Load(); n != 1 {
		t.Errorf("the blob was opened %d times, want once", n)
	}
}

// wantContentIn is wantContent for other goroutines than the test's own.
func wantContentIn(t *testing.T, c imgsrc.Content, want []byte) {
	got, err := readAll(t.Context(), c)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, want %d, %v", len(got), len(want), err)
	}
}

func TestClose(t *testing.T) {
	plain := payload(chunkSize)
	blob := &testBlob{bytes: gzipped(t, plain), gate: make(chan struct{})}
	before := descriptors(t)
	c, err := OpenCache(t.TempDir(), 0, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	done := &testBlob{bytes: zstded(t, plain)}
	wantContent(t, c.Diff(done.digest(), digest.FromBytes(plain), done.open), plain)
	d := c.Diff(blob.digest(), "", blob.open)
	waiting := make(chan error)
	go func() {
		_, err := d.Size(context.Background())
		waiting <- err
	}()
	for blob.opened.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-waiting; !errors.Is(err, fs.ErrClosed) {
		t.Errorf("during: %v, want ErrClosed", err)
	}
	if _, err := d.Size(t.Context()); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("after: %v, want ErrClosed", err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors open, %d before", after, before)
	}
}

// A pass that is not wanted any more ends where it is, although little of its blob stands for very much.
func TestPassCancelled(t *testing.T) {
	plain := make([]byte, 64*chunkSize)
	for _, b := range [][]byte{gzipped(t, plain), zstded(t, plain)} {
		ctx, cancel := context.WithCancel(t.Context())
		blob := &testBlob{bytes: b}
		written := 0
		_, err := runPass(ctx, blobSource{blob: blob.digest(), open: blob.open}, defaultBomb, func([]byte, int64, uint32) error {
			written++
			cancel()
			return nil
		})
		if !errors.Is(err, context.Canceled) || written != 1 {
			t.Errorf("%d MiB after it was cancelled, %v", written, err)
		}
		cancel()
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}

// A content that was closed holds no descriptor.
func TestCloseContent(t *testing.T) {
	c := testCache(t, t.TempDir(), 0)
	before := descriptors(t)
	for i := range 50 {
		plain := payload(100 + i)
		blob := &testBlob{bytes: gzipped(t, plain)}
		d := c.Diff(blob.digest(), digest.FromBytes(plain), blob.open)
		wantContent(t, d, plain)
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if after := descriptors(t); after != before || len(c.entries) != 0 {
		t.Errorf("%d descriptors open, %d before; %d entries", after, before, len(c.entries))
	}
}
