package registry

import (
	lru "container/list"
	"sync"
	"time"
)

const (
	// unpackBytes is how many bytes chunks may take together while they are unpacked.
	unpackBytes = 192 << 20
	// unpackedBytes is how many bytes of unpacked chunks are kept for the next read. The last one is kept whatever its size.
	unpackedBytes = 16 << 20
	// unpackedTime is how long they are kept when nobody reads.
	unpackedTime = 10 * time.Second
	// parallelTOCs is how many tables of contents are in memory at a time.
	parallelTOCs = 2
)

// unpackedChunks are chunks that somebody is probably in the middle of: the kernel asks for 128 KiB at a time, and a chunk
// can have many times that.
type unpackedChunks struct {
	mu    sync.Mutex
	order *lru.List // of *unpackedChunk, the one used last in front
	byKey map[chunkKey]*lru.Element
	size  int64
	used  time.Time
	timer *time.Timer // nil: there is nothing to drop
}

type unpackedChunk struct {
	key   chunkKey
	bytes []byte
}

func newUnpacked() *unpackedChunks {
	return &unpackedChunks{order: lru.New(), byKey: map[chunkKey]*lru.Element{}}
}

// get returns a chunk, nil if it is not there.
func (u *unpackedChunks) get(key chunkKey) []byte {
	u.mu.Lock()
	defer u.mu.Unlock()
	el := u.byKey[key]
	if el == nil {
		return nil
	}
	u.order.MoveToFront(el)
	u.used = time.Now()
	return el.Value.(*unpackedChunk).bytes
}

func (u *unpackedChunks) put(key chunkKey, b []byte) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.byKey[key] != nil {
		return
	}
	u.byKey[key] = u.order.PushFront(&unpackedChunk{key, b})
	u.size += int64(len(b))
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
	u.size -= int64(len(c.bytes))
}

// expire drops all chunks when nobody has read for a while.
func (u *unpackedChunks) expire() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if left := unpackedTime - time.Since(u.used); left > 0 && u.timer != nil {
		u.timer.Reset(left)
		return
	}
	u.clearLocked()
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
