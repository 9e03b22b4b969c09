package inflate

import (
	"hash/crc32"
	"io"
)

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
