package layer

import (
	"context"
	"errors"
	"sync"
)

// A pass over a blob that was decompressed before, and whose bytes have been evicted since, can be read from as it goes:
// the tags of its chunks are known.

var errEnded = errors.New("the layer's bytes stopped arriving")

// growing is how far a pass is.
type growing struct {
	done <-chan struct{} // the pass has ended
	tags *tags           // of the layer that is to arrive

	mu      sync.Mutex
	sums    []uint32      // of the chunks that are there and right
	strange bool          // a chunk was not what it was; what comes after it is held back until the pass has ended
	changed chan struct{} // closed when sums changes
}

func newGrowing(done <-chan struct{}, t *tags) *growing {
	return &growing{done: done, tags: t, changed: make(chan struct{})}
}

// advance takes the next chunk, which is in the file, and its checksum.
func (g *growing) advance(chunk []byte, sum uint32) {
	g.mu.Lock()
	n, strange := len(g.sums), g.strange
	g.mu.Unlock()
	if strange {
		return
	}
	right := g.tags.match(n, chunk)
	g.mu.Lock()
	defer g.mu.Unlock()
	if !right {
		g.strange = true
		return
	}
	g.sums = append(g.sums, sum)
	close(g.changed)
	g.changed = make(chan struct{})
}

func (g *growing) isStrange() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.strange
}

// wait returns the checksum of chunk n when that is there. Errors: errEnded if it will not be; ctx's.
func (g *growing) wait(ctx context.Context, n int64) (uint32, error) {
	for {
		g.mu.Lock()
		sums, changed := g.sums, g.changed
		g.mu.Unlock()
		if n < int64(len(sums)) {
			return sums[n], nil
		}
		select {
		case <-changed:
		case <-g.done:
			return 0, errEnded
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}
