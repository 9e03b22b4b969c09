package ops

import (
	"slices"
	"sync"
)

// turns lets a number of jobs work at once. They have their turns in the order in which they lined up.
type turns struct {
	mu   sync.Mutex
	free int
	line []*turn
}

// A turn is one job's place in the line.
type turn struct {
	of   *turns
	come chan struct{} // closed when the turn has come
	had  bool          // it has come; guarded by of.mu
}

// lineUp takes a place at the end of the line. The caller must leave it.
func (ts *turns) lineUp() *turn {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	t := &turn{of: ts, come: make(chan struct{})}
	ts.line = append(ts.line, t)
	ts.next()
	return t
}

// leave gives the turn, or the place in the line, to the next.
func (t *turn) leave() {
	t.of.mu.Lock()
	defer t.of.mu.Unlock()
	if t.had {
		t.of.free++
	} else {
		t.of.line = slices.DeleteFunc(t.of.line, func(other *turn) bool { return other == t })
	}
	t.of.next()
}

// next lets those at the head of the line have their turns. mu is held.
func (ts *turns) next() {
	for ts.free > 0 && len(ts.line) > 0 {
		t := ts.line[0]
		ts.line = ts.line[1:]
		ts.free--
		t.had = true
		close(t.come)
	}
}
