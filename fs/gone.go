package fs

import (
	"context"
	"sync"
	"time"
)

// goneEntry is a name in a directory that the kernel may have cached for good and that is there no more.
type goneEntry struct {
	dir    node
	name   string
	moved  *moved        // the link that was moved there; nil if none was
	done   chan struct{} // instead of a name: closed when it is its turn
	lent   node          // instead of a name: a file whose attributes the kernel may have
	spoilt node          // instead of a name: a file of which it has something else than what is in it
}

// A goneQueue is what the kernel is to be told, in its order.
type goneQueue struct {
	mu   sync.Mutex
	list []goneEntry
	more chan struct{} // holds one element while there is something in the list
	ids  int           // how many names in ids/ the kernel has not been told of

	changes int           // requests under way whose callers hold the lock of a directory
	quiet   chan struct{} // closed when there is none any more; nil if nobody waits for that
}

func newGoneQueue() goneQueue { return goneQueue{more: make(chan struct{}, 1)} }

func (q *goneQueue) put(g goneEntry) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.list = append(q.list, g)
	if g.dir == idsNode {
		q.ids++
	}
	select {
	case q.more <- struct{}{}:
	default:
	}
}

// told says that the kernel has been told of an entry.
func (q *goneQueue) told(g goneEntry) {
	if g.dir != idsNode {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ids--
}

// mayMislead says whether the kernel may still know an image that another has taken the place of.
func (q *goneQueue) mayMislead() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.ids > 0
}

// changing says that a request is under way whose caller holds the lock of a directory; the function that it returns, that
// it has been answered.
func (q *goneQueue) changing() (answered func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.changes++
	return func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		if q.changes--; q.changes == 0 && q.quiet != nil {
			close(q.quiet)
			q.quiet = nil
		}
	}
}

// wait returns when no such request is under way, or the context has ended. What tells the kernel that a name is gone needs
// that lock, too: it would wait for it in the kernel while its holder waits for an answer of this process, and if the
// process is killed meanwhile both do for ever, because a thread that waits there keeps the connection from being closed.
// (A request that comes just after this is the kernel's to order.)
func (q *goneQueue) wait(ctx context.Context) {
	q.mu.Lock()
	if q.changes == 0 {
		q.mu.Unlock()
		return
	}
	if q.quiet == nil {
		q.quiet = make(chan struct{})
	}
	quiet := q.quiet
	q.mu.Unlock()
	select {
	case <-quiet:
	case <-ctx.Done():
	}
}

func (q *goneQueue) takeAll() []goneEntry {
	q.mu.Lock()
	defer q.mu.Unlock()
	all := q.list
	q.list = nil
	return all
}

// forget has the kernel told, later: to tell it from a request's handler may wait for the lock that the request's own
// caller holds.
func (f *FS) forget(g goneEntry) { f.gone.put(g) }

// settle returns when the kernel has been told of all that is gone, but does not wait for long. It is called where no
// lock of a directory is held: not from a look-up or a listing.
func (f *FS) settle(ctx context.Context) {
	if f.server.Load() == nil {
		return
	}
	g := goneEntry{done: make(chan struct{})}
	f.forget(g)
	select {
	case <-g.done:
	case <-ctx.Done():
	case <-time.After(settleTime):
	}
}

const settleTime = time.Second

func (f *FS) forgetNames(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.gone.more:
		}
		for _, g := range f.gone.takeAll() {
			server := f.server.Load()
			switch {
			case g.done != nil:
				close(g.done)
			case server == nil:
			case g.lent != 0:
				server.InodeNotify(uint64(g.lent), -1, 0) // the attributes alone: its pages may be another's read
			case g.spoilt != 0:
				go server.InodeNotify(uint64(g.spoilt), 0, 0) // it waits for reads of the file that are under way
			default:
				f.gone.wait(ctx)
				server.EntryNotify(uint64(g.dir), g.name)
			}
			f.gone.told(g)
			if g.moved != nil {
				f.arrived(g.moved)
			}
		}
	}
}
