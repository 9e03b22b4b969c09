package storage

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc64"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	tarsplit "github.com/vbatts/tar-split/tar/storage"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/sourcetest"
	"github.com/imgfs/imgfs/test/images"
)

func entries(t testing.TB, list ...tarsplit.Entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	for i, e := range list {
		e.Position = i
		if err := enc.Encode(e); err != nil {
			t.Fatal(err)
		}
	}
	return buf.Bytes()
}

func seg(data []byte) tarsplit.Entry {
	return tarsplit.Entry{Type: tarsplit.SegmentType, Payload: data}
}

func fileEntry(name string, data []byte) tarsplit.Entry {
	e := tarsplit.Entry{Type: tarsplit.FileType, Size: int64(len(data))}
	e.SetName(name)
	if len(data) > 0 {
		e.Payload = binary.BigEndian.AppendUint64(nil, crc64.Checksum(data, crcTable))
	}
	return e
}

// A made layer of random segments and bodies reads as the bytes that it was made of, wherever it is read.
func TestIndexHoldsEveryByte(t *testing.T) {
	for seed := range uint64(30) {
		rnd := rand.New(rand.NewPCG(seed, 2))
		dir := t.TempDir()
		var list []tarsplit.Entry
		var want []byte
		for i := range rnd.IntN(200) {
			header := make([]byte, 512*(1+rnd.IntN(3)))
			if rnd.IntN(20) == 0 {
				header = noise(seed, blockBytes+rnd.IntN(4*blockBytes))
			}
			copy(header, fmt.Sprint(i))
			body := noise(uint64(i), max(0, rnd.IntN(3000)-500))
			name := fmt.Sprintf("d%d/\xff%d", i%7, i)
			write(t, body, dir, name)
			list = append(list, seg(header), fileEntry(name, body))
			want = append(append(want, header...), body...)
		}
		end := make([]byte, rnd.IntN(3*blockBytes))
		list, want = append(list, seg(end)), append(want, end...)
		m := newMade(t)
		m.records = nil
		id := fmt.Sprintf("layer%d", seed)
		m.add("localhost/a:1")
		m.records[0].(map[string]any)["layer"] = id
		m.save()
		write(t, images.Gzipped(entries(t, list...)), m.dir, "overlay-layers", id+".tar-split.gz")
		layers := fmt.Sprintf(`[{"id":%q,"diff-digest":%q,"diff-size":%d}]`, id, sha(want), len(want))
		write(t, []byte(layers), m.dir, "overlay-layers", "layers.json")
		if err := os.MkdirAll(filepath.Join(m.dir, "overlay", id), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(dir, filepath.Join(m.dir, "overlay", id, "diff")); err != nil {
			t.Fatal(err)
		}
		diff, err := find(t, m.source, "localhost/a:1").Diff(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		got, err := sourcetest.ReadAll(t.Context(), diff)
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("seed %d: %d bytes of %d, %v", seed, len(got), len(want), err)
		}
		checkReads(t, diff, want)
	}
}

func TestReadTarSplit(t *testing.T) {
	good := entries(t, seg(make([]byte, 512)), fileEntry("x", []byte("body")), seg(make([]byte, 508)))
	zw, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	line := func(s string) []byte { return images.Gzipped([]byte(s)) }
	crc := base64.StdEncoding.EncodeToString(make([]byte, 8))
	header := `{"type":2,"payload":"` + base64.StdEncoding.EncodeToString(make([]byte, 512)) + `"}` + "\n"
	for _, tt := range []struct {
		what string
		data []byte
		size int64 // that the tar must have
		want int64 // that it has; -1: damaged
	}{
		{"gzip", images.Gzipped(good), 1024, 1024},
		{"zstd", zw.EncodeAll(good, nil), 1024, 1024},
		{"size not known", images.Gzipped(good), 0, 1024},
		{"size recorded as -1", images.Gzipped(good), -1, 1024},
		{"without a newline at the end", images.Gzipped(bytes.TrimSpace(good)), 1024, 1024},
		{"no entries", images.Gzipped(nil), 0, 0},
		{"no entries, but a size", images.Gzipped(nil), 1024, -1},
		{"too short", images.Gzipped(good), 1025, -1},
		{"too long", images.Gzipped(good), 1023, -1},
		{"plain", good, 1024, -1},
		{"nothing", nil, 0, -1},
		{"not JSON", line("x\n"), 0, -1},
		{"type", line(`{"type":3}`), 0, -1},
		{"negative", line(header + `{"type":1,"name":"x","size":-1,"payload":"` + crc + `"}`), 0, -1},
		{"huge", line(header + `{"type":1,"name":"x","size":9223372036854775807,"payload":"` + crc + `"}`), 0, -1},
		{"no checksum", line(header + `{"type":1,"name":"x","size":1}`), 0, -1},
		{"no header", line(`{"type":1,"name":"x","size":1,"payload":"` + crc + `"}`), 0, -1},
		{"long name", line(header + `{"type":1,"name":"` + strings.Repeat("n", maxBodyName+1) + `","size":1,"payload":"` + crc + `"}`), 0, -1},
		{"long line", line(strings.Repeat(" ", maxLine+1<<20)), 0, -1},
		{"not base64", line(`{"type":2,"payload":"*"}`), 0, -1},
	} {
		x, err := readTarSplit(t.Context(), bytes.NewReader(tt.data), tt.size)
		if tt.want < 0 && !errors.Is(err, imgsrc.ErrDamaged) || tt.want >= 0 && (err != nil || x.size != tt.want) {
			t.Errorf("%s: %v, %v", tt.what, x, err)
		}
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := readTarSplit(gone, bytes.NewReader(images.Gzipped(good)), 1024); !errors.Is(err, context.Canceled) || errors.Is(err, imgsrc.ErrDamaged) {
		t.Errorf("indexing without end: %v", err)
	}
	bad := errors.New("bad disk")
	if _, err := readTarSplit(t.Context(), io.MultiReader(bytes.NewReader(images.Gzipped(good)[:20]), failing{bad}), 1024); !errors.Is(err, bad) || errors.Is(err, imgsrc.ErrDamaged) {
		t.Errorf("a bad disk: %v", err)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func FuzzReadTarSplit(f *testing.F) {
	f.Add(entries(f, seg(make([]byte, 512)), fileEntry("x", []byte("body")), seg(make([]byte, 508))), true, int64(1024))
	f.Add(entries(f, seg(make([]byte, 1100)), fileEntry("\xff", make([]byte, 99)), fileEntry("", nil)), true, int64(0))
	f.Add([]byte("{}\n{}\n"), true, int64(0))
	f.Add([]byte{0x1f, 0x8b, 8, 0}, false, int64(5))
	f.Add([]byte{0x28, 0xb5, 0x2f, 0xfd}, false, int64(-1))
	f.Fuzz(func(t *testing.T, data []byte, pack bool, size int64) {
		if pack {
			data = images.Gzipped(data)
		}
		x, err := readTarSplit(t.Context(), bytes.NewReader(data), size)
		if err != nil {
			if !errors.Is(err, imgsrc.ErrDamaged) {
				t.Fatalf("an error of another kind: %v", err)
			}
			return
		}
		cache, err := newBlockCache()
		if err != nil {
			t.Fatal(err)
		}
		defer cache.dec.Close()
		off, n := int64(0), 0
		for off < x.size {
			pieces, err := cache.pieces(x, off)
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range pieces {
				if p.off != off || p.size <= 0 || p.raw == nil && p.body.n != n {
					t.Fatalf("at %d the piece %+v", off, p)
				}
				if p.raw == nil {
					n++
				}
				off += p.size
			}
		}
		if off != x.size || n != x.bodies || size > 0 && x.size != size {
			t.Fatalf("%d bytes of %d (%d), %d bodies of %d", off, x.size, size, n, x.bodies)
		}
	})
}

// manyFiles is the tar-split of a layer with n files, with headers as a package manager's files have them.
func manyFiles(t testing.TB, n int) []byte {
	t.Helper()
	var list []tarsplit.Entry
	rnd := rand.New(rand.NewPCG(1, 1))
	for i := range n {
		name := fmt.Sprintf("usr/lib/python3/dist-packages/package%d/module_%d.py", i/40, i)
		header := make([]byte, 512*3) // the padding before it, a PAX record, the header
		copy(header[512:], fmt.Sprintf("30 mtime=17%d.%d\n", rnd.IntN(1e8), rnd.IntN(1e9)))
		copy(header[1024:], fmt.Sprintf("%s\x00%011o\x00%08o", name, rnd.IntN(1e9), rnd.IntN(1e6)))
		e := fileEntry(name, noise(uint64(i), 8))
		e.Size = 1 + int64(rnd.IntN(20_000))
		list = append(list, seg(header), e)
	}
	return images.Gzipped(entries(t, list...))
}

func TestIndexIsSmall(t *testing.T) {
	const n = 20_000
	x, err := readTarSplit(t.Context(), bytes.NewReader(manyFiles(t, n)), 0)
	if err != nil {
		t.Fatal(err)
	}
	per := (x.memory() + 8*n) / n
	t.Logf("%d files: %d KiB, %d bytes each", n, (x.memory()+8*n)>>10, per)
	if per > 100 {
		t.Errorf("%d bytes for each file", per)
	}
}

func BenchmarkIndex(b *testing.B) {
	data := manyFiles(b, 20_000)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := readTarSplit(b.Context(), bytes.NewReader(data), 0); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRandomRead(b *testing.B) {
	x, err := readTarSplit(b.Context(), bytes.NewReader(manyFiles(b, 20_000)), 0)
	if err != nil {
		b.Fatal(err)
	}
	c, err := newBlockCache()
	if err != nil {
		b.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(1, 1))
	for b.Loop() {
		if _, err := c.pieces(x, rnd.Int64N(x.size)); err != nil {
			b.Fatal(err)
		}
	}
}
