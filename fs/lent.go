package fs

import (
	"sync"
	"time"
)

// The kernel asks for the attributes of a live file before each read(2) of it, which would be half of the requests that
// reading docker.tar takes. So it is given those of such a file for a moment where it asks on behalf of a read, and told to
// forget them when the tree becomes another.

// lentTime is how long. What others change is noticed by asking, so it takes as much longer to be seen.
const lentTime = 100 * time.Millisecond

// isArchive says whether a node is of docker.tar or oci.tar, which are long, and live.
func (n node) isArchive() bool {
	return n.image() != 0 && n.view() == viewExport && (n.entry() == exportDocker || n.entry() == exportOCI)
}

// lent are the files whose attributes the kernel may have. The zero value is ready.
type lent struct {
	mu    sync.Mutex
	files map[node]bool
}

// add is called before the attributes are looked at: those that are given out while they become others are not used.
func (l *lent) add(n node) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.files == nil {
		l.files = map[node]bool{}
	}
	l.files[n] = true
}

// take returns them all, and forgets them.
func (l *lent) take() map[node]bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	files := l.files
	l.files = nil
	return files
}
