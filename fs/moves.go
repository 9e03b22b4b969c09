package fs

import (
	"maps"
	"strconv"
	"sync"
	"time"
)

// A link's node says where it stands. When the kernel renames it, the kernel has the old name's node under the new name, until
// it is told to look anew. That it can be told only when it has the answer to the rename, and does not hold the directories'
// locks any more; up to then the node says what the new name does. The old name, should it come back, is another node.

// moves are the links of a name space that were renamed.
type moves struct {
	mu      sync.RWMutex
	to      map[node]*moved
	left    map[node]*moved // those that the kernel has nowhere any more, for who was just about to read them
	renewed map[string]int  // by path and target, the last of all renames that was one of that link
	renames int
}

// leaveTime is how long a node says what it said last after the kernel has been told to forget it: whoever has looked it up
// before reads it now.
const leaveTime = time.Minute

// moved is a link's node that the kernel has under another name.
type moved struct {
	node node
	to   string // the path and target of that name
}

// of returns the path and target that a node has at the moment, which is its own if it has not been renamed.
func (m *moves) of(n node, own string) string {
	m.mu.RLock()
	defer m.mu.RUnlock()
	for _, known := range []map[node]*moved{m.to, m.left} {
		if l := known[n]; l != nil {
			return l.to
		}
	}
	return own
}

// latest returns what is interned for the link of a path and target now.
func (m *moves) latest(link string) string {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if n := m.renewed[link]; n > 0 {
		return link + linkSeparator + strconv.Itoa(n)
	}
	return link
}

// add notes that the kernel has a node under another name from now on, and so have those that it has under the old name
// because they were renamed before. It returns all of them.
func (m *moves) add(n node, from, to string) []*moved {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.to == nil {
		m.to, m.left, m.renewed = map[node]*moved{}, map[node]*moved{}, map[string]int{}
	}
	all := []*moved{{n, to}}
	for other, there := range m.to {
		if there.to == from && other != n {
			all = append(all, &moved{other, to})
		}
	}
	for _, l := range all {
		m.to[l.node] = l
	}
	m.renames++
	m.renewed[from] = m.renames
	return all
}

// use adds what is interned of the links that the kernel has elsewhere.
func (m *moves) use(used map[string]bool, name func(uint32) (string, bool)) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	for _, known := range []map[node]*moved{m.to, m.left} {
		for n := range known {
			if s, ok := name(n.entry()); ok {
				used[s] = true
			}
		}
	}
}

// sweep forgets the renames of links that are not interned any more: the next of that path and target is a new node.
func (m *moves) sweep(interned func(string) bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	maps.DeleteFunc(m.renewed, func(link string, _ int) bool { return !interned(link) })
}

// leave is called when the kernel has a node nowhere any more.
func (m *moves) leave(l *moved) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.to[l.node] != l {
		return // it was renamed once more
	}
	delete(m.to, l.node)
	m.left[l.node] = l
	time.AfterFunc(leaveTime, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.left, l.node)
	})
}

// moveLink is called before the kernel hears that a link has another name.
func (f *FS) moveLink(from, to place, id string) {
	n := from.found(id, keepNot).node
	for _, l := range from.sp.moves.add(n, from.path+linkSeparator+id, to.path+linkSeparator+id) {
		f.dropLink(l.node)
		f.forget(goneEntry{dir: to.dir, name: to.name, moved: l})
	}
}

// arrived is called when the kernel has been told to look anew where a link was moved.
func (f *FS) arrived(l *moved) {
	for _, sp := range f.spaces {
		sp.moves.leave(l) // a node is in one of them only
	}
}

// dropLink has the kernel forget what a link says and when it was made.
func (f *FS) dropLink(n node) {
	if server := f.server.Load(); server != nil {
		server.InodeNotify(uint64(n), 0, 0)
	}
}
