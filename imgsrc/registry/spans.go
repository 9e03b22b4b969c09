package registry

import "slices"

// spans are parts of a blob: in order, and with something between any two of them.
type spans []span

type span struct{ from, to int64 }

// search returns the number of the first part that ends at an offset or behind it.
func (s spans) search(at int64) int {
	i, _ := slices.BinarySearchFunc(s, at, func(x span, at int64) int {
		if x.to < at {
			return -1
		}
		return 1
	})
	return i
}

// add returns the parts with another.
func (s spans) add(from, to int64) spans {
	if from >= to {
		return s
	}
	i := s.search(from)
	j := i
	for ; j < len(s) && s[j].from <= to; j++ {
		from, to = min(from, s[j].from), max(to, s[j].to)
	}
	return slices.Replace(s, i, j, span{from, to})
}

// remove returns the parts without what lies between two offsets.
func (s spans) remove(from, to int64) spans {
	if from >= to {
		return s
	}
	var left spans
	for _, x := range s {
		if before := (span{x.from, min(x.to, from)}); before.from < before.to {
			left = append(left, before)
		}
		if behind := (span{max(x.from, to), x.to}); behind.from < behind.to {
			left = append(left, behind)
		}
	}
	return left
}

// missing narrows a range down to what begins and ends with something that is not there. It is empty if all is.
func (s spans) missing(from, to int64) (int64, int64) {
	if i := s.search(from); i < len(s) && s[i].from <= from {
		from = min(s[i].to, to)
	}
	if i := s.search(to); from < to && i < len(s) && s[i].from < to {
		to = max(s[i].from, from)
	}
	return from, to
}

func (s spans) has(from, to int64) bool {
	from, to = s.missing(from, to)
	return from >= to
}

// around returns where the part before an offset ends, and where the one behind it begins: 0 and end if there is none.
func (s spans) around(at, end int64) (before, behind int64) {
	behind = end
	for _, x := range s {
		if x.to <= at {
			before = x.to
		} else if x.from > at {
			return before, x.from
		}
	}
	return before, behind
}

// first is how far the blob is there from its beginning.
func (s spans) first() int64 {
	if len(s) > 0 && s[0].from == 0 {
		return s[0].to
	}
	return 0
}

// total is how many bytes the parts have.
func (s spans) total() int64 {
	n := int64(0)
	for _, x := range s {
		n += x.to - x.from
	}
	return n
}

// until is how far the blob is there from an offset on: no further than that, if what is there is missing.
func (s spans) until(at int64) int64 {
	if i := s.search(at + 1); i < len(s) && s[i].from <= at {
		return s[i].to
	}
	return at
}

// lacks is how many bytes between two offsets are missing.
func (s spans) lacks(from, to int64) int64 {
	n := max(to-from, 0)
	for _, x := range s {
		n -= max(min(x.to, to)-max(x.from, from), 0)
	}
	return n
}
