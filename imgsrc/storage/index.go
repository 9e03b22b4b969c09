package storage

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc64"
	"math"
	"slices"
	"sort"
	"sync"

	"github.com/klauspost/compress/zstd"
)

const (
	// blockBytes is how much of headers and names a block of an index holds before it is packed. Larger ones pack little
	// better, and cost a random read more.
	blockBytes = 64 << 10
	// maxBodyName bounds the name of a body, in bytes. No file system takes a longer path.
	maxBodyName = 16 << 10
	// tarBlock is the unit of a tar, in bytes: every body comes after a header of at least this length.
	tarBlock = 512
	// cachedBlocks is how many unpacked blocks a source keeps: some 100 KiB each.
	cachedBlocks = 24
)

// crcTable is the polynomial of tar-split's checksums.
var crcTable = crc64.MakeTable(crc64.ISO)

var errBlock = errors.New("unpacking block of the index")

// An index is a tar without its bodies: what a layer's tar-split file says, packed. It is immutable once it is built.
type index struct {
	size   int64 // bytes of the tar
	bodies int   // bodies of at least one byte
	blocks []block
	packed []byte // the blocks, compressed, one after the other
}

// A block is a run of pieces of the tar.
type block struct {
	off  int64 // where the first piece stands in the tar
	pos  int   // where the block begins in packed
	body int   // how many bodies come before it
}

// A piece is a run of the tar's bytes: held in the index (raw), or the body of a file.
type piece struct {
	off  int64 // where it stands in the tar
	size int64
	raw  []byte // nil for a body
	body body
}

// A body is the content of one file of the layer.
type body struct {
	n    int    // counts the layer's bodies from 0
	name string // as the tar has it
	size int64
	crc  uint64
}

// memory is what the index occupies, in bytes.
func (x *index) memory() int64 {
	return int64(len(x.packed)) + int64(len(x.blocks))*24
}

// find returns the number of the block that holds the byte at off, which is below size.
func (x *index) find(off int64) int {
	return sort.Search(len(x.blocks), func(i int) bool { return x.blocks[i].off > off }) - 1
}

// unpack returns the pieces of block i.
func (x *index) unpack(dec *zstd.Decoder, i int) ([]piece, error) {
	b, end := x.blocks[i], len(x.packed)
	if i+1 < len(x.blocks) {
		end = x.blocks[i+1].pos
	}
	data, err := dec.DecodeAll(x.packed[b.pos:end], nil)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errBlock, err)
	}
	var pieces []piece
	off, n := b.off, b.body
	for len(data) > 0 {
		kind := data[0]
		size, w := binary.Uvarint(data[1:])
		data = data[1+max(w, 0):]
		p := piece{off: off, size: int64(size)}
		switch kind {
		case pieceRaw:
			p.raw, data = data[:size:size], data[size:]
		case pieceBody:
			crc := binary.BigEndian.Uint64(data)
			length, w := binary.Uvarint(data[8:])
			data = data[8+w:]
			p.body = body{n: n, name: string(data[:length]), size: p.size, crc: crc}
			data = data[length:]
			n++
		}
		pieces = append(pieces, p)
		off += p.size
	}
	return pieces, nil
}

// The kinds of a piece in a packed block: a byte, then the piece's size as a varint, and then the bytes of a raw piece,
// or a body's checksum (8 bytes), the length of its name as a varint, and its name.
const (
	pieceRaw = iota
	pieceBody
)

// A builder makes an index of the segments and bodies that it is given in the tar's order.
type builder struct {
	limit int64 // the tar may not be longer
	enc   *zstd.Encoder

	x       index
	raw     int64  // raw bytes so far
	pending []byte // raw bytes that are not in buf yet
	buf     []byte // the block that is being filled
	bufOff  int64  // where buf's first piece stands in the tar
	bufBody int    // the bodies before it
	bufEnd  int64  // where its last piece ends
}

func newBuilder(limit int64) (*builder, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedDefault),
		zstd.WithWindowSize(2*blockBytes), zstd.WithEncoderCRC(true), zstd.WithLowerEncoderMem(true))
	if err != nil {
		return nil, err
	}
	return &builder{limit: limit, enc: enc}, nil
}

// segment adds bytes of the tar that are no body. It keeps nothing of p.
func (b *builder) segment(p []byte) error {
	if int64(len(p)) > b.limit-b.x.size {
		return fmt.Errorf("the tar is longer than the %d bytes that it should have", b.limit)
	}
	b.x.size += int64(len(p))
	b.raw += int64(len(p))
	for len(p) > 0 {
		n := min(len(p), blockBytes-len(b.pending))
		b.pending = append(b.pending, p[:n]...)
		p = p[n:]
		if len(b.pending) == blockBytes {
			b.flushRaw()
		}
	}
	return nil
}

// file adds the body of a file.
func (b *builder) file(name string, size int64, checksum []byte) error {
	switch {
	case size < 0 || size > b.limit-b.x.size:
		return fmt.Errorf("the tar is longer than the %d bytes that it should have", b.limit)
	case len(checksum) != crc64.Size:
		return fmt.Errorf("the checksum of %.100q has %d bytes", name, len(checksum))
	case len(name) > maxBodyName:
		return fmt.Errorf("the name of a body has %d bytes", len(name))
	case int64(b.x.bodies) >= b.raw/tarBlock:
		return fmt.Errorf("the body of %.100q has no header", name)
	}
	b.flushRaw()
	b.begin()
	b.buf = binary.AppendUvarint(append(b.buf, pieceBody), uint64(size))
	b.buf = append(b.buf, checksum...)
	b.buf = append(binary.AppendUvarint(b.buf, uint64(len(name))), name...)
	b.x.bodies++
	b.x.size += size
	b.bufEnd = b.x.size
	b.flushBlock(blockBytes)
	return nil
}

// begin notes where the block begins, if it is empty. The pending bytes are the first of it, or there are none.
func (b *builder) begin() {
	if len(b.buf) == 0 {
		b.bufOff, b.bufBody = b.bufEnd, b.x.bodies
	}
}

func (b *builder) flushRaw() {
	if len(b.pending) == 0 {
		return
	}
	b.begin()
	b.buf = binary.AppendUvarint(append(b.buf, pieceRaw), uint64(len(b.pending)))
	b.buf = append(b.buf, b.pending...)
	b.bufEnd += int64(len(b.pending))
	b.pending = b.pending[:0]
	b.flushBlock(blockBytes)
}

func (b *builder) flushBlock(atLeast int) {
	if len(b.buf) < max(atLeast, 1) {
		return
	}
	b.x.blocks = append(b.x.blocks, block{off: b.bufOff, pos: len(b.x.packed), body: b.bufBody})
	b.x.packed = b.enc.EncodeAll(b.buf, b.x.packed)
	b.buf = b.buf[:0]
}

// index returns what was built. The builder is not used any more.
func (b *builder) index() *index {
	b.flushRaw()
	b.flushBlock(0)
	b.x.packed = slices.Clip(slices.Clone(b.x.packed))
	b.x.blocks = slices.Clip(slices.Clone(b.x.blocks))
	return &b.x
}

// A blockCache keeps the blocks that were unpacked last, of all of a source's indexes.
type blockCache struct {
	dec *zstd.Decoder

	mu     sync.Mutex
	blocks *lru[blockKey, []piece] // guarded by mu
}

type blockKey struct {
	x *index
	i int
}

func newBlockCache() (*blockCache, error) {
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(4), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxMemory(1<<20))
	if err != nil {
		return nil, err
	}
	return &blockCache{dec: dec, blocks: newLRU[blockKey, []piece](cachedBlocks, nil)}, nil
}

// pieces returns the pieces of the tar from the one that holds the byte at off up to the end of its block.
func (c *blockCache) pieces(x *index, off int64) ([]piece, error) {
	key := blockKey{x, x.find(off)}
	c.mu.Lock()
	all, ok := c.blocks.get(key)
	c.mu.Unlock()
	if !ok {
		var err error
		if all, err = x.unpack(c.dec, key.i); err != nil {
			return nil, err
		}
		c.mu.Lock()
		c.blocks.put(key, all, 1)
		c.mu.Unlock()
	}
	i := sort.Search(len(all), func(i int) bool { return all[i].off > off }) - 1
	return all[i:], nil
}

func (c *blockCache) close() {
	c.mu.Lock()
	c.blocks.clear()
	c.mu.Unlock()
}

// unlimited is the limit of a tar whose length is not known.
const unlimited = math.MaxInt64 / 2
