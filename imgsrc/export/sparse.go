package export

import (
	"bytes"
	"context"
	"sort"
	"strconv"

	"github.com/imgfs/imgfs/imgsrc"
)

// A sparseBody is a sparse file in a tar, in GNU tar's format 1.0: a map, and what is not holes.
type sparseBody struct {
	text    []byte          // the map, in whole blocks
	extents []imgsrc.Extent // of the file
	starts  []int64         // where each extent is behind the map, and where the last one ends
}

// newSparseBody returns how a file of this size with data in these extents is written. The data is what the archive has of
// the file, blocks of it: GNU tar reads each extent from the beginning of a block, others one extent right behind the other.
// Both are served if all but the last are whole blocks. Nil if that is not shorter than the file.
func newSparseBody(extents []imgsrc.Extent, size int64) *sparseBody {
	b := &sparseBody{starts: []int64{0}}
	data := int64(0)
	for _, x := range extents {
		if x.Len == 0 {
			continue
		}
		from, to := x.Off&^(blockSize-1), size
		if end := x.Off + x.Len; size-end > blockSize {
			to = padded(end)
		}
		if n := len(b.extents); n > 0 && from <= b.extents[n-1].Off+b.extents[n-1].Len {
			last := &b.extents[n-1]
			data += to - (last.Off + last.Len)
			last.Len, b.starts[n] = to-last.Off, data
			continue
		}
		data += to - from
		b.extents, b.starts = append(b.extents, imgsrc.Extent{Off: from, Len: to - from}), append(b.starts, data)
	}
	b.text = sparseMap(b.extents, size)
	if int64(len(b.text))+data >= size {
		return nil
	}
	return b
}

// sparseMap is the number of extents, then the offset and length of each, a number a line, padded to a block. A file that ends
// in a hole has an empty extent at its end.
func sparseMap(extents []imgsrc.Extent, size int64) []byte {
	var b bytes.Buffer
	line := func(v int64) { b.WriteString(strconv.FormatInt(v, 10)); b.WriteByte('\n') }
	n := len(extents)
	open := n == 0 || extents[n-1].Off+extents[n-1].Len < size
	if open {
		n++
	}
	line(int64(n))
	for _, x := range extents {
		line(x.Off)
		line(x.Len)
	}
	if open {
		line(size)
		line(0)
	}
	b.Write(padding(int64(b.Len())))
	return b.Bytes()
}

// data is how many bytes there are behind the map.
func (b *sparseBody) data() int64 { return b.starts[len(b.extents)] }

// reader reads what is behind the map out of the file, whose holes are zeros to its reader.
func (b *sparseBody) reader(file Reader) Reader {
	return func(ctx context.Context, p []byte, off int64) (int, error) {
		n := 0
		for i := sort.Search(len(b.extents), func(i int) bool { return b.starts[i+1] > off }); n < len(p) && i < len(b.extents); i++ {
			at := off + int64(n) - b.starts[i]
			part := p[n:min(int64(len(p)), int64(n)+b.extents[i].Len-at)]
			if err := readBody(ctx, file, part, b.extents[i].Off+at); err != nil {
				return n, err
			}
			n += len(part)
		}
		return n, nil
	}
}
