package inflate

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
