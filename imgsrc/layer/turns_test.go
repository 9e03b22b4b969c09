package layer

import (
	"math/rand/v2"
	"slices"
	"testing"
)

func TestTurn(t *testing.T) {
	names := []string{"a", "a b", "a-b", "b/a", "b/a/x", "b/b", "b c", "b-c/a", "bb", "c"} // as a walk has them, "a b" < "a-b"
	firsts := make([]uint32, len(names))
	for i := range firsts {
		firsts[i] = uint32(3 * i)
	}
	check := func(names []string, turn func(i int) int) {
		t.Helper()
		c := Chunks{turns: newTurns(slices.Clone(names), firsts)}
		for i := range names {
			for n := 3 * i; n < 3*i+3; n++ {
				if got := c.Turn(n); got != turn(i) {
					t.Errorf("chunk %d, of %q: its turn is %d, want %d", n, names[i], got, turn(i))
				}
			}
		}
	}
	check(names, func(i int) int { return i })
	mixed := slices.Clone(names)
	rand.New(rand.NewPCG(1, 2)).Shuffle(len(mixed), func(i, j int) { mixed[i], mixed[j] = mixed[j], mixed[i] })
	check(mixed, func(i int) int { return slices.Index(names, mixed[i]) })
	if got := new(Chunks).Turn(0); got != 0 {
		t.Errorf("of nothing: %d", got)
	}
}
