package layer

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
)

// entriesOf goes through a table that is not packed.
func entriesOf(ref TOCRef, b []byte, end int64, emit func(*imgsrc.File) error) (*Chunks, error) {
	s := &tocScan{end: end, emit: emit, stargz: !ref.zstd, allow: func(int64) {}}
	if err := s.scan(bytes.NewReader(b)); err != nil {
		return nil, err
	}
	return s.finish(), nil
}

// tocSeed is a table with an entry of each kind: what makes real ones takes longer than all that a fuzzer does with them.
const tocSeed = `{"version":1,"entries":[
{"type":"dir","name":"d/","mode":493,"modtime":"2024-01-02T03:04:05.678Z","uid":1,"gid":2},
{"type":"reg","name":"d/small","size":3,"modtime":"2024-01-02T03:04:05Z","offset":73,"endOffset":95,"digest":"SUM","xattrs":{"user.a":"Yg=="}},
{"type":"reg","name":"d/together","size":4,"offset":73,"innerOffset":512,"digest":"SUM","chunkDigest":"SUM"},
{"type":"reg","name":"large","size":300,"offset":200,"digest":"SUM","chunkSize":100,"chunkDigest":"SUM"},
{"type":"chunk","name":"large","offset":300,"chunkOffset":100,"chunkSize":100,"chunkType":"zeros"},
{"type":"chunk","name":"large","offset":400,"chunkOffset":200,"chunkDigest":"SUM"},
{"type":"reg","name":"empty"},{"type":"hardlink","name":"l","linkName":"large"},{"type":"symlink","name":"s","linkName":"../x"},
{"type":"char","name":"c","devMajor":1,"devMinor":3},{"type":"block","name":"b"},{"type":"fifo","name":"f"},
{"type":"reg","name":".prefetch.landmark","size":1,"offset":600,"digest":"SUM"}],"tarSplitDigest":{"a":[1,null]}}`

// Whatever a table of contents says, what is made of it stays within its bounds, and is the same twice.
func FuzzTOC(f *testing.F) {
	seed := []byte(strings.ReplaceAll(tocSeed, "SUM", digest.FromString("").String()))
	if chunks, err := entriesOf(TOCRef{}, seed, 10_000, nil); err != nil || chunks.Files() != 4 {
		f.Fatal(err)
	}
	f.Add(seed, int64(10_000))
	f.Add([]byte(`{"version":1,"entries":[{"type":"reg","name":"a","size":4611686018427387904,"chunkType":"zeros"}]}`), int64(100))
	f.Add(fmt.Appendf(nil, `{"version":1,"entries":[{"type":"reg","name":"a","size":1,"offset":%d,"digest":"%s"}]}`, math.MaxInt64-9, digest.FromString("")), int64(math.MaxInt64))
	var nothing []byte // of each chunk
	f.Fuzz(func(t *testing.T, b []byte, end int64) {
		for _, ref := range []TOCRef{{}, {zstd: true}} {
			var files []imgsrc.File
			chunks, err := entriesOf(ref, b, end, func(x *imgsrc.File) error {
				files = append(files, *x)
				return nil
			})
			if err != nil {
				if !errors.Is(err, imgsrc.ErrUnsupported) && !errors.Is(err, imgsrc.ErrDamaged) {
					t.Fatal(err)
				}
				continue
			}
			if !json.Valid(b) && !json.Valid(bytes.TrimSpace(b)) && len(files) == 0 {
				continue // something follows the table: its digest matches, so that is how it was made
			}
			for i, c := range chunks.list {
				if c.size <= 0 || c.at < 0 || !c.zeros && (c.off < 0 || c.off >= c.end || c.end > end || c.inner < 0 || c.size+c.inner > maxChunk) {
					t.Fatalf("chunk %d: %+v of %d", i, c, end)
				}
				if s := chunks.Snap(c.off); !c.zeros && (s > c.off || s < 0) {
					t.Fatalf("chunk at %d is cut at %d", c.off, s)
				}
			}
			for _, x := range files {
				body := imgsrc.Body{Path: x.Name, Size: x.Stored, Where: x.Where}
				for _, at := range []int64{0, x.Stored / 2, x.Stored - 1, x.Stored} {
					n, err := chunks.Read(context.Background(), body, make([]byte, 10), at, func(_ context.Context, n int) ([]byte, error) {
						if int64(len(nothing)) < chunks.list[n].size {
							nothing = make([]byte, chunks.list[n].size)
						}
						return nothing[:chunks.list[n].size], nil
					})
					if want := max(0, min(10, x.Stored-at)); at >= 0 && int64(n) != want || err != nil && err != io.EOF {
						t.Fatalf("%q at %d of %d: %d bytes, %v", x.Name, at, x.Stored, n, err)
					}
				}
			}
			if !slices.IsSortedFunc(chunks.starts, cmp.Compare) {
				t.Fatal("starts are not in order")
			}
			for i := range chunks.list {
				if turn := chunks.Turn(i); turn < 0 || turn >= chunks.Files() {
					t.Fatalf("chunk %d is of file %d of %d", i, turn, chunks.Files())
				}
			}
		}
	})
}

// Where a table of contents is said to be, it lies within the blob.
func FuzzTOCPlace(f *testing.F) {
	footer := "\x1f\x8b\x08\x04\x00\x00\x00\x00\x00\xff\x1a\x00SG\x16\x0000000000000003e8STARGZ" + strings.Repeat("\x00", 13)
	if off, ok := parseStargzFooter([]byte(footer)); off != 1000 || !ok {
		f.Fatal(off)
	}
	f.Add([]byte(footer), "1:2:3:1", int64(5000))
	f.Add([]byte(footer), "9223372036854775807:1:1:1", int64(math.MaxInt64))
	sum := digest.FromString("")
	f.Fuzz(func(t *testing.T, b []byte, position string, size int64) {
		if off, ok := parseStargzFooter(b); ok && off < 0 {
			t.Fatal(off)
		}
		if r, err := FindTOC(map[string]string{chunkedChecksum: sum.String(), chunkedPosition: position}, size); err == nil &&
			(r.off <= 0 || r.packed <= 0 || r.off+r.packed > size || r.packed > maxPackedTOC || r.plain > maxTOC) {
			t.Fatalf("%q of %d: %+v", position, size, r)
		}
		// What is read lies within the blob, and as much as was asked for is had of it.
		for _, ref := range []TOCRef{{size: size}, {size: int64(len(b))}} {
			_, err := ref.ReadTOC(t.Context(), func(_ context.Context, from, to int64) ([]byte, error) {
				if from < 0 || from > to || to > ref.size {
					t.Fatalf("bytes %d to %d of %d", from, to, ref.size)
				}
				if to-from > 2<<20 {
					return nil, io.ErrUnexpectedEOF
				}
				part := make([]byte, to-from)
				if tail := from - (ref.size - int64(len(b))); tail >= 0 {
					copy(part, b[tail:])
				} else {
					copy(part[min(-tail, int64(len(part))):], b)
				}
				return part, nil
			})
			if err == nil {
				t.Fatalf("a table without a digest")
			}
		}
	})
}
