package export

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/imgfs/imgfs/imgsrc"
)

// readerOf reads from bytes, now and then with an io.EOF at the very end, as an io.ReaderAt may.
func readerOf(b []byte) Reader {
	return func(_ context.Context, p []byte, off int64) (int, error) {
		n, err := bytes.NewReader(b).ReadAt(p, off)
		if err == nil && off+int64(n) == int64(len(b)) && n%2 == 0 {
			err = io.EOF
		}
		return n, err
	}
}

// randomArchive is an archive of random segments, and the bytes that it has.
func randomArchive(r *rand.Rand) (*Archive, []byte) {
	a, want := &Archive{}, []byte{}
	for range r.IntN(20) {
		b := make([]byte, []int{0, 1, 7, 511, 512, 513, 5000}[r.IntN(7)])
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		if r.IntN(2) == 0 {
			a.text(b)
			want = append(want, b...)
			continue
		}
		name := fmt.Sprint("member-", r.Uint32())
		want = append(want, appendHeader(nil, &header{name: name, typ: typeRegular, mode: 0o644, size: int64(len(b))})...)
		want = append(append(want, b...), padding(int64(len(b)))...)
		a.body(name, 0, int64(len(b)), readerOf(b))
	}
	return a, want
}

// checkReads compares reads anywhere with the bytes that there are, several at once.
func checkReads(t testing.TB, seed uint64, want []byte, readAt func(ctx context.Context, p []byte, off int64) (int, error)) {
	t.Helper()
	var wg sync.WaitGroup
	for reader := range uint64(4) {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(seed, reader))
			for range 50 {
				off := r.IntN(len(want) + 600)
				p := make([]byte, []int{0, 1, 3, 511, 512, 513, 4096, len(want) + 700}[r.IntN(8)])
				n, err := readAt(t.Context(), p, int64(off))
				rest := want[min(off, len(want)):]
				k := min(len(p), len(rest))
				switch {
				case n != k || !bytes.Equal(p[:n], rest[:k]):
					t.Errorf("seed %d: %d bytes at %d: got %d, want %d, or others", seed, len(p), off, n, k)
				case k < len(p) && err != io.EOF, k == len(p) && err != nil && err != io.EOF:
					t.Errorf("seed %d: %d bytes at %d of %d: %v", seed, len(p), off, len(want), err)
				}
			}
		})
	}
	wg.Wait()
}

func TestArchiveReads(t *testing.T) {
	for seed := range uint64(200) {
		a, want := randomArchive(rand.New(rand.NewPCG(seed, 99)))
		if size, err := a.Size(t.Context()); err != nil || size != int64(len(want)) {
			t.Fatalf("seed %d: size %d, %v, want %d", seed, size, err, len(want))
		}
		checkReads(t, seed, want, a.ReadAt)
	}
}

func TestArchiveFailures(t *testing.T) {
	bad := errors.New("bad")
	fail := func(context.Context, []byte, int64) (int, error) { return 3, bad }
	a := &Archive{}
	a.body("short", 0, 100, readerOf(make([]byte, 40)))
	a.body("silent", 0, 100, func(context.Context, []byte, int64) (int, error) { return 0, nil })
	a.body("bad", 0, 100, fail)
	a.body("sound", 0, 100, readerOf(make([]byte, 100)))
	p := make([]byte, 10)
	for off, want := range map[int64]error{512: nil, 512 + 35: imgsrc.ErrDamaged, 1024 + 512: imgsrc.ErrDamaged, 2048 + 512 + 5: bad, 3072 + 512: nil} {
		if _, err := a.ReadAt(t.Context(), p, off); !errors.Is(err, want) || want == nil && err != nil {
			t.Errorf("reading at %d: %v, want %v", off, err, want)
		}
	}
	if _, err := a.ReadAt(t.Context(), p, -1); err == nil || err == io.EOF {
		t.Errorf("reading at -1: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.ReadAt(ctx, p, 3072+512); !errors.Is(err, context.Canceled) {
		t.Errorf("with a context that has ended: %v", err)
	}
}

func FuzzArchive(f *testing.F) {
	f.Add(uint64(1), int64(0), 100)
	f.Add(uint64(2), int64(511), 2)
	f.Fuzz(func(t *testing.T, seed uint64, off int64, length int) {
		a, want := randomArchive(rand.New(rand.NewPCG(seed, 99)))
		p := make([]byte, uint(length)%20000)
		n, err := a.ReadAt(t.Context(), p, off)
		if off < 0 {
			if err == nil || err == io.EOF || n != 0 {
				t.Fatalf("at %d: %d, %v", off, n, err)
			}
			return
		}
		rest := want[min(off, int64(len(want))):]
		if k := min(len(p), len(rest)); n != k || !bytes.Equal(p[:k], rest[:k]) || (k < len(p)) != (err == io.EOF) {
			t.Fatalf("%d bytes at %d: %d, %v", len(p), off, n, err)
		}
	})
}
