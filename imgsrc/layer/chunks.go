package layer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/layer/inflate"
)

const (
	// maxChunk is how many bytes a chunk may have, with what stands before it in its stream: it is in memory as a whole.
	maxChunk = 64 << 20
	// maxChunks is how many chunks a layer may have: they take some 400 MiB for as long as its files are read. Of those that
	// tools make, as many are 256 GiB.
	maxChunks = 1 << 22
	// slack is how many bytes a compressed stream may have beyond twice what is in it.
	slack = 64 << 10
)

// A chunk is bytes of a file that lie together in the blob, and are compressed on their own.
type chunk struct {
	off, end int64 // where in the blob
	inner    int64 // uncompressed bytes from off to the chunk
	at, size int64 // which bytes of the file
	zeros    bool  // none are in the blob
	sum      [sumLen]byte
}

// Chunks is where in a blob the bodies of a layer's files lie. It is immutable.
type Chunks struct {
	list   []chunk
	starts []int64 // where compressed streams begin, in order, and at last where they end
	turns  turns
}

// Memory is what it occupies, in bytes.
func (t *Chunks) Memory() int64 {
	return int64(len(t.list))*88 + int64(len(t.starts))*8 + t.turns.memory()
}

// Range is where in the blob chunk n lies: none of it, if that is empty.
func (t *Chunks) Range(n int) (from, to int64) { return t.list[n].off, t.list[n].end }

// Size is how many bytes chunk n has when it is unpacked, with what stands before it in its stream.
func (t *Chunks) Size(n int) int64 { return t.list[n].inner + t.list[n].size }

// Snap returns the last place that is no further than at, and where nothing would be cut in two.
func (t *Chunks) Snap(at int64) int64 {
	i, found := slices.BinarySearch(t.starts, at)
	if found || i == 0 {
		return at
	}
	return t.starts[i-1]
}

// Of calls each with the numbers of the chunks that have a body's bytes, from an offset on, until it returns false. What
// is a body of another layer is not asked for.
func (t *Chunks) Of(b imgsrc.Body, from int64, each func(n int) bool) error {
	first, count := int(uint32(b.Where)), int(b.Where>>32)
	if b.Size == 0 {
		return nil
	}
	if first > len(t.list) || count > len(t.list)-first || count == 0 {
		return fmt.Errorf("%w: %q is not in the table of contents", imgsrc.ErrDamaged, b.Path)
	}
	i, found := slices.BinarySearchFunc(t.list[first:first+count], from, func(c chunk, at int64) int {
		switch {
		case c.at+c.size <= at:
			return -1
		case c.at > at:
			return 1
		}
		return 0
	})
	if !found {
		return nil
	}
	for n := first + i; n < first+count && each(n); n++ {
	}
	return nil
}

// Read reads from a body as Files.ReadBody does. unpacked returns a chunk's bytes.
func (t *Chunks) Read(ctx context.Context, b imgsrc.Body, p []byte, off int64, unpacked func(ctx context.Context, n int) ([]byte, error)) (int, error) {
	if off < 0 || off >= b.Size {
		return 0, io.EOF
	}
	var end error
	if int64(len(p)) > b.Size-off {
		p, end = p[:b.Size-off], io.EOF
	}
	done := 0
	var err error
	if bad := t.Of(b, off, func(n int) bool {
		c := &t.list[n]
		at := off + int64(done) - c.at
		if at < 0 || at >= c.size || done == len(p) {
			return false
		}
		if c.zeros {
			k := int(min(int64(len(p)-done), c.size-at))
			clear(p[done : done+k])
			done += k
			return true
		}
		var body []byte
		if body, err = unpacked(ctx, n); err != nil {
			return false
		}
		done += copy(p[done:], body[at:])
		return true
	}); bad != nil {
		return 0, bad
	}
	if err == nil && done == len(p) {
		err = end
	} else if err == nil {
		err = io.EOF
	}
	return done, err
}

// Unpack returns the bytes of chunk n, out of those that the blob has at its range. Error: imgsrc.ErrDamaged if they are
// not what the table of contents says.
func (t *Chunks) Unpack(n int, packed []byte) (b []byte, err error) {
	c := &t.list[n]
	defer func() {
		if r := recover(); r != nil { // bytes from outside are met here
			err = fmt.Errorf("panic: %v", r)
		}
		if err != nil {
			err = fmt.Errorf("the %d bytes at %d of the blob: %w: %w", len(packed), c.off, imgsrc.ErrDamaged, err)
		}
	}()
	switch Detect(packed[:min(len(packed), HeadLen)]) {
	case Gzip:
		z := inflaters.Get().(*inflate.Reader)
		z.Reset(bytes.NewReader(packed))
		b, err = c.from(z)
		z.Reset(nil)
		inflaters.Put(z)
	case Zstd:
		b, err = c.fromZstd(packed)
	default:
		err = fmt.Errorf("no gzip and no zstd begins there")
	}
	if err != nil {
		return nil, err
	}
	if sha256.Sum256(b) != c.sum {
		return nil, fmt.Errorf("they do not match the chunk's digest")
	}
	return b, nil
}

// from reads the chunk out of its stream.
func (c *chunk) from(z io.Reader) ([]byte, error) {
	if _, err := io.CopyN(io.Discard, z, c.inner); err != nil {
		return nil, err
	}
	b := make([]byte, c.size)
	_, err := io.ReadFull(z, b)
	return b, err
}

// wholeFrames decodes frames at once, which takes no window beside the result: that is many times a chunk.
var wholeFrames = sync.OnceValues(func() (*zstd.Decoder, error) {
	return zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderMaxMemory(maxChunk))
})

func (c *chunk) fromZstd(packed []byte) ([]byte, error) {
	z, err := wholeFrames()
	if err != nil {
		return nil, err
	}
	b, err := z.DecodeAll(packed, make([]byte, 0, c.inner+c.size))
	if err == nil && int64(len(b)) >= c.inner+c.size {
		return b[c.inner : c.inner+c.size : c.inner+c.size], nil
	}
	// Something else follows that is not whole, or is large. A window can be that many times a chunk, too.
	streams <- struct{}{}
	defer func() { <-streams }()
	s, err := zstd.NewReader(bytes.NewReader(packed), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true))
	if err != nil {
		return nil, err
	}
	defer s.Close()
	return c.from(s)
}

// streams are how many chunks are unpacked at a time that take a window.
var streams = make(chan struct{}, 2)
