package registry

import (
	"math/rand/v2"
	"testing"
)

// Parts are what a set of bytes says, whatever is added and removed.
func TestSpans(t *testing.T) {
	const size = 40
	r := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		var s spans
		var has [size]bool
		for range 20 {
			from := r.Int64N(size)
			to := from + r.Int64N(size-from+1)
			add := r.IntN(3) > 0
			if add {
				s = s.add(from, to)
			} else {
				s = s.remove(from, to)
			}
			for i := from; i < to; i++ {
				has[i] = add
			}
			total := int64(0)
			for i, x := range s {
				if x.from >= x.to || i > 0 && s[i-1].to >= x.from {
					t.Fatalf("%v", s)
				}
				total += x.to - x.from
			}
			first := int64(0)
			for first < size && has[first] {
				first++
			}
			if s.total() != total || s.first() != first {
				t.Fatalf("%v: %d bytes, the first %d; want %d and %d", s, s.total(), s.first(), total, first)
			}
			for from := range int64(size) {
				for to := from; to <= size; to++ {
					wantFrom, wantTo := from, to
					for wantFrom < to && has[wantFrom] {
						wantFrom++
					}
					for wantTo > wantFrom && has[wantTo-1] {
						wantTo--
					}
					gotFrom, gotTo := s.missing(from, to)
					if (gotFrom != wantFrom || gotTo != wantTo) && !(gotFrom >= gotTo && wantFrom >= wantTo) || s.has(from, to) != (wantFrom >= wantTo) {
						t.Fatalf("%v: of %d to %d are missing %d to %d, want %d to %d", s, from, to, gotFrom, gotTo, wantFrom, wantTo)
					}
				}
				lacks := int64(0)
				for i := range from {
					if !has[i] {
						lacks++
					}
				}
				until := from
				for until < size && has[until] {
					until++
				}
				if n, to := s.lacks(0, from), s.until(from); n != lacks || to != until {
					t.Fatalf("%v: %d bytes before %d are missing, and it is there until %d; want %d and %d", s, n, from, to, lacks, until)
				}
				if has[from] {
					continue
				}
				before, behind := from, from
				for before > 0 && !has[before-1] {
					before--
				}
				for behind < size && !has[behind] {
					behind++
				}
				if b, e := s.around(from, size); b != before || e != behind {
					t.Fatalf("%v: around %d are %d and %d, want %d and %d", s, from, b, e, before, behind)
				}
			}
		}
	}
}
