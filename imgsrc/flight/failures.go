package flight

import (
	"sync"
	"time"
)

// A failure is the answer for a moment, so that one command over an image whose source is away meets one time-out and not one for
// each file: for as long as it took to find out, because that is what each reader would wait for again; for two seconds at least,
// in which a command reads the next files; and for ten at most, after which who tries again expects to hear what is so now.
const (
	minKept = 2 * time.Second
	maxKept = 10 * time.Second
	// maxFailures is how many are kept. More than that are forgotten.
	maxFailures = 10_000
)

// Kept is how long a failure is the answer that took this long to find out.
func Kept(took time.Duration) time.Duration { return min(max(took, minKept), maxKept) }

// Failures are those of the last moment, by what they are of. A caller's own cancellation is none, and is not to be put among
// them. The zero value holds none.
type Failures[K comparable] struct {
	mu  sync.Mutex
	all map[K]failure
}

type failure struct {
	err   error
	until time.Time
}

// Of returns the failure that is still the answer; nil if there is none.
func (f *Failures[K]) Of(key K) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	known, ok := f.all[key]
	if ok && time.Now().After(known.until) {
		delete(f.all, key)
		return nil
	}
	return known.err
}

// Put makes err the answer, which work that was begun at a time has found; nil makes the key have none.
func (f *Failures[K]) Put(key K, err error, begun time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil {
		delete(f.all, key)
		return
	}
	if f.all == nil || len(f.all) >= maxFailures {
		f.all = map[K]failure{}
	}
	now := time.Now()
	until := now.Add(Kept(now.Sub(begun)))
	if known := f.all[key].until; known.After(until) {
		until = known
	}
	f.all[key] = failure{err, until}
}
