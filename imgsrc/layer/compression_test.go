package layer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"slices"
	"testing"
	"testing/iotest"

	"github.com/ulikunitz/xz"

	"github.com/imgfs/imgfs/imgsrc"
)

func decompressAll(b []byte) ([]byte, Compression, error) {
	r, kind, err := Decompress(bytes.NewReader(b))
	if err != nil {
		return nil, kind, err
	}
	defer r.Close()
	out, err := io.ReadAll(r)
	return out, kind, err
}

func TestDecompress(t *testing.T) {
	plain := payload(1<<18 + 77777)
	a, b := plain[:1<<17], plain[1<<17:]
	skippable := []byte{0x5a, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3}
	for _, test := range []struct {
		name string
		in   []byte
		want []byte
		kind Compression
	}{
		{"nothing", nil, nil, None},
		{"one byte", []byte{0x1f}, []byte{0x1f}, None},
		{"plain", plain, plain, None},
		{"a name like bzip2", []byte("BZh9.txt\x00\x00\x00"), []byte("BZh9.txt\x00\x00\x00"), None},
		{"gzip", gzipped(t, plain), plain, Gzip},
		{"gzip of nothing", gzipped(t, nil), nil, Gzip},
		{"gzip, three members, one empty", gzipped(t, a, nil, b), plain, Gzip},
		{"gzip and zeros", append(gzipped(t, plain), make([]byte, 1000)...), plain, Gzip},
		{"zstd", zstded(t, plain), plain, Zstd},
		{"zstd, two frames", zstded(t, a, b), plain, Zstd},
		{"zstd, skippable frames", slices.Concat(skippable, zstded(t, a), skippable, zstded(t, b)), plain, Zstd},
		{"xz, CRC64", xzed(t, xz.CRC64, plain), plain, Xz},
		{"xz, CRC32", xzed(t, xz.CRC32, plain), plain, Xz},
		{"xz, SHA-256", xzed(t, xz.SHA256, plain), plain, Xz},
		{"xz, no check", xzed(t, xz.None, plain), plain, Xz},
		{"xz, two streams", xzed(t, xz.CRC64, a, b), plain, Xz},
		{"xz and zeros", append(xzed(t, xz.CRC64, plain), make([]byte, 8)...), plain, Xz},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, kind, err := decompressAll(test.in)
			if err != nil {
				t.Fatal(err)
			}
			if kind != test.kind || !bytes.Equal(got, test.want) {
				t.Errorf("%s of %d bytes, want %s of %d", kind, len(got), test.kind, len(test.want))
			}
		})
	}
}

// The streams of the tools that people compress with.
func TestDecompressCommands(t *testing.T) {
	plain := payload(1<<18 + 77777)
	for _, test := range []struct {
		kind Compression
		args []string
	}{
		{Gzip, []string{"gzip", "-9"}},
		{Bzip2, []string{"bzip2"}},
		{Xz, []string{"xz", "-9"}},
		{Xz, []string{"xz", "-T2", "--block-size=128KiB"}},
		{Xz, []string{"xz", "-0", "--check=none"}},
		{Zstd, []string{"zstd", "-19"}},
		{Zstd, []string{"zstd", "--long=27", "-T2"}},
	} {
		for _, b := range [][]byte{plain, nil} {
			in := command(t, b, test.args[0], test.args[1:]...)
			twice := slices.Concat(in, in) // each of them takes files after each other
			got, kind, err := decompressAll(twice)
			if err != nil || kind != test.kind || !bytes.Equal(got, slices.Concat(b, b)) {
				t.Errorf("%v of %d bytes, twice: %s of %d bytes, %v", test.args, len(b), kind, len(got), err)
			}
		}
	}
}

func TestDecompressDamaged(t *testing.T) {
	plain := payload(1<<18 + 3)
	for name, in := range map[string][]byte{
		"gzip":  gzipped(t, plain),
		"zstd":  zstded(t, plain),
		"xz":    xzed(t, xz.CRC64, plain),
		"bzip2": command(t, plain, "bzip2"),
	} {
		t.Run(name, func(t *testing.T) {
			flipped := slices.Clone(in)
			flipped[len(in)/2] ^= 0x10
			for what, broken := range map[string][]byte{
				"cut in the middle": in[:len(in)/2],
				"cut at the end":    in[:len(in)-1],
				"flipped":           flipped,
				"garbage after it":  append(slices.Clone(in), "garbage"...),
				"header only":       in[:HeadLen],
			} {
				if _, _, err := decompressAll(broken); !errors.Is(err, imgsrc.ErrDamaged) {
					t.Errorf("%s: %v, want ErrDamaged", what, err)
				}
			}
		})
	}
}

// A disk that fails is not a layer that is damaged.
func TestDecompressSourceError(t *testing.T) {
	for name, in := range map[string][]byte{"gzip": gzipped(t, payload(1<<20)), "zstd": zstded(t, payload(1<<18)), "xz": xzed(t, xz.CRC64, payload(1<<18)), "none": payload(1 << 20)} {
		r, _, err := Decompress(io.MultiReader(bytes.NewReader(in[:len(in)/2]), iotest.ErrReader(io.ErrNoProgress)))
		if err == nil {
			_, err = io.Copy(io.Discard, r)
			r.Close()
		}
		if !errors.Is(err, io.ErrNoProgress) || errors.Is(err, imgsrc.ErrDamaged) {
			t.Errorf("%s: %v, want the reader's own error", name, err)
		}
	}
}

// A few bytes must not make a decompressor allocate gigabytes.
func TestDecompressWindow(t *testing.T) {
	in := xzed(t, xz.CRC64, payload(1000))
	header := in[12 : 12+(int(in[12])+1)*4]
	i := bytes.IndexByte(header[2:], 0x21) + 2
	header[i+2] = 37 // 2 GiB - 512 MiB
	binary.LittleEndian.PutUint32(header[len(header)-4:], crc32.ChecksumIEEE(header[:len(header)-4]))
	if _, _, err := decompressAll(in); !errors.Is(err, imgsrc.ErrUnsupported) {
		t.Errorf("xz: %v, want ErrUnsupported", err)
	}
	long := command(t, payload(1<<20), "zstd", "--long=30", "--no-check")
	if _, _, err := decompressAll(long); !errors.Is(err, imgsrc.ErrUnsupported) {
		t.Errorf("zstd: %v, want ErrUnsupported", err)
	}
}

func FuzzDecompress(f *testing.F) {
	for _, b := range [][]byte{nil, []byte("hello"), payload(3000)} {
		f.Add(b)
		f.Add(gzipped(f, b, b))
		f.Add(zstded(f, b, b))
		f.Add(xzed(f, xz.CRC64, b, b))
		f.Add(xzed(f, xz.SHA256, b))
	}
	f.Add([]byte("BZh9\x17\x72\x45\x38\x50\x90\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, kind, err := Decompress(bytes.NewReader(b))
		if err == nil {
			var n int64
			n, err = io.Copy(io.Discard, io.LimitReader(r, 16<<20))
			r.Close()
			if kind == None && (err != nil || n != int64(len(b))) {
				t.Errorf("uncompressed: %d bytes of %d, %v", n, len(b), err)
			}
		}
		if err != nil && !errors.Is(err, imgsrc.ErrDamaged) && !errors.Is(err, imgsrc.ErrUnsupported) {
			t.Errorf("neither damaged nor unsupported: %v", err)
		}
	})
}
