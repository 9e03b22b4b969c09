package layer

import (
	"cmp"
	"slices"
)

// Whoever goes through a whole tree (tar, grep -r, rsync) reads its files in the order of their names, wherever they lie in
// the blob. So a file's place in that order tells such a reader from one who wants a file here and there.
type turns struct {
	firsts []uint32 // the first chunk of each file that has any, in rising order
	places []uint32 // of each in the order of a walk; nil: this is it, or it is not known
}

func (o *turns) memory() int64 { return int64(len(o.firsts)+len(o.places)) * 4 }

// Turn is how many of the layer's files come before chunk n's when all are read in the order of a walk.
func (t *Chunks) Turn(n int) int {
	o := &t.turns
	i, found := slices.BinarySearch(o.firsts, uint32(n))
	if !found {
		i--
	}
	if i < 0 || o.places == nil {
		return max(i, 0)
	}
	return int(o.places[i])
}

// Files is how many files have chunks.
func (t *Chunks) Files() int { return len(t.turns.firsts) }

// maxTurns is how many files are put in order, and maxTurnNames how many bytes their names may have: to keep more takes too
// much memory.
const maxTurns, maxTurnNames = 1 << 20, 128 << 20

// newTurns makes the order of files with these names, whose chunks begin at firsts.
func newTurns(names []string, firsts []uint32) turns {
	o := turns{firsts: slices.Clip(firsts)}
	if slices.IsSortedFunc(names, walkOrder) {
		return o
	}
	order := make([]uint32, len(names))
	for i := range order {
		order[i] = uint32(i)
	}
	slices.SortFunc(order, func(a, b uint32) int { return cmp.Or(walkOrder(names[a], names[b]), cmp.Compare(a, b)) })
	o.places = make([]uint32, len(names))
	for turn, i := range order {
		o.places[i] = uint32(turn)
	}
	return o
}
