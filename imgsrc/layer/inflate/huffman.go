package inflate

import "math/bits"

// A code is looked up by its first bits in a table, and, if it is longer than that, by the rest in a part of the same
// table that the first look-up leads to. An entry is
//
//	bits 0-7    how many bits it uses up: the code's (those behind the first look-up, in a second), and the extra bits behind it
//	bits 8-12   how many of them are the code's; in a link to a second look-up, how many bits that takes
//	bits 13-15  what it is: literal, link, end
//	bits 16-31  the literal; the least length or distance; where the second part is
//
// A length or distance has none of the flags. 0 is no code at all.
const (
	literal = 1 << 13
	link    = 1 << 14
	end     = 1 << 15
	special = link | end

	litBits  = 11
	distBits = 9
	litSize  = 1 << 13 // at least 4,352: 143 second parts of 16 entries
	distSize = 1 << 11 // at least 1,472: 15 second parts of 64 entries

	maxCode  = 15 // bits
	numLit   = 288
	numDist  = 32
	endBlock = 256
)

// lengthOf and distanceOf are the meanings of the symbols (RFC 1951, section 3.2.5), as entries without the code's bits.
var lengthOf, distanceOf = func() (l [numLit]uint32, d [numDist]uint32) {
	for i := range 256 {
		l[i] = literal | uint32(i)<<16
	}
	l[endBlock] = end
	base, extra := 3, 0
	for i := 257; i < 285; i++ {
		if i >= 265 && (i-265)%4 == 0 {
			extra++
		}
		l[i] = uint32(base)<<16 | uint32(extra)
		base += 1 << extra
	}
	l[285] = 258 << 16
	base, extra = 1, 0
	for i := range 30 {
		if i >= 4 && i%2 == 0 {
			extra++
		}
		d[i] = uint32(base)<<16 | uint32(extra)
		base += 1 << extra
	}
	return l, d
}()

// build fills a table for codes of these lengths, of which each means the entry of its symbol; an entry of 0 has no meaning. It
// returns false if the lengths are no prefix code: too many, or too few, but for a single code of one bit, and none.
func build(table []uint32, first uint, lengths []uint8, meaning []uint32) bool {
	var count [maxCode + 1]int
	for _, n := range lengths {
		count[n]++
	}
	longest := uint(maxCode)
	for longest > 0 && count[longest] == 0 {
		longest--
	}
	clear(table)
	if longest == 0 {
		return true
	}
	var next [maxCode + 2]uint32
	code := uint32(0)
	for n := uint(1); n <= longest; n++ {
		code <<= 1
		next[n] = code
		code += uint32(count[n])
	}
	if code != 1<<longest && !(code == 1 && longest == 1) {
		return false
	}
	free := uint32(1) << first // where the next second part may begin
	for symbol, n8 := range lengths {
		n := uint(n8)
		if n == 0 {
			continue
		}
		reversed := uint32(bits.Reverse16(uint16(next[n])) >> (16 - n))
		next[n]++
		e := meaning[symbol]
		if n <= first {
			if e != 0 {
				e += uint32(n)<<8 + uint32(n)
			}
			for i := reversed; i < 1<<first; i += 1 << n {
				table[i] = e
			}
			continue
		}
		low := reversed & (1<<first - 1)
		if table[low] == 0 {
			// As many bits as the longest code with this beginning may need.
			width := longest - first
			table[low] = link | free<<16 | uint32(width)<<8 | uint32(first)
			free += 1 << width
		}
		width, at := uint(table[low]>>8&0x1f), table[low]>>16
		rest := n - first
		if e != 0 {
			e += uint32(rest)<<8 + uint32(rest)
		}
		for i := reversed >> first; i < 1<<width; i += 1 << rest {
			table[at+i] = e
		}
	}
	return true
}
