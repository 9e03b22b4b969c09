package storage

import "container/list"

// An lru keeps what was used last, up to a budget: the sum of the costs that put was given. It is not safe for
// concurrent use: its owner's lock guards it.
type lru[K comparable, V any] struct {
	budget  int64
	cost    int64
	order   *list.List // of *lruItem, the one used last in front
	items   map[K]*list.Element
	evicted func(V) // may be nil
}

type lruItem[K comparable, V any] struct {
	key  K
	val  V
	cost int64
}

func newLRU[K comparable, V any](budget int64, evicted func(V)) *lru[K, V] {
	return &lru[K, V]{budget: budget, order: list.New(), items: map[K]*list.Element{}, evicted: evicted}
}

func (l *lru[K, V]) get(key K) (v V, ok bool) {
	e := l.items[key]
	if e == nil {
		return v, false
	}
	l.order.MoveToFront(e)
	return e.Value.(*lruItem[K, V]).val, true
}

// put adds or replaces a value, and drops the ones that were not used for longest. The newest stays, whatever it costs.
func (l *lru[K, V]) put(key K, v V, cost int64) {
	if e := l.items[key]; e != nil {
		l.drop(e)
	}
	l.items[key] = l.order.PushFront(&lruItem[K, V]{key, v, cost})
	l.cost += cost
	for l.cost > l.budget && l.order.Len() > 1 {
		l.drop(l.order.Back())
	}
}

func (l *lru[K, V]) clear() {
	for l.order.Len() > 0 {
		l.drop(l.order.Back())
	}
}

func (l *lru[K, V]) drop(e *list.Element) {
	item := l.order.Remove(e).(*lruItem[K, V])
	delete(l.items, item.key)
	l.cost -= item.cost
	if l.evicted != nil {
		l.evicted(item.val)
	}
}
