package fs

import (
	"strconv"
	"sync"
)

// The kernel marks a directory that rmdir has removed as dead, and lets nobody make or find anything in it any more. Whoever
// has it open or stands in it keeps it so, under its node id: a directory that comes to be again in that place has to be
// another node.

// againSeparator is between a directory's path and how often one was removed there. No path has it.
const againSeparator = "//"

// removals counts how often rmdir has removed the directory of a path. The zero value is ready.
type removals struct {
	mu    sync.RWMutex
	times map[string]int
}

// add is called before the kernel hears that the directory is gone.
func (r *removals) add(path string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.times == nil {
		r.times = map[string]int{}
	}
	r.times[path]++
}

// latest returns what is interned for the directory of a path now.
func (r *removals) latest(path string) string {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if n := r.times[path]; n > 0 {
		return path + againSeparator + strconv.Itoa(n)
	}
	return path
}
