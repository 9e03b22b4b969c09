package registry

import (
	lru "container/list"
	"runtime/debug"
	"sync"
	"time"
)

const (
	// unpackBytes is how many bytes chunks may take together while they are unpacked.
	unpackBytes = 192 << 20
	// unpackedBytes is how many bytes of unpacked chunks, and of tables that say where they are, are kept for the next read.
	// The last one is kept whatever its size.
	unpackedBytes = 16 << 20
	// unpackedTime is how long they are kept when nobody reads.
	unpackedTime = 10 * time.Second
	// parallelTOCs is how many tables of contents are in memory at a time.
	parallelTOCs = 2
)

// unpackedChunks are chunks that somebody is probably in the middle of: the kernel asks for 128 KiB at a time, and a chunk
// can have many times that. So are tables: who has listed a layer mostly reads a file next.
type unpackedChunks struct {
	mu    sync.Mutex
	order *lru.List // of *unpackedChunk, the one used last in front
	byKey map[chunkKey]*lru.Element
	size  int64
	used  time.Time
	timer *time.Timer // nil: there is nothing to drop
}

type unpackedChunk struct {
	key  chunkKey
	it   any
	size int64
}

// ofTable is the number under which a layer's table is kept.
const ofTable = -1

func newUnpacked() *unpackedChunks {
	return &unpackedChunks{order: lru.New(), byKey: map[chunkKey]*lru.Element{}}
}

// get returns what is kept, nil if it is not there.
func (u *unpackedChunks) get(key chunkKey) any {
	u.mu.Lock()
	defer u.mu.Unlock()
	el := u.byKey[key]
	if el == nil {
		return nil
	}
	u.order.MoveToFront(el)
	u.used = time.Now()
	return el.Value.(*unpackedChunk).it
}

// put keeps something of size bytes.
func (u *unpackedChunks) put(key chunkKey, it any, size int64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.byKey[key] != nil {
		return
	}
	u.byKey[key] = u.order.PushFront(&unpackedChunk{key, it, size})
	u.size += size
	for u.size > unpackedBytes && u.order.Len() > 1 {
		u.dropLocked(u.order.Back())
	}
	u.used = time.Now()
	if u.timer == nil {
		u.timer = time.AfterFunc(unpackedTime, u.expire)
	}
}

func (u *unpackedChunks) dropLocked(el *lru.Element) {
	c := u.order.Remove(el).(*unpackedChunk)
	delete(u.byKey, c.key)
	u.size -= c.size
}

// expire drops all chunks when nobody has read for a while.
func (u *unpackedChunks) expire() {
	u.mu.Lock()
	if left := unpackedTime - time.Since(u.used); left > 0 && u.timer != nil {
		u.timer.Reset(left)
		u.mu.Unlock()
		return
	}
	u.clearLocked()
	u.mu.Unlock()
	debug.FreeOSMemory() // unpacking took several times as much
}

func (u *unpackedChunks) clearLocked() {
	for u.order.Len() > 0 {
		u.dropLocked(u.order.Back())
	}
	u.timer = nil
}

// close drops all chunks.
func (u *unpackedChunks) close() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.timer != nil {
		u.timer.Stop()
	}
	u.clearLocked()
}
