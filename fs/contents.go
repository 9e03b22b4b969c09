package fs

import (
	"container/list"
	"io"
	"sync"

	"golang.org/x/sys/unix"
)

// openContents is how many layers' bytes are kept open between reads, and how many layers' files. Each may hold a file
// descriptor or two.
const openContents = 64

// openLimit is openContents where a process may have this many files open, and less where that would be more than a
// quarter of them: the rest is for what is being read.
func openLimit(files uint64) int { return int(min(openContents, max(files/16, 1))) }

// openFiles is how many files this process may have open.
func openFiles() uint64 {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 1024
	}
	return limit.Cur
}

// contentKey names the bytes that a source has of one layer of one image.
type contentKey struct {
	slot  uint32
	layer int
	kind  contentKind
	from  heldBy // of a tar, what it is read from
}

// openCache keeps layers open from one read to the next: the kernel opens no files here, so only the cache knows what
// is in use.
type openCache[T io.Closer] struct {
	mu    sync.Mutex
	limit int
	order *list.List // of *opened[T], most recent first
	byKey map[contentKey]*list.Element
}

// opened is something open that any number of readers use.
type opened[T io.Closer] struct {
	it    T
	cache *openCache[T]
	key   contentKey
	users int  // guarded by the cache
	out   bool // thrown out: the last user closes it
}

func newOpenCache[T io.Closer](limit int) *openCache[T] {
	return &openCache[T]{limit: limit, order: list.New(), byKey: map[contentKey]*list.Element{}}

}

// get returns what is open under key, or opens it. The caller releases it.
func (c *openCache[T]) get(key contentKey, open func() (T, error)) (*opened[T], error) {
	if o := c.use(key); o != nil {
		return o, nil
	}
	it, err := open()
	if err != nil {
		return nil, err
	}
	o := &opened[T]{it: it, cache: c, key: key, users: 1}
	c.mu.Lock()
	var drop []*opened[T]
	if el := c.byKey[key]; el != nil { // somebody was faster
		drop = append(drop, c.unlist(el))
	}
	c.byKey[key] = c.order.PushFront(o)
	for c.order.Len() > c.limit {
		drop = append(drop, c.unlist(c.order.Back()))
	}
	c.mu.Unlock()
	closeAll(drop)
	return o, nil
}

func (c *openCache[T]) use(key contentKey) *opened[T] {
	c.mu.Lock()
	defer c.mu.Unlock()
	el := c.byKey[key]
	if el == nil {
		return nil
	}
	c.order.MoveToFront(el)
	o := el.Value.(*opened[T])
	o.users++
	return o
}

// unlist takes an element out and returns it if nobody uses it: it is then to be closed.
func (c *openCache[T]) unlist(el *list.Element) *opened[T] {
	o := c.order.Remove(el).(*opened[T])
	delete(c.byKey, o.key)
	o.out = true
	if o.users > 0 {
		return nil
	}
	return o
}

func (o *opened[T]) release() {
	o.cache.mu.Lock()
	o.users--
	last := o.out && o.users == 0
	o.cache.mu.Unlock()
	if last {
		closeAll([]*opened[T]{o})
	}
}

// forget closes the layers of an image that is gone: what is open keeps its room on the disk.
func (c *openCache[T]) forget(slot uint32) {
	c.drop(func(key contentKey) bool { return key.slot == slot })
}

func (c *openCache[T]) close() {
	c.drop(func(contentKey) bool { return true })
}

func (c *openCache[T]) drop(which func(contentKey) bool) {
	c.mu.Lock()
	var drop []*opened[T]
	for key, el := range c.byKey {
		if which(key) {
			drop = append(drop, c.unlist(el))
		}
	}
	c.mu.Unlock()
	closeAll(drop)
}

func closeAll[T io.Closer](all []*opened[T]) {
	for _, o := range all {
		if o != nil {
			_ = o.it.Close() // only read from
		}
	}
}
