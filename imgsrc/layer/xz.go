package layer

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"hash/crc64"
	"io"
	"slices"

	"github.com/ulikunitz/xz/lzma"

	"github.com/imgfs/imgfs/imgsrc"
)

// An xzReader reads the xz container (The .xz File Format, version 1.2.1) and leaves LZMA2 to the library. The
// library's own container reader allocates whatever dictionary a block asks for, up to 4 GiB, which a hundred bytes of
// input can do.
type xzReader struct {
	in     *countReader
	check  byte      // the kind of check after each block
	blocks uint64    // in this stream
	data   io.Reader // the current block; nil between blocks
	sum    hash.Hash // of the current block; nil if there is no check, or one that is not known
	err    error
}

const (
	xzMagic  = "\xfd7zXZ\x00"
	xzFooter = "YZ"
	xzLZMA2  = 0x21
)

// xzCheckLen is the length of each kind of check (section 2.1.1.2).
var xzCheckLen = [16]int{0, 4, 4, 4, 8, 8, 8, 16, 16, 16, 32, 32, 32, 64, 64, 64}

var crc64Table = crc64.MakeTable(crc64.ECMA)

func newXzReader(br *bufio.Reader) *xzReader {
	x := &xzReader{in: &countReader{br: br}}
	x.err = x.streamHeader()
	return x
}

func (x *xzReader) Read(p []byte) (int, error) {
	for x.err == nil {
		if x.data == nil {
			x.err = x.nextBlock()
			continue
		}
		n, err := x.data.Read(p)
		if x.sum != nil {
			x.sum.Write(p[:n])
		}
		if err == io.EOF {
			err = x.endBlock()
		}
		x.err = err
		if n > 0 || len(p) == 0 {
			return n, nil
		}
	}
	if x.err == io.ErrUnexpectedEOF {
		return 0, fmt.Errorf("ends early: %w", x.err)
	}
	return 0, x.err
}

func (x *xzReader) streamHeader() error {
	var h [12]byte
	if err := x.in.full(h[:]); err != nil {
		return err
	}
	if string(h[:6]) != xzMagic || h[6] != 0 || h[7] > 15 || crc32.ChecksumIEEE(h[6:8]) != binary.LittleEndian.Uint32(h[8:]) {
		return errors.New("invalid stream header")
	}
	x.check, x.blocks = h[7], 0
	return nil
}

// nextBlock reads a block's header, or the end of the stream and the header of the next one. It returns io.EOF after the
// last stream.
func (x *xzReader) nextBlock() error {
	x.in.n = 0
	size, err := x.in.ReadByte()
	if err != nil {
		return unexpected(err)
	}
	if size == 0 {
		return x.endStream()
	}
	header := make([]byte, (int(size)+1)*4)
	header[0] = size
	if err := x.in.full(header[1:]); err != nil {
		return err
	}
	dict, err := parseBlockHeader(header)
	if err != nil {
		return err
	}
	x.in.n = 0 // the header is a multiple of four bytes
	if x.data, err = (lzma.Reader2Config{DictCap: dict}).NewReader2(x.in); err != nil {
		return unexpected(err)
	}
	x.blocks++
	switch x.check {
	case 1:
		x.sum = crc32.NewIEEE()
	case 4:
		x.sum = crc64.New(crc64Table)
	case 10:
		x.sum = sha256.New()
	default:
		x.sum = nil
	}
	return nil
}

// parseBlockHeader returns the size of the dictionary that the block needs.
func parseBlockHeader(h []byte) (dict int, err error) {
	body, sum := h[:len(h)-4], h[len(h)-4:]
	if crc32.ChecksumIEEE(body) != binary.LittleEndian.Uint32(sum) {
		return 0, errors.New("invalid block header")
	}
	flags, r := body[1], bytes.NewReader(body[2:])
	for _, present := range []byte{0x40, 0x80} { // the block's sizes, which the check makes superfluous
		if flags&present != 0 {
			if _, err := binary.ReadUvarint(r); err != nil {
				return 0, errors.New("invalid block header")
			}
		}
	}
	id, err1 := binary.ReadUvarint(r)
	length, err2 := binary.ReadUvarint(r)
	prop, err3 := r.ReadByte()
	switch {
	case errors.Join(err1, err2, err3) != nil:
		return 0, errors.New("invalid block header")
	case flags&0x3c != 0 || flags&0x03 != 0 || id != xzLZMA2:
		return 0, fmt.Errorf("xz stream: %w: a filter other than LZMA2", imgsrc.ErrUnsupported)
	case length != 1 || prop > 40:
		return 0, errors.New("invalid block header")
	}
	size := int64(2|prop&1) << (prop/2 + 11)
	if size > maxWindow {
		return 0, fmt.Errorf("xz stream: %w: a dictionary of %d bytes, of at most %d", imgsrc.ErrUnsupported, size, maxWindow)
	}
	return int(size), nil
}

func (x *xzReader) endBlock() error {
	x.data = nil
	if err := x.in.padding(); err != nil {
		return err
	}
	check := make([]byte, xzCheckLen[x.check])
	if err := x.in.full(check); err != nil {
		return err
	}
	if x.sum == nil {
		return nil
	}
	want := x.sum.Sum(nil)
	if x.check != 10 { // the CRCs are stored little endian, and Sum is big endian
		slices.Reverse(want)
	}
	if !bytes.Equal(check, want) {
		return errors.New("invalid checksum")
	}
	return nil
}

// endStream reads the index, whose first byte has been read, the footer, padding, and the header of the next stream.
func (x *xzReader) endStream() error {
	sum := crc32.NewIEEE()
	sum.Write([]byte{0})
	x.in.tee = sum
	records, err := binary.ReadUvarint(x.in)
	if err == nil && records != x.blocks {
		err = errors.New("invalid index")
	}
	for i := uint64(0); err == nil && i < 2*records; i++ {
		_, err = binary.ReadUvarint(x.in)
	}
	if err == nil {
		err = x.in.padding()
	}
	x.in.tee = nil
	if err != nil {
		return unexpected(err)
	}
	var f [16]byte // the index's checksum, and the footer
	if err := x.in.full(f[:]); err != nil {
		return err
	}
	if binary.LittleEndian.Uint32(f[:]) != sum.Sum32() || string(f[14:]) != xzFooter || f[13] != x.check ||
		binary.LittleEndian.Uint32(f[4:]) != crc32.ChecksumIEEE(f[8:14]) {
		return errors.New("invalid index or footer")
	}
	for {
		b, err := x.in.ReadByte()
		if err != nil {
			return err // io.EOF: the end of it all
		}
		if b != 0 {
			if err := x.in.br.UnreadByte(); err != nil {
				return err
			}
			return x.streamHeader()
		}
	}
}

// A countReader counts the bytes read, because the format aligns to four bytes, and feeds tee if there is one.
type countReader struct {
	br  *bufio.Reader
	n   int64
	tee io.Writer
}

func (c *countReader) Read(p []byte) (int, error) {
	n, err := c.br.Read(p)
	c.n += int64(n)
	if c.tee != nil {
		_, _ = c.tee.Write(p[:n]) // a hash never fails
	}
	return n, err
}

func (c *countReader) ReadByte() (byte, error) {
	var b [1]byte
	_, err := io.ReadFull(c, b[:])
	return b[0], err
}

func (c *countReader) full(p []byte) error {
	_, err := io.ReadFull(c, p)
	return unexpected(err)
}

// padding reads the zeros up to a multiple of four bytes.
func (c *countReader) padding() error {
	for c.n%4 != 0 {
		b, err := c.ReadByte()
		if err != nil {
			return unexpected(err)
		}
		if b != 0 {
			return errors.New("invalid padding")
		}
	}
	return nil
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
