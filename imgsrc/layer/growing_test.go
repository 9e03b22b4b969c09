package layer

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
)

// gated is a blob whose second half comes when the gate opens, and ends in an error if it is to fail.
type gated struct {
	bytes []byte
	gate  chan struct{}
	fail  error
}

func (g *gated) open(ctx context.Context) (io.ReadCloser, error) {
	half := len(g.bytes) / 2
	rest := io.Reader(bytes.NewReader(g.bytes[half:]))
	return io.NopCloser(io.MultiReader(bytes.NewReader(g.bytes[:half]), readerFunc(func(p []byte) (int, error) {
		select {
		case <-g.gate:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
		if g.fail != nil {
			return 0, g.fail
		}
		return rest.Read(p)
	}))), nil
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// known returns a cache that knows a layer and does not have its bytes any more.
func evicted(t *testing.T, blob []byte, plain []byte) *Cache {
	t.Helper()
	dir := t.TempDir()
	b := &testBlob{bytes: blob}
	wantContent(t, testCache(t, dir, 0).Diff(b.digest(), digest.FromBytes(plain), b.open), plain)
	for _, f := range files(t, dir, diffKind) {
		if err := os.Remove(f); err != nil {
			t.Fatal(err)
		}
	}
	return testCache(t, dir, 0)
}

// What has arrived of a layer that was evicted is read before the rest has.
func TestReadAsItArrives(t *testing.T) {
	plain := payload(8 * chunkSize)
	blob := gzipped(t, plain)
	c := evicted(t, blob, plain)
	g := &gated{bytes: blob, gate: make(chan struct{})}
	d := c.Diff(digest.FromBytes(blob), digest.FromBytes(plain), g.open)
	if size, err := d.Size(t.Context()); size != int64(len(plain)) || err != nil {
		t.Errorf("size %d, %v", size, err)
	}
	p := make([]byte, 1000)
	if _, err := d.ReadAt(t.Context(), p, chunkSize-500); err != nil || !bytes.Equal(p, plain[chunkSize-500:][:1000]) {
		t.Errorf("the beginning, before the end has come: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan error)
	go func() {
		_, err := d.ReadAt(ctx, make([]byte, 10), 7*chunkSize)
		left <- err
	}()
	cancel()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("a reader who leaves: %v", err)
	}
	close(g.gate)
	wantContent(t, d, plain)
}

// A layer that turns out not to be what it was fails its readers when that is known, and nothing of it is kept.
func TestArrivingDamaged(t *testing.T) {
	plain := payload(8 * chunkSize)
	blob := gzipped(t, plain)
	c := evicted(t, blob, plain)
	g := &gated{bytes: blob, gate: make(chan struct{}), fail: io.EOF}
	d := c.Diff(digest.FromBytes(blob), digest.FromBytes(plain), g.open)
	p := make([]byte, 1000)
	if _, err := d.ReadAt(t.Context(), p, 0); err != nil || !bytes.Equal(p, plain[:1000]) {
		t.Errorf("the beginning: %v", err)
	}
	failed := make(chan error)
	go func() {
		_, err := d.ReadAt(context.Background(), make([]byte, 10), 7*chunkSize)
		failed <- err
	}()
	close(g.gate)
	if err := <-failed; !errors.Is(err, imgsrc.ErrDamaged) {
		t.Errorf("the end that does not come: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(c.dir.Name(), diffKind, "*", "*")); left != nil {
		t.Errorf("kept: %v", left)
	}
}

// Tags that were edited are not believed.
func TestTagsEdited(t *testing.T) {
	plain := payload(3 * chunkSize)
	blob := gzipped(t, plain)
	c := evicted(t, blob, plain)
	kept := files(t, filepath.Dir(c.dir.Name()), tagsKind+diffKind)
	if len(kept) != 1 {
		t.Fatal(kept)
	}
	b, err := os.ReadFile(kept[0])
	if err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if err := os.WriteFile(kept[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
	src := &testBlob{bytes: blob}
	wantContent(t, c.Diff(src.digest(), digest.FromBytes(plain), src.open), plain)
	if again, err := os.ReadFile(kept[0]); err != nil || bytes.Equal(again, b) {
		t.Errorf("the edited tags are still there: %v", err)
	}
}

// A blob that is gone is one failure for each reader, not a search without an end.
func TestArrivingGone(t *testing.T) {
	plain := payload(2 * chunkSize)
	blob := gzipped(t, plain)
	c := evicted(t, blob, plain)
	gone := errors.New("gone")
	var opens atomic.Int64
	d := c.Diff(digest.FromBytes(blob), digest.FromBytes(plain), func(context.Context) (io.ReadCloser, error) {
		opens.Add(1)
		return nil, gone
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for range 20 {
		if _, err := d.ReadAt(ctx, make([]byte, 10), 0); !errors.Is(err, gone) {
			t.Fatalf("%v, want %v", err, gone)
		}
	}
	if n := opens.Load(); n > 40 {
		t.Errorf("opened %d times for 20 reads", n)
	}
}
