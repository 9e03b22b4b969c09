package export

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/test/needs"
)

// sparseFile is a file of this size with letters in its extents.
func sparseFile(extents []imgsrc.Extent, size int64) []byte {
	b := make([]byte, size)
	for i, x := range extents {
		for k := range x.Len {
			b[x.Off+k] = byte('a' + i%26)
		}
	}
	return b
}

// randomExtents are extents of a file, in order.
func randomExtents(r *rand.Rand) (extents []imgsrc.Extent, size int64) {
	for range r.IntN(6) {
		x := imgsrc.Extent{Off: size + []int64{0, 1, 511, 512, 5000, 100000}[r.IntN(6)], Len: []int64{0, 1, 4, 511, 512, 513, 3000}[r.IntN(7)]}
		extents, size = append(extents, x), x.Off+x.Len
	}
	return extents, size + []int64{0, 1, 512, 3333, 70000}[r.IntN(5)]
}

func TestSparse(t *testing.T) {
	written := 0
	for seed := range uint64(500) {
		extents, size := randomExtents(rand.New(rand.NewPCG(seed, 3)))
		before := slices.Clone(extents)
		want := sparseFile(extents, size)
		s := newSparseBody(extents, size)
		if !slices.Equal(before, extents) {
			t.Fatalf("seed %d: the extents were changed: %v", seed, extents)
		}
		if s == nil {
			continue
		}
		written++
		data := make([]byte, s.data())
		if n, err := s.reader(readerOf(want))(t.Context(), data, 0); n != len(data) || err != nil {
			t.Fatalf("seed %d: %d of %d, %v", seed, n, len(data), err)
		}
		checkReads(t, seed, data, asContent(s.reader(readerOf(want))))
		for i, x := range s.extents {
			if x.Off%blockSize != 0 || x.Len%blockSize != 0 && i < len(s.extents)-1 {
				t.Errorf("seed %d: extent %v is not of blocks", seed, x)
			}
		}
		body := append(slices.Clone(s.text), data...)
		for _, name := range []string{"dir/sparse", strings.Repeat("n", 200), strings.Repeat("d/", 150) + "s"} {
			h := &header{name: name, typ: typeRegular, size: int64(len(body)), sparse: true, realSize: size}
			got, content := readBack(t, h, body)
			if got.Name != name || got.Size != size || !bytes.Equal(content, want) {
				t.Errorf("seed %d: %v of %d is read as %+v", seed, extents, size, got)
			}
		}
	}
	if written < 100 {
		t.Errorf("only %d of 500 files are sparse in a tar", written)
	}
}

// asContent adds the io.EOF that a Reader may leave out.
func asContent(r Reader) Reader {
	return func(ctx context.Context, p []byte, off int64) (int, error) {
		n, err := r(ctx, p, off)
		if err == nil && n < len(p) {
			err = io.EOF
		}
		return n, err
	}
}

// GNU tar, which reads each extent from the beginning of a block, unpacks the same, and what follows.
func TestSparseGNU(t *testing.T) {
	needs.Programs(t, "tar")
	l := &memLayer{}
	want := map[string][]byte{}
	for seed := range uint64(40) {
		extents, size := randomExtents(rand.New(rand.NewPCG(seed, 3)))
		file := sparseFile(extents, size)
		var data []byte
		for _, x := range extents {
			data = append(data, file[x.Off:x.Off+x.Len]...)
		}
		name := string(rune('A'+seed%26)) + strings.Repeat("x", int(seed))
		l.add(imgsrc.File{Name: name, Type: '0', Mode: 0o644, Extents: append([]imgsrc.Extent{}, extents...), Size: size}, data)
		want[name] = file
	}
	m := treeOf(t, l)
	dir := t.TempDir()
	archive := filepath.Join(dir, "archive.tar")
	if err := os.WriteFile(archive, m.whole(t, layOut(t, m)), 0o600); err != nil {
		t.Fatal(err)
	}
	needs.Run(t, "tar", "-x", "-f", archive, "-C", dir, "--no-same-owner")
	for name, file := range want {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Equal(got, file) {
			t.Errorf("%s: %d bytes, want %d, or others, %v", name, len(got), len(file), err)
		}
	}
}
