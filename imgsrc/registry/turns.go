package registry

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"
)

// turns say which blobs come in: maxFetches at a time. What nobody waits for any more comes in as well, because it was read
// from its beginning, but gives way to what somebody waits for: its connection ends, and when there is room again it goes on
// where it stopped. So does one of which nothing comes, though it is waited for: the kernel reads ahead, and waits for that
// also when the program has left that it reads for.
type turns struct {
	mu      sync.Mutex
	running []*turn
	queue   []*turn     // the first has waited longest
	look    *time.Timer // looks again; nil: it need not
	lookAt  time.Time   // when it does
}

// A turn is one blob's place among them, until it leaves.
type turn struct {
	of     *turns
	demand *demand
	parent context.Context
	begun  chan struct{}   // closed when it has its turn
	ctx    context.Context // ends with parent, and when it has to give way
	end    context.CancelFunc

	heard    time.Time // when its turn began, or something of it last came
	unheard  bool      // the registry was asked for it in its turn, and nothing has come
	silences int       // times that it gave way for that, one after the other
}

// A demand is who wants a blob. Guarded by turns.mu.
type demand struct {
	waiting int       // readers who wait for more of it
	asked   time.Time // when the last of them got what he asked for, or left
}

const (
	// unaskedTime is for how long nobody has asked for a blob that nobody waits for any more: its reader may look at what he got.
	// That this is too short costs a round trip.
	unaskedTime = 500 * time.Millisecond
	// silentTime is for how long nothing has come of a blob that is waited for. It doubles with each turn in which nothing
	// came, up to longestSilence: a registry may take its time to find a blob.
	silentTime     = 2 * time.Second
	longestSilence = 30 * time.Second
)

// ask counts a reader who waits for a blob, until he calls answered.
func (t *turns) ask(d *demand) (answered func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	d.waiting++
	t.settleLocked()
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		d.waiting--
		d.asked = time.Now()
		t.settleLocked()
	}
}

// take waits for a blob's turn. The caller ends it with leave. Error: the context's.
func (t *turns) take(ctx context.Context, d *demand) (*turn, error) {
	n := &turn{of: t, demand: d, parent: ctx}
	t.mu.Lock()
	t.queueLocked(n)
	t.settleLocked()
	t.mu.Unlock()
	if _, err := n.wait(); err != nil {
		n.leave()
		return nil, err
	}
	return n, nil
}

// wait waits until it is the blob's turn, and returns its context. Error: that of the context with which it was taken.
func (n *turn) wait() (context.Context, error) {
	for n.parent.Err() == nil {
		n.of.mu.Lock()
		begun, ctx := n.begun, n.ctx
		n.of.mu.Unlock()
		select {
		case <-begun:
		case <-n.parent.Done():
		}
		if ctx.Err() == nil {
			return ctx, nil
		}
	}
	return nil, n.parent.Err()
}

// has says whether it is the blob's turn.
func (n *turn) has() bool {
	n.of.mu.Lock()
	defer n.of.mu.Unlock()
	select {
	case <-n.begun:
		return n.ctx.Err() == nil
	default:
		return false
	}
}

// asks notes that the registry is asked for more of the blob.
func (n *turn) asks() {
	n.of.mu.Lock()
	defer n.of.mu.Unlock()
	n.heard, n.unheard = time.Now(), true
}

// came notes that something of the blob has come.
func (n *turn) came() {
	n.of.mu.Lock()
	defer n.of.mu.Unlock()
	n.heard, n.unheard, n.silences = time.Now(), false, 0
}

// silent returns how often it gave way because nothing came, one after the other.
func (n *turn) silent() int {
	n.of.mu.Lock()
	defer n.of.mu.Unlock()
	return n.silences
}

// left is for how much longer it keeps its turn when others wait.
func (n *turn) left(now time.Time) time.Duration {
	if n.demand.waiting == 0 {
		return unaskedTime - now.Sub(n.demand.asked)
	}
	return min(silentTime<<min(n.silences, 10), longestSilence) - now.Sub(n.heard)
}

// leave gives the place to the next.
func (n *turn) leave() {
	t := n.of
	t.mu.Lock()
	defer t.mu.Unlock()
	same := func(other *turn) bool { return other == n }
	t.running, t.queue = slices.DeleteFunc(t.running, same), slices.DeleteFunc(t.queue, same)
	n.end()
	t.settleLocked()
}

func (t *turns) queueLocked(n *turn) {
	n.begun = make(chan struct{})
	n.ctx, n.end = context.WithCancel(n.parent)
	t.queue = append(t.queue, n)
}

// settleLocked gives turns to those in the queue: to those that somebody waits for first.
func (t *turns) settleLocked() {
	for len(t.queue) > 0 {
		i := max(0, slices.IndexFunc(t.queue, func(n *turn) bool { return n.demand.waiting > 0 }))
		next := t.queue[i]
		if len(t.running) >= maxFetches && (next.demand.waiting == 0 || !t.makeRoomLocked()) {
			return
		}
		t.queue = slices.DeleteFunc(t.queue, func(n *turn) bool { return n == next })
		t.running = append(t.running, next)
		next.heard, next.unheard = time.Now(), false
		close(next.begun)
	}
}

// makeRoomLocked has the blob give way for which nobody has asked for longest, or of which nothing has come for longest. Not ok if
// there is none as yet: then it is tried again when there may be.
func (t *turns) makeRoomLocked() (ok bool) {
	now, soonest := time.Now(), longestSilence
	var last *turn
	for _, n := range t.running {
		left := n.left(now)
		if left > 0 {
			soonest = min(soonest, left)
		} else if last == nil || cmp.Or(cmp.Compare(min(n.demand.waiting, 1), min(last.demand.waiting, 1)), cmp.Compare(left, last.left(now))) < 0 {
			last = n
		}
	}
	if last == nil {
		t.lookInLocked(soonest)
		return false
	}
	t.running = slices.DeleteFunc(t.running, func(n *turn) bool { return n == last })
	if last.unheard && last.demand.waiting > 0 {
		last.silences++
	}
	last.end()
	t.queueLocked(last)
	return true
}

// lookInLocked has the turns looked at again after a time.
func (t *turns) lookInLocked(left time.Duration) {
	at := time.Now().Add(left)
	if t.look != nil {
		if !at.Before(t.lookAt) {
			return
		}
		t.look.Stop()
	}
	t.lookAt = at
	var timer *time.Timer
	timer = time.AfterFunc(left, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.look == timer {
			t.look = nil
			t.settleLocked()
		}
	})
	t.look = timer
}
