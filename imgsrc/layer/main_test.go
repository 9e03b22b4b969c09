package layer

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"sync/atomic"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/ulikunitz/xz"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/test/needs"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("IMGFS_TEST_CACHE"); dir != "" {
		os.Exit(cacheProcess(dir))
	}
	os.Exit(m.Run())
}

// payload returns n bytes that compress to about a half, the same for the same n.
func payload(n int) []byte {
	r := rand.New(rand.NewPCG(1, uint64(n)))
	b := make([]byte, 0, n+8)
	for len(b) < n {
		b = binary.LittleEndian.AppendUint64(b, r.Uint64()&0x0f0f0f0f0f0f0f0f)
	}
	return b[:n]
}

func gzipped(t testing.TB, members ...[]byte) []byte {
	var out bytes.Buffer
	for _, m := range members {
		w := gzip.NewWriter(&out)
		must(t, w, m)
	}
	return out.Bytes()
}

func zstded(t testing.TB, frames ...[]byte) []byte {
	var out bytes.Buffer
	for _, f := range frames {
		level := zstd.SpeedDefault
		if len(f) >= 1<<20 { // the race detector makes it slow
			level = zstd.SpeedFastest
		}
		w, err := zstd.NewWriter(&out, zstd.WithEncoderLevel(level))
		if err != nil {
			t.Fatal(err)
		}
		must(t, w, f)
	}
	return out.Bytes()
}

func xzed(t testing.TB, check byte, streams ...[]byte) []byte {
	var out bytes.Buffer
	for _, s := range streams {
		w, err := xz.WriterConfig{CheckSum: check, NoCheckSum: check == xz.None, BlockSize: 3 << 20}.NewWriter(&out)
		if err != nil {
			t.Fatal(err)
		}
		must(t, w, s)
	}
	return out.Bytes()
}

func must(t testing.TB, w io.WriteCloser, b []byte) {
	t.Helper()
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

// command runs b through a command's standard input and output.
func command(t testing.TB, b []byte, name string, args ...string) []byte {
	t.Helper()
	needs.Programs(t, name)
	cmd := exec.Command(name, args...)
	cmd.Stdin = bytes.NewReader(b)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// A blob is a layer that counts how often it is opened.
type testBlob struct {
	bytes  []byte
	opened atomic.Int32
	gate   chan struct{} // if not nil, nothing is read until it is closed
}

func (b *testBlob) open(ctx context.Context) (io.ReadCloser, error) {
	b.opened.Add(1)
	if b.gate != nil {
		select {
		case <-b.gate:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return io.NopCloser(bytes.NewReader(b.bytes)), nil
}

func (b *testBlob) digest() digest.Digest { return digest.FromBytes(b.bytes) }

func testCache(t testing.TB, dir string, limit int64) *Cache {
	t.Helper()
	c, err := OpenCache(dir, limit, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// readAll reads c from its start, in pieces of an odd size.
func readAll(ctx context.Context, c imgsrc.Content) ([]byte, error) {
	size, err := c.Size(ctx)
	if err != nil {
		return nil, err
	}
	b := make([]byte, 0, size)
	buf := make([]byte, 123457)
	for {
		n, err := c.ReadAt(ctx, buf, int64(len(b)))
		b = append(b, buf[:n]...)
		if err == io.EOF {
			if int64(len(b)) != size {
				return b, fmt.Errorf("%d bytes, of a size of %d", len(b), size)
			}
			return b, nil
		}
		if err != nil {
			return b, err
		}
	}
}

func wantContent(t *testing.T, c imgsrc.Content, want []byte) {
	t.Helper()
	got, err := readAll(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("content of %d bytes differs from the %d that went in", len(got), len(want))
	}
}
