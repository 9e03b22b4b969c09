package layer

import (
	"context"
	"errors"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// A pass over a blob that was decompressed before, and whose bytes have been evicted since, can be read from as it goes:
// the checksums of its chunks are known.

// sumsKind is how the names of the directories begin that hold what is known of layers: a trailer, without the bytes.
const sumsKind = "sums-"

func sumsKey(k key) key { return key{sumsKind + k.kind, k.digest} }

func (c *Cache) saveSums(k key, p *pass) {
	sk := sumsKey(k)
	if err := c.writeFile(sk, trailer(sk, p)); err != nil {
		c.log.Debug("keeping the checksums of a layer", "path", sk.path(), "error", err)
	}
}

// loadSums returns what saveSums has kept; nil if there is nothing that is sound.
func (c *Cache) loadSums(k key) *pass {
	if c.dir == nil {
		return nil
	}
	sk := sumsKey(k)
	f, err := c.dir.OpenFile(sk.path(), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil
	}
	defer f.Close()
	p, err := readTrailer(f, sk, true)
	if err != nil {
		c.log.Warn("discarding cache file", "path", sk.path(), "error", err)
		c.removeSame(sk.path(), f)
		return nil
	}
	return p
}

var errEnded = errors.New("the layer's bytes stopped arriving")

// growing is how far a pass is.
type growing struct {
	done <-chan struct{} // the pass has ended

	mu      sync.Mutex
	written int64
	changed chan struct{} // closed when written changes
}

func newGrowing(done <-chan struct{}) *growing {
	return &growing{done: done, changed: make(chan struct{})}
}

func (g *growing) advance(written int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.written = written
	close(g.changed)
	g.changed = make(chan struct{})
}

// wait returns nil when the bytes up to end are there. Errors: errEnded if they will not be; ctx's.
func (g *growing) wait(ctx context.Context, end int64) error {
	for {
		g.mu.Lock()
		written, changed := g.written, g.changed
		g.mu.Unlock()
		if written >= end {
			return nil
		}
		select {
		case <-changed:
		case <-g.done:
			return errEnded
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
