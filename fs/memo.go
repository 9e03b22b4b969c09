package fs

import (
	"container/list"
	"sync"
)

// A memo keeps what was computed and used last, up to a number of bytes, but for the newest, which stays whatever its
// size. What is thrown out is computed again, to the same result.
type memo[K comparable, V any] struct {
	mu    sync.Mutex
	limit int64
	bytes int64
	order *list.List // of memoItem[K, V], most recent first
	items map[K]*list.Element
}

type memoItem[K comparable, V any] struct {
	key   K
	value V
	bytes int64
}

func newMemo[K comparable, V any](limit int64) *memo[K, V] {
	return &memo[K, V]{limit: limit, order: list.New(), items: map[K]*list.Element{}}
}

func (m *memo[K, V]) get(key K) (value V, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	el := m.items[key]
	if el == nil {
		return value, false
	}
	if m.order.Front() != el {
		m.order.MoveToFront(el)
	}
	return el.Value.(memoItem[K, V]).value, true
}

// take is get, and forgets the item.
func (m *memo[K, V]) take(key K) (value V, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	el := m.items[key]
	if el == nil {
		return value, false
	}
	m.drop(el)
	return el.Value.(memoItem[K, V]).value, true
}

func (m *memo[K, V]) put(key K, value V, bytes int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if el := m.items[key]; el != nil {
		m.drop(el)
	}
	m.items[key] = m.order.PushFront(memoItem[K, V]{key, value, bytes})
	m.bytes += bytes
	for m.bytes > m.limit && m.order.Len() > 1 {
		m.drop(m.order.Back())
	}
}

// forget drops what has one of these keys.
func (m *memo[K, V]) forget(which func(K) bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for key, el := range m.items {
		if which(key) {
			m.drop(el)
		}
	}
}

// drop is called with the memo locked.
func (m *memo[K, V]) drop(el *list.Element) {
	old := m.order.Remove(el).(memoItem[K, V])
	delete(m.items, old.key)
	m.bytes -= old.bytes
}
