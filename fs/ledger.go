package fs

import "iter"

// A ledger numbers things, from 1. A mount may live for months with sources that change all the time, so what is gone
// can be dropped: then its number means nothing until all the others have been used up, which is once in 16 million times,
// and of 256 things that were dropped a pointer is left. The zero value is ready; whoever has it guards it.
type ledger[T any] struct {
	chunks []*chunk[T]
	last   uint32 // the number that was given last
	len    int
}

const chunkSize = 256

type chunk[T any] struct {
	used   [chunkSize]bool
	things [chunkSize]T
	len    int
}

// add gives a thing a number.
func (l *ledger[T]) add(thing T) uint32 {
	for {
		if l.last++; l.last > maxEntry {
			l.last = 1
		}
		at := int(l.last / chunkSize)
		for at >= len(l.chunks) {
			l.chunks = append(l.chunks, nil)
		}
		c := l.chunks[at]
		if c == nil {
			c = &chunk[T]{}
			l.chunks[at] = c
		}
		i := l.last % chunkSize
		if c.used[i] && l.len < maxEntry {
			continue
		}
		if !c.used[i] {
			c.len++
			l.len++
		}
		c.used[i], c.things[i] = true, thing
		return l.last
	}
}

// get returns the thing with a number. Not ok if there is none.
func (l *ledger[T]) get(n uint32) (thing T, ok bool) {
	at := int(n / chunkSize)
	if at >= len(l.chunks) || l.chunks[at] == nil {
		return thing, false
	}
	return l.chunks[at].things[n%chunkSize], l.chunks[at].used[n%chunkSize]
}

// drop takes a thing out.
func (l *ledger[T]) drop(n uint32) {
	if _, ok := l.get(n); !ok {
		return
	}
	at, i := n/chunkSize, n%chunkSize
	c := l.chunks[at]
	var zero T
	c.used[i], c.things[i] = false, zero
	c.len--
	l.len--
	if c.len == 0 {
		l.chunks[at] = nil
	}
}

// all yields the things and their numbers, the oldest first as long as the numbers have not been used up.
func (l *ledger[T]) all() iter.Seq2[uint32, T] {
	return func(yield func(uint32, T) bool) {
		for at, c := range l.chunks {
			for i := 0; c != nil && i < chunkSize; i++ {
				if c.used[i] && !yield(uint32(at*chunkSize+i), c.things[i]) {
					return
				}
			}
		}
	}
}
