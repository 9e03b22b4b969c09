package inflate

import (
	"fmt"
	"hash/crc32"
	"io"
)

const (
	inSize     = 128 << 10
	outSize    = 1 << 19
	outMask    = outSize - 1
	windowSize = 32 << 10
	maxMatch   = 258
	// slack is how much a fast step may write beyond what it says.
	slack = 16
	// fastIn and fastOut are what a fast step may need.
	fastIn  = 16
	fastOut = 2 + maxMatch + slack
)

// A CorruptError says where a stream is no gzip stream.
type CorruptError struct {
	Offset int64 // bytes of the compressed stream before the place
	What   string
}

func (e CorruptError) Error() string {
	return fmt.Sprintf("gzip: corrupt at offset %d: %s", e.Offset, e.What)
}

// A Reader decompresses the members of a gzip stream one after the other. Zeros after the last one are ignored.
type Reader struct {
	src    io.Reader
	srcErr error // what src said at its end

	in       []byte
	ip       int   // the next byte of in
	iend     int   // the end of what was read
	consumed int64 // bytes before in[0]

	bits  uint64 // bits not used yet, the next one lowest; those behind nbits are right, or 0
	nbits uint

	out   *[outSize]byte
	op    int // where the next byte goes
	rp    int // the next byte to hand out
	sp    int // the next byte to checksum
	sum   uint32
	size  uint32 // bytes of the member before sp
	start int    // where the member begins, as far as matches may reach back

	state  state
	last   bool // the block is its member's last
	stored int  // bytes left of a stored block
	err    error

	lit     [litSize]uint32
	dist    [distSize]uint32
	lengths [numLit + numDist]uint8
}

// state is what comes next in the stream.
type state uint8

const (
	atMember state = iota // or the end
	atBlock
	inStored
	inCodes
	atTrailer
)

// NewReader returns a reader of the gzip stream that r holds. It reads r to its end.
//
// Errors of Read: CorruptError; io.ErrUnexpectedEOF if the stream ends early; those of r as they are.
func NewReader(r io.Reader) *Reader {
	z := &Reader{in: make([]byte, inSize), out: new([outSize]byte)}
	z.Reset(r)
	return z
}

// Reset makes the reader read another stream.
func (z *Reader) Reset(r io.Reader) {
	z.src, z.srcErr, z.err = r, nil, nil
	z.ip, z.iend, z.consumed, z.bits, z.nbits = 0, 0, 0, 0, 0
	z.op, z.rp, z.sp, z.start = 0, 0, 0, 0
	z.state, z.last = atMember, false
}

// Read reads decompressed bytes. What was decoded before an error is handed out first.
func (z *Reader) Read(p []byte) (int, error) {
	for z.rp == z.op && len(p) > 0 {
		if z.err != nil {
			return 0, z.err
		}
		z.slide()
		z.err = z.decode()
		z.checksum()
	}
	n := copy(p, z.out[z.rp:z.op])
	z.rp += n
	return n, nil
}

// slide makes room behind the window, when all is handed out.
func (z *Reader) slide() {
	if z.op <= windowSize || z.op < outSize/2 {
		return
	}
	keep := z.op - windowSize
	copy(z.out[:], z.out[keep:z.op])
	z.start = max(0, z.start-keep)
	z.op, z.rp, z.sp = windowSize, windowSize, windowSize
}

func (z *Reader) checksum() {
	z.sum = crc32.Update(z.sum, crc32.IEEETable, z.out[z.sp:z.op])
	z.size += uint32(z.op - z.sp)
	z.sp = z.op
}

// decode goes on until there is something to hand out and no room for more, or there is no more.
func (z *Reader) decode() error {
	for {
		var err error
		switch z.state {
		case atMember:
			err = z.member()
		case atBlock:
			err = z.block()
		case inStored:
			err = z.copyStored()
		case inCodes:
			err = z.codes()
		case atTrailer:
			err = z.trailer()
		}
		if err != nil || z.op >= outSize-fastOut {
			return err
		}
	}
}

func (z *Reader) corrupt(what string) error {
	return CorruptError{z.consumed + int64(z.ip) - int64(z.nbits/8), what}
}

// more reads on when all of in is used up. Errors: io.ErrUnexpectedEOF at the end.
func (z *Reader) more() error {
	z.consumed += int64(z.iend)
	z.ip, z.iend = 0, 0
	for z.srcErr == nil {
		n, err := z.src.Read(z.in)
		z.iend, z.srcErr = n, err
		if n > 0 {
			return nil
		}
	}
	if z.srcErr == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return z.srcErr
}

// need makes sure of n bits, 32 at the most.
func (z *Reader) need(n uint) error {
	for z.nbits < n {
		if z.ip == z.iend {
			if err := z.more(); err != nil {
				return err
			}
		}
		z.bits |= uint64(z.in[z.ip]) << z.nbits
		z.ip++
		z.nbits += 8
	}
	return nil
}

func (z *Reader) take(n uint) (uint32, error) {
	if err := z.need(n); err != nil {
		return 0, err
	}
	v := uint32(z.bits & (1<<n - 1))
	z.drop(n)
	return v, nil
}

func (z *Reader) drop(n uint) {
	z.bits >>= n
	z.nbits -= n
}

// align drops what is left of a byte, and gives the whole bytes back to in, as far as they came out of what is there now; the
// others stay.
func (z *Reader) align() {
	z.drop(z.nbits & 7)
	for z.nbits > 0 && z.ip > 0 {
		z.ip--
		z.nbits -= 8
	}
	if z.nbits == 0 {
		z.bits = 0
	} else {
		z.bits &= 1<<z.nbits - 1
	}
}

// readByte reads a byte of a stream that is aligned.
func (z *Reader) readByte() (byte, error) {
	v, err := z.take(8)
	return byte(v), err
}

// symbol reads a code bit by bit where it must, and returns its entry, with the code's bits dropped and the extra ones not.
func (z *Reader) symbol(table []uint32, first uint) (uint32, error) {
	for {
		e := table[z.bits&(1<<first-1)]
		used := uint(0)
		if e&link != 0 && e&special == link {
			used = uint(e & 0xff)
			e = table[uint64(e>>16)+z.bits>>used&(1<<(e>>8&0x1f)-1)]
		}
		used += uint(e >> 8 & 0x1f)
		if e != 0 && used <= z.nbits {
			z.drop(used)
			return e, nil
		}
		if e == 0 && z.nbits >= maxCode {
			return 0, nil
		}
		if err := z.need(z.nbits&^7 + 8); err != nil {
			// Bits that are not there were taken for zeros: without them there is no code, or not this one.
			return 0, err
		}
	}
}

// copyStored copies a stored block.
func (z *Reader) copyStored() error {
	for z.stored > 0 {
		room := outSize - fastOut - z.op
		if room <= 0 {
			return nil
		}
		if z.nbits > 0 { // whole bytes that were read ahead
			b, err := z.readByte()
			if err != nil {
				return err
			}
			z.out[z.op] = b
			z.op++
			z.stored--
			continue
		}
		if z.ip == z.iend {
			if err := z.more(); err != nil {
				return err
			}
		}
		n := copy(z.out[z.op:z.op+min(room, z.stored)], z.in[z.ip:z.iend])
		z.op += n
		z.ip += n
		z.stored -= n
	}
	z.endBlock()
	return nil
}

func (z *Reader) endBlock() {
	z.state = atBlock
	if z.last {
		z.state = atTrailer
	}
}

// codes decodes a block until it ends, or there is no room.
func (z *Reader) codes() error {
	for z.op < outSize-fastOut {
		if z.iend-z.ip >= fastIn {
			done, err := z.fast()
			if done || err != nil {
				return err
			}
			continue
		}
		done, err := z.slow()
		if done || err != nil {
			return err
		}
	}
	return nil
}

// slow decodes one symbol, and says whether it was the end of the block.
func (z *Reader) slow() (done bool, err error) {
	e, err := z.symbol(z.lit[:], litBits)
	switch {
	case err != nil:
		return false, err
	case e == 0:
		return false, z.corrupt("no such code")
	case e&literal != 0:
		z.out[z.op] = byte(e >> 16)
		z.op++
		return false, nil
	case e&end != 0:
		z.endBlock()
		return true, nil
	}
	length, err := z.value(e)
	if err != nil {
		return false, err
	}
	if e, err = z.symbol(z.dist[:], distBits); err != nil {
		return false, err
	}
	if e == 0 {
		return false, z.corrupt("no such distance code")
	}
	distance, err := z.value(e)
	if err != nil {
		return false, err
	}
	if distance > z.op-z.start {
		return false, z.corrupt("a match before the beginning")
	}
	for range length {
		z.out[z.op] = z.out[z.op-distance]
		z.op++
	}
	return false, nil
}

// value is an entry's length or distance, with the extra bits.
func (z *Reader) value(e uint32) (int, error) {
	more, err := z.take(uint(e&0xff - e>>8&0x1f))
	return int(e>>16) + int(more), err
}
