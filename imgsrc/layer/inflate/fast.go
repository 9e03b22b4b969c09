package inflate

import (
	"encoding/binary"
)

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
