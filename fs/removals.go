package fs

import (
	"maps"
	"strconv"
	"sync"
)

// The kernel marks a directory that rmdir has removed as dead, and lets nobody make or find anything in it any more. Whoever
// has it open or stands in it keeps it so, under its node id: a directory that comes to be again in that place has to be
// another node.

// againSeparator is between a directory's path and the number of a removal. No path has it.
const againSeparator = "//"

// removals counts what rmdir has removed. The zero value is ready.
type removals struct {
	mu    sync.RWMutex
	times map[string]int // by path, the last of all removals that was one of that directory
	all   int
}

// add is called before the kernel hears that the directory is gone.
func (r *removals) add(path string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.times == nil {
		r.times = map[string]int{}
	}
	r.all++
	r.times[path] = r.all
}

// sweep forgets the removals of directories that are not interned any more: the next of that path is a new node.
func (r *removals) sweep(interned func(string) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	maps.DeleteFunc(r.times, func(path string, _ int) bool { return !interned(path) })
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
