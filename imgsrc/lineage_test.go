package imgsrc

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// Kin says of all pairs what IsParentOf says.
func TestKin(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 20 {
		var kin Kin
		var all []*Entry
		lineages := map[*Entry]Lineage{}
		for i := range 40 {
			e := &Entry{ID: fmt.Sprintf("%064d", i)}
			var steps []string
			for range rnd.IntN(5) {
				steps = append(steps, []string{"a", "b", "-c"}[rnd.IntN(3)])
			}
			l := lineageFacts(t, rnd.IntN(4), steps...)
			if rnd.IntN(10) == 0 {
				l = Lineage{}
			}
			kin.Add(e, l)
			all, lineages[e] = append(all, e), l
		}
		for _, e := range all {
			var children, parents []*Entry
			for _, o := range all {
				if lineages[e].IsParentOf(lineages[o]) {
					children = append(children, o)
				}
				if lineages[o].IsParentOf(lineages[e]) {
					parents = append(parents, o)
				}
			}
			if got := kin.Children(lineages[e]); !slices.Equal(got, children) {
				t.Fatalf("children %v, want %v", got, children)
			}
			if got := kin.Parent(lineages[e]); (got == nil) != (parents == nil) || got != nil && !slices.Contains(parents, got) {
				t.Fatalf("parent %v, want one of %v", got, parents)
			}
		}
	}
}
