package inflate

import (
	"encoding/binary"
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

const (
	flagCRC     = 1 << 1
	flagExtra   = 1 << 2
	flagName    = 1 << 3
	flagComment = 1 << 4
)

// member reads a member's header (RFC 1952, section 2.3). Between members there may be the end of the stream, and before
// that, zeros.
func (z *Reader) member() error {
	first := z.consumed == 0 && z.ip == 0 && z.nbits == 0
	var b byte
	for skip := true; skip; skip = b == 0 && !first {
		if z.nbits == 0 && z.ip == z.iend {
			err := z.more()
			if err == io.ErrUnexpectedEOF && !first {
				return io.EOF
			}
			if err != nil {
				return err
			}
		}
		var err error
		if b, err = z.readByte(); err != nil {
			return err
		}
	}
	sum := crc32.Update(0, crc32.IEEETable, []byte{b})
	next := func() (byte, error) {
		b, err := z.readByte()
		sum = crc32.Update(sum, crc32.IEEETable, []byte{b})
		return b, err
	}
	var h [9]byte
	for i := range h {
		var err error
		if h[i], err = next(); err != nil {
			return err
		}
	}
	if b != 0x1f || h[0] != 0x8b || h[1] != 8 {
		return z.corrupt("no gzip header")
	}
	flags := h[2]
	if flags&flagExtra != 0 {
		lo, err := next()
		if err != nil {
			return err
		}
		hi, err := next()
		if err != nil {
			return err
		}
		for range int(lo) | int(hi)<<8 {
			if _, err := next(); err != nil {
				return err
			}
		}
	}
	for _, flag := range []byte{flagName, flagComment} {
		for c := byte(1); flags&flag != 0 && c != 0; {
			var err error
			if c, err = next(); err != nil {
				return err
			}
		}
	}
	if flags&flagCRC != 0 {
		want := uint16(sum)
		got, err := z.take(16)
		if err != nil {
			return err
		}
		if uint16(got) != want {
			return z.corrupt("the header's checksum is wrong")
		}
	}
	z.checksum()
	z.sum, z.size, z.start = 0, 0, z.op
	z.state = atBlock
	return nil
}

// block reads the header of a block (RFC 1951, section 3.2.3).
func (z *Reader) block() error {
	head, err := z.take(3)
	if err != nil {
		return err
	}
	z.last = head&1 != 0
	switch head >> 1 {
	case 0:
		z.align()
		size, err := z.take(16)
		if err != nil {
			return err
		}
		inverse, err := z.take(16)
		if err != nil {
			return err
		}
		if size != inverse^0xffff {
			return z.corrupt("a stored block's length is wrong")
		}
		z.stored, z.state = int(size), inStored
		return nil
	case 1:
		for i := range 288 {
			switch {
			case i < 144, i >= 280:
				z.lengths[i] = 8
			case i < 256:
				z.lengths[i] = 9
			default:
				z.lengths[i] = 7
			}
		}
		build(z.lit[:], litBits, z.lengths[:288], lengthOf[:])
		for i := range 32 {
			z.lengths[i] = 5
		}
		build(z.dist[:], distBits, z.lengths[:32], distanceOf[:])
		z.state = inCodes
		return nil
	case 2:
		return z.dynamic()
	}
	return z.corrupt("a block of no known type")
}

// codeOrder is the order in which the lengths of the code lengths' codes come.
var codeOrder = [19]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

// codeMeaning are entries that hold the symbols themselves.
var codeMeaning = func() (m [19]uint32) {
	for i := range m {
		m[i] = literal | uint32(i)<<16
	}
	return m
}()

// dynamic reads the codes of a block that brings its own (section 3.2.7).
func (z *Reader) dynamic() error {
	counts, err := z.take(14)
	if err != nil {
		return err
	}
	lits, dists, codes := int(counts&31)+257, int(counts>>5&31)+1, int(counts>>10)+4
	if lits > 286 || dists > 30 {
		return z.corrupt("too many codes")
	}
	var lengths [19]uint8
	for _, symbol := range codeOrder[:codes] {
		n, err := z.take(3)
		if err != nil {
			return err
		}
		lengths[symbol] = uint8(n)
	}
	const first = 7
	var table [1 << first]uint32
	if !build(table[:], first, lengths[:], codeMeaning[:]) {
		return z.corrupt("no code for the lengths of codes")
	}
	all := z.lengths[:lits+dists]
	for i := 0; i < len(all); {
		symbol, err := z.symbol(table[:], first)
		if err != nil {
			return err
		}
		if symbol&literal == 0 {
			return z.corrupt("no code for the length of a code")
		}
		s := symbol >> 16
		if s < 16 {
			all[i] = uint8(s)
			i++
			continue
		}
		repeat, extra, value := 3, uint(2), uint8(0)
		switch s {
		case 16:
			if i == 0 {
				return z.corrupt("nothing to repeat")
			}
			value = all[i-1]
		case 17:
			extra = 3
		case 18:
			repeat, extra = 11, 7
		}
		more, err := z.take(extra)
		if err != nil {
			return err
		}
		repeat += int(more)
		if i+repeat > len(all) {
			return z.corrupt("more lengths than codes")
		}
		for range repeat {
			all[i] = value
			i++
		}
	}
	if !build(z.lit[:], litBits, all[:lits], lengthOf[:]) || !build(z.dist[:], distBits, all[lits:], distanceOf[:]) {
		return z.corrupt("lengths that are no code")
	}
	z.state = inCodes
	return nil
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

// trailer compares what a member says at its end with what it had.
func (z *Reader) trailer() error {
	z.align()
	z.checksum()
	sum, err := z.take(32)
	if err != nil {
		return err
	}
	size, err := z.take(32)
	if err != nil {
		return err
	}
	if sum != z.sum || size != z.size {
		return z.corrupt("the checksum or length of what it holds is wrong")
	}
	z.state = atMember
	return nil
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

// fast decodes while there is enough of everything that nothing has to be looked at twice.
func (z *Reader) fast() (done bool, err error) {
	in, out := z.in[:z.iend], z.out
	ip, op := z.ip, z.op
	b, n := z.bits, z.nbits
	lastIn, lastOut := z.iend-fastIn, outSize-fastOut
	wrong := ""
loop:
	for ip <= lastIn && op < lastOut {
		// At least 56 bits. What is above n is right already, or 0.
		b |= binary.LittleEndian.Uint64(in[ip:]) << (n & 63)
		ip += int((63 - n) >> 3)
		n |= 56
		e := z.lit[b&(1<<litBits-1)]
		if e&literal != 0 { // three literals take 33 bits here
			b >>= e & 63
			n -= uint(e & 0xff)
			out[op&outMask] = byte(e >> 16)
			op++
			e = z.lit[b&(1<<litBits-1)]
			if e&literal != 0 {
				b >>= e & 63
				n -= uint(e & 0xff)
				out[op&outMask] = byte(e >> 16)
				op++
				e = z.lit[b&(1<<litBits-1)]
				if e&literal != 0 {
					b >>= e & 63
					n -= uint(e & 0xff)
					out[op&outMask] = byte(e >> 16)
					op++
					continue
				}
			}
			// A length and a distance take 48 bits.
			b |= binary.LittleEndian.Uint64(in[ip:]) << (n & 63)
			ip += int((63 - n) >> 3)
			n |= 56
		}
		if e&special == link {
			b >>= e & 63
			n -= uint(e & 0xff)
			e = z.lit[(uint64(e>>16)+b&(1<<(e>>8&0x1f)-1))&(litSize-1)]
			if e&literal != 0 {
				b >>= e & 63
				n -= uint(e & 0xff)
				out[op&outMask] = byte(e >> 16)
				op++
				continue
			}
		}
		if e&end != 0 {
			b >>= e & 63
			n -= uint(e & 0xff)
			done = true
			break loop
		}
		if e == 0 {
			wrong = "no such code"
			break loop
		}
		length := int(e>>16) + int(b&(1<<(e&63)-1)>>(e>>8&0x1f))
		b >>= e & 63
		n -= uint(e & 0xff)

		e = z.dist[b&(1<<distBits-1)]
		if e&special == link {
			b >>= e & 63
			n -= uint(e & 0xff)
			e = z.dist[(uint64(e>>16)+b&(1<<(e>>8&0x1f)-1))&(distSize-1)]
		}
		if e == 0 {
			wrong = "no such distance code"
			break loop
		}
		distance := int(e>>16) + int(b&(1<<(e&63)-1)>>(e>>8&0x1f))
		b >>= e & 63
		n -= uint(e & 0xff)
		from := op - distance
		if from < z.start {
			wrong = "a match before the beginning"
			break loop
		}
		switch {
		case distance >= 8:
			// Eight bytes at a time, and up to seven too many, which the next ones overwrite.
			to := op + length
			for ; op < to; op, from = op+8, from+8 {
				binary.LittleEndian.PutUint64(out[op:op+8], binary.LittleEndian.Uint64(out[from:from+8]))
			}
			op = to
		case distance == 1:
			v := out[from&outMask]
			for i := range out[op : op+length] {
				out[op+i] = v
			}
			op += length
		default:
			for range length {
				out[op&outMask] = out[from&outMask]
				op++
				from++
			}
		}
	}
	z.ip, z.op, z.bits, z.nbits = ip, op, b, n
	switch {
	case wrong != "":
		return false, z.corrupt(wrong)
	case done:
		z.endBlock()
	}
	return done, nil
}
