package blobs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
)

const earlySize = imgsrc.Withheld + 1<<20

// earlyStore is a store of one blob that is longer than what is withheld, in which nothing is hashed until it is let go; flip
// is a byte that is another than the digest says, unless it is negative.
func earlyStore(t *testing.T, flip int) (c imgsrc.Content, want []byte, file string, letGo func()) {
	t.Helper()
	want = make([]byte, earlySize)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(want)
	d := digest.FromBytes(want)
	s, dir := storeOf(t)
	if flip >= 0 {
		want[flip] ^= 1
	}
	file = filepath.Join(dir, d.Encoded())
	if err := os.WriteFile(file, want, 0o644); err != nil {
		t.Fatal(err)
	}
	setAge(t, file, time.Hour)
	return openBlob(t, s, d), want, file, stopHashing(s)
}

// verdicts is a context for early reads, and what they depend on.
func verdicts(t *testing.T) (context.Context, map[imgsrc.Verdict]int) {
	all := map[imgsrc.Verdict]int{}
	return imgsrc.WithEarly(t.Context(), func(v imgsrc.Verdict) { all[v]++ }), all
}

// A blob is given out from its beginning while it has not been hashed, but for its end.
func TestEarly(t *testing.T) {
	c, want, _, letGo := earlyStore(t, -1)
	ctx, taken := verdicts(t)
	buf := make([]byte, 100_000)
	off := int64(0)
	for off+int64(len(buf)) <= earlySize-imgsrc.Withheld {
		n, err := c.ReadAt(ctx, buf, off)
		if err != nil || n != len(buf) || string(buf) != string(want[off:off+int64(n)]) {
			t.Fatalf("at %d: %d, %v", off, n, err)
		}
		off += int64(n)
	}
	if len(taken) != 1 {
		t.Fatalf("%d verdicts, want one", len(taken))
	}
	letGo()
	for v := range taken {
		if err := v.Wait(t.Context()); err != nil {
			t.Error(err)
		}
	}
	n := taken[anyOf(taken)]
	if got, err := contentOf(t, c); err != nil || got != string(want) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if _, err := c.ReadAt(ctx, buf, 5); err != nil || taken[anyOf(taken)] != n {
		t.Errorf("%v, or a verdict on what is known", err)
	}
}

func anyOf(m map[imgsrc.Verdict]int) imgsrc.Verdict {
	for v := range m {
		return v
	}
	return nil
}

// Reads that overtake each other are answered all the same.
func TestEarlyOvertaken(t *testing.T) {
	c, want, _, letGo := earlyStore(t, -1)
	defer letGo()
	ctx := imgsrc.WithEarly(t.Context(), func(imgsrc.Verdict) {})
	const size = 128 << 10
	results := make(chan error)
	for off := int64(7 * size); off >= 0; off -= size {
		started := make(chan struct{})
		go func() {
			close(started)
			buf := make([]byte, size)
			_, err := c.ReadAt(ctx, buf, off)
			if err == nil && string(buf) != string(want[off:off+size]) {
				err = errors.New("other bytes")
			}
			results <- err
		}()
		<-started
	}
	for range 8 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
}

// Wherever a byte is wrong, nobody gets the end, nor anything but what follows on what was read, nor, without having asked for
// it, anything at all; and those who have the beginning hear of it.
func TestEarlyDamaged(t *testing.T) {
	for name, flip := range map[string]int{"first": 0, "middle": earlySize / 2, "last": earlySize - 1} {
		t.Run(name, func(t *testing.T) {
			c, _, _, letGo := earlyStore(t, flip)
			ctx, taken := verdicts(t)
			buf := make([]byte, 64<<10)
			if _, err := c.ReadAt(ctx, buf, 0); err != nil {
				t.Fatal(err)
			}
			others := make(chan error)
			for what, read := range map[string]struct {
				ctx context.Context
				off int64
			}{
				"the end":                       {ctx, earlySize - 1000},
				"what goes on into the end":     {ctx, earlySize - imgsrc.Withheld - 999},
				"a part further on":             {ctx, int64(len(buf)) + 1},
				"the beginning, without asking": {t.Context(), 0},
			} {
				go func() {
					n, err := c.ReadAt(read.ctx, make([]byte, 1000), read.off)
					if n == 0 && errors.Is(err, imgsrc.ErrDamaged) {
						err = nil
					} else {
						err = fmt.Errorf("%s: %d bytes, %v, want ErrDamaged", what, n, err)
					}
					others <- err
				}()
			}
			select {
			case err := <-others:
				t.Errorf("not waited for: %v", err)
			default:
			}
			letGo()
			for range 4 {
				if err := <-others; err != nil {
					t.Error(err)
				}
			}
			off, err := int64(len(buf)), error(nil)
			for err == nil {
				var n int
				n, err = c.ReadAt(ctx, buf, off)
				off += int64(n)
			}
			if !errors.Is(err, imgsrc.ErrDamaged) || off > earlySize-imgsrc.Withheld {
				t.Errorf("%d of %d bytes, %v", off, earlySize, err)
			}
			if len(taken) != 1 {
				t.Fatalf("%d verdicts, want one", len(taken))
			}
			if err := anyOf(taken).Wait(t.Context()); !errors.Is(err, imgsrc.ErrDamaged) {
				t.Errorf("%v, want ErrDamaged", err)
			}
			if n, err := c.ReadAt(ctx, buf, 0); n != 0 || !errors.Is(err, imgsrc.ErrDamaged) {
				t.Errorf("afterwards: %d, %v, want ErrDamaged", n, err)
			}
		})
	}
}

// A file that is replaced by another in the middle: what was given out of the first is not verified any more.
func TestEarlyReplaced(t *testing.T) {
	c, want, file, letGo := earlyStore(t, -1)
	ctx, taken := verdicts(t)
	buf := make([]byte, 64<<10)
	if _, err := c.ReadAt(ctx, buf, 0); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, append([]byte{want[0] ^ 1}, want[1:]...), 0o644); err != nil {
		t.Fatal(err)
	}
	letGo()
	if n, err := c.ReadAt(ctx, buf, int64(len(buf))); n != 0 || !errors.Is(err, imgsrc.ErrDamaged) {
		t.Errorf("%d, %v, want ErrDamaged", n, err)
	}
	if err := anyOf(taken).Wait(t.Context()); err == nil {
		t.Error("it was found right")
	}
	if err := os.WriteFile(file, want, 0o644); err != nil {
		t.Fatal(err)
	}
	setAge(t, file, time.Minute)
	if n, err := c.ReadAt(ctx, buf, earlySize-100); n != 100 || err != io.EOF {
		t.Errorf("repaired: %d, %v", n, err)
	}
}

// Who waits for a blob does not wait for all those of which somebody has read the beginning.
func TestWaitedForFirst(t *testing.T) {
	c, want, _, letGo := earlyStore(t, -1)
	s := c.(*blob).store
	ctx, taken := verdicts(t)
	if _, err := c.ReadAt(ctx, make([]byte, 100), 0); err != nil {
		t.Fatal(err)
	}
	select {
	case <-anyOf(taken).(*check).want:
		t.Error("nobody waits for it")
	default:
	}
	<-s.urgent // one that is free; all slots hash what nobody waits for
	if n, err := c.ReadAt(ctx, make([]byte, 100), 1000); n != 100 || err != nil {
		t.Errorf("in the middle: %d, %v", n, err)
	}
	if got, err := contentOf(t, c); err != nil || got != string(want) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	s.urgent <- struct{}{}
	letGo()
}
