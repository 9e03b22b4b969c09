package inflate

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"testing/iotest"

	klauspost "github.com/klauspost/compress/gzip"
)

// texts are of every kind that a compressor treats in its own way.
func texts() map[string][]byte {
	r := rand.New(rand.NewPCG(1, 2))
	random := make([]byte, 300000)
	for i := range random {
		random[i] = byte(r.Uint32())
	}
	few := make([]byte, 400000)
	for i := range few {
		few[i] = "abcdefgh\n"[r.IntN(9)]
	}
	mixed := append(append(bytes.Clone(few), random...), bytes.Repeat([]byte("a longer text that comes again "), 50000)...)
	var near []byte // matches of all short distances
	for d := 1; d < 40; d++ {
		near = append(near, bytes.Repeat(random[d:2*d], 300/d+2)...)
	}
	return map[string][]byte{
		"empty": {}, "one": {'x'}, "zeros": make([]byte, 2000000), "random": random, "few": few, "mixed": mixed, "near": near,
		"far": append(append(bytes.Clone(random[:32768]), few[:10]...), random[:32768]...),
	}
}

func packed(t testing.TB, text []byte, level int) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, level)
	if err != nil {
		t.Fatal(err)
	}
	w.Name, w.Comment, w.Extra = "a name", "a comment", []byte("extra")
	_, err = w.Write(text)
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestReader(t *testing.T) {
	for name, text := range texts() {
		for _, level := range []int{flate.HuffmanOnly, flate.NoCompression, 1, 6, 9} {
			b := packed(t, text, level)
			for how, r := range map[string]io.Reader{
				"whole": bytes.NewReader(b), "halves": iotest.HalfReader(bytes.NewReader(b)), "with the end": iotest.DataErrReader(bytes.NewReader(b)),
			} {
				if got, err := io.ReadAll(NewReader(r)); err != nil || !bytes.Equal(got, text) {
					t.Errorf("%s, level %d, %s: %d bytes, want %d, %v", name, level, how, len(got), len(text), err)
				}
			}
			if len(text) < 400000 {
				if got, err := io.ReadAll(NewReader(iotest.OneByteReader(bytes.NewReader(b)))); err != nil || !bytes.Equal(got, text) {
					t.Errorf("%s, level %d, byte by byte: %d bytes, want %d, %v", name, level, len(got), len(text), err)
				}
			}
		}
	}
}

func TestMembers(t *testing.T) {
	a, b := texts()["few"], texts()["zeros"]
	var stream []byte
	for _, text := range [][]byte{a, {}, b, a} {
		stream = append(stream, packed(t, text, 6)...)
	}
	want := bytes.Join([][]byte{a, b, a}, nil)
	z := NewReader(nil)
	for what, s := range map[string][]byte{"plain": stream, "with zeros": append(bytes.Clone(stream), make([]byte, 3000)...)} {
		for range 2 {
			z.Reset(bytes.NewReader(s))
			if got, err := io.ReadAll(iotest.OneByteReader(z)); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s: %d bytes, want %d, %v", what, len(got), len(want), err)
			}
		}
	}
	var corrupt CorruptError
	if _, err := io.ReadAll(NewReader(bytes.NewReader(append(stream, "something else"...)))); !errors.As(err, &corrupt) {
		t.Errorf("something behind the members: %v", err)
	}
	if _, err := io.ReadAll(NewReader(io.MultiReader(bytes.NewReader(stream[:1000]), iotest.ErrReader(os.ErrDeadlineExceeded)))); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a source that fails: %v", err)
	}
}

// verdict reads a stream with the standard library, by the rules of this package: zeros at the end are nothing.
func verdict(b []byte) ([]byte, error) {
	r := bytes.NewReader(b)
	z, err := gzip.NewReader(r)
	if err != nil {
		return nil, err
	}
	var all []byte
	for {
		z.Multistream(false)
		text, err := io.ReadAll(z)
		all = append(all, text...)
		if err != nil {
			return all, err
		}
		for r.Len() > 0 {
			if c, _ := r.ReadByte(); c != 0 {
				if err := r.UnreadByte(); err != nil {
					return all, err
				}
				break
			}
		}
		if r.Len() == 0 {
			return all, nil
		}
		if err := z.Reset(r); err != nil {
			return all, err
		}
	}
}

func compare(t *testing.T, b []byte) {
	t.Helper()
	want, wantErr := verdict(b)
	got, err := io.ReadAll(NewReader(bytes.NewReader(b)))
	if errors.Is(wantErr, gzip.ErrHeader) && len(b) > 512 {
		return // the standard library takes no names of more than 512 bytes
	}
	if (err == nil) != (wantErr == nil) {
		t.Errorf("%v, and the standard library: %v", err, wantErr)
	}
	if err == nil && !bytes.Equal(got, want) {
		t.Errorf("%d bytes, and the standard library has %d", len(got), len(want))
	}
}

func TestDamaged(t *testing.T) {
	text := append(bytes.Repeat([]byte("damaged or not "), 20), "abcdefghijklmnopqrstuvwxyz"...)
	for _, level := range []int{flate.HuffmanOnly, 0, 9} {
		whole := packed(t, text, level)
		for n := range whole {
			if _, err := io.ReadAll(NewReader(bytes.NewReader(whole[:n]))); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("level %d, cut after %d bytes: %v", level, n, err)
			}
		}
		for i := range 8 * len(whole) {
			b := bytes.Clone(whole)
			b[i/8] ^= 1 << (i % 8)
			if compare(t, b); t.Failed() {
				t.Fatalf("level %d, bit %d", level, i)
			}
		}
	}
}

func FuzzReader(f *testing.F) {
	for _, text := range []string{"", "a", "some text, some text, some more text"} {
		for _, level := range []int{flate.HuffmanOnly, 0, 9} {
			f.Add(packed(f, []byte(text), level))
		}
	}
	f.Add(append(packed(f, []byte("one"), 6), packed(f, bytes.Repeat([]byte("two"), 1000), 6)...))
	f.Fuzz(compareFuzz)
}

// compareFuzz takes a stream without its checksum for one with, so that more than one in four billion get to the end.
func compareFuzz(t *testing.T, b []byte) {
	compare(t, b)
	text, err := io.ReadAll(io.LimitReader(flate.NewReader(bytes.NewReader(b)), 1<<20))
	z := NewReader(io.MultiReader(bytes.NewReader([]byte("\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff")), bytes.NewReader(b)))
	got, _ := io.ReadAll(io.LimitReader(z, 1<<20))
	if err == nil && !bytes.HasPrefix(got, text) {
		t.Errorf("%d bytes, and the standard library has %d others", len(got), len(text))
	}
}

// Against the other readers on files of this machine: IMGFS_BENCH_LAYER may name a compressed layer to take instead.
func BenchmarkReader(b *testing.B) {
	inputs := map[string][]byte{"binaries": pack(b, "/usr/bin/*"), "text": pack(b, "/usr/include/*.h", "/usr/share/perl/*/*.pl", "/usr/share/doc/*/copyright")}
	if name := os.Getenv("IMGFS_BENCH_LAYER"); name != "" {
		layer, err := os.ReadFile(name)
		if err != nil {
			b.Fatal(err)
		}
		inputs = map[string][]byte{"layer": layer}
	}
	for name, in := range inputs {
		for how, open := range map[string]func(io.Reader) (io.Reader, error){
			"this":      func(r io.Reader) (io.Reader, error) { return NewReader(r), nil },
			"klauspost": func(r io.Reader) (io.Reader, error) { return klauspost.NewReader(r) },
			"standard":  func(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) },
		} {
			b.Run(name+"/"+how, func(b *testing.B) {
				buf := make([]byte, 1<<20)
				for b.Loop() {
					r, err := open(bytes.NewReader(in))
					if err != nil {
						b.Fatal(err)
					}
					total := int64(0)
					for err == nil {
						var n int
						n, err = io.ReadFull(r, buf)
						total += int64(n)
					}
					b.SetBytes(total)
				}
			})
		}
	}
}

func pack(b *testing.B, patterns ...string) []byte {
	var text []byte
	for _, p := range patterns {
		names, err := filepath.Glob(p)
		if err != nil {
			b.Fatal(err)
		}
		for _, name := range names {
			if data, err := os.ReadFile(name); err == nil && len(text) < 48<<20 {
				text = append(text, data...)
			}
		}
	}
	return packed(b, text, 6)
}
