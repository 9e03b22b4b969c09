package fs

import (
	"container/list"
	"sync"

	"github.com/imgfs/imgfs/imgsrc"
)

// openContents is how many layers' bytes are kept open between reads. Each may hold a file descriptor or two.
const openContents = 64

// contentKey names the bytes that a source has of one layer of one image.
type contentKey struct {
	slot  uint32
	layer int
	kind  contentKind
}

// contentCache keeps layers open from one read to the next: the kernel opens no files here, so only the cache knows what
// is in use.
type contentCache struct {
	mu    sync.Mutex
	limit int
	order *list.List // of *openContent, most recent first
	byKey map[contentKey]*list.Element
}

// openContent is a content in use by any number of readers.
type openContent struct {
	imgsrc.Content
	cache *contentCache
	key   contentKey
	users int  // guarded by the cache
	out   bool // thrown out: the last user closes it
}

func newContentCache(limit int) *contentCache {
	return &contentCache{limit: limit, order: list.New(), byKey: map[contentKey]*list.Element{}}
}

// get returns what is open under key, or opens it. The caller releases it.
func (c *contentCache) get(key contentKey, open func() (imgsrc.Content, error)) (*openContent, error) {
	if o := c.use(key); o != nil {
		return o, nil
	}
	content, err := open()
	if err != nil {
		return nil, err
	}
	o := &openContent{Content: content, cache: c, key: key, users: 1}
	c.mu.Lock()
	var drop []*openContent
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

func (c *contentCache) use(key contentKey) *openContent {
	c.mu.Lock()
	defer c.mu.Unlock()
	el := c.byKey[key]
	if el == nil {
		return nil
	}
	c.order.MoveToFront(el)
	o := el.Value.(*openContent)
	o.users++
	return o
}

// unlist takes an element out and returns it if nobody uses it: it is then to be closed.
func (c *contentCache) unlist(el *list.Element) *openContent {
	o := c.order.Remove(el).(*openContent)
	delete(c.byKey, o.key)
	o.out = true
	if o.users > 0 {
		return nil
	}
	return o
}

func (o *openContent) release() {
	o.cache.mu.Lock()
	o.users--
	last := o.out && o.users == 0
	o.cache.mu.Unlock()
	if last {
		closeAll([]*openContent{o})
	}
}

// forget closes the layers of an image that is gone: what is open keeps its room on the disk.
func (c *contentCache) forget(slot uint32) {
	c.drop(func(key contentKey) bool { return key.slot == slot })
}

func (c *contentCache) close() {
	c.drop(func(contentKey) bool { return true })
}

func (c *contentCache) drop(which func(contentKey) bool) {
	c.mu.Lock()
	var drop []*openContent
	for key, el := range c.byKey {
		if which(key) {
			drop = append(drop, c.unlist(el))
		}
	}
	c.mu.Unlock()
	closeAll(drop)
}

func closeAll(all []*openContent) {
	for _, o := range all {
		if o != nil {
			_ = o.Content.Close() // only read from
		}
	}
}
