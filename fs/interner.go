package fs

import "sync"

// An interner numbers strings. It keeps those that are in use, and of the others the last that were numbered: a name that goes
// and comes back is the same node, unless very many have come and gone meanwhile.
type interner struct {
	mu    sync.RWMutex
	index map[string]uint32
	names ledger[string]
	bytes int
	kept  int // of them after the last sweep
}

// internedSpare is how many bytes of names may be kept that are not in use. Whoever may read the mount can look up as many as he
// likes, and ln -f makes up a new one each time.
const internedSpare = 2 << 20

// cost is what a string takes, with its entries in the index and the ledger.
func cost(s string) int { return len(s) + 64 }

func (in *interner) number(s string) uint32 {
	in.mu.RLock()
	n, ok := in.index[s]
	in.mu.RUnlock()
	if ok || s == "" {
		return n // that of "" is imagesEntry, which is 0
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	if n, ok := in.index[s]; ok {
		return n
	}
	if in.index == nil {
		in.index = map[string]uint32{}
	}
	n = in.names.add(s)
	in.index[s] = n
	in.bytes += cost(s)
	return n
}

func (in *interner) name(n uint32) (string, bool) {
	in.mu.RLock()
	defer in.mu.RUnlock()
	if n == imagesEntry {
		return "", true
	}
	return in.names.get(n)
}

func (in *interner) has(s string) bool {
	in.mu.RLock()
	defer in.mu.RUnlock()
	_, ok := in.index[s]
	return ok
}

// isFull says whether it is time for a sweep.
func (in *interner) isFull() bool {
	in.mu.RLock()
	defer in.mu.RUnlock()
	return in.bytes > in.kept+internedSpare
}

// sweep drops the oldest strings that are not in use, but for the last ones that were numbered.
func (in *interner) sweep(used map[string]bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	unused := 0
	for _, s := range in.names.all() {
		if !used[s] {
			unused += cost(s)
		}
	}
	for n, s := range in.names.all() {
		if unused <= internedSpare/2 {
			break
		}
		if !used[s] {
			unused -= cost(s)
			in.bytes -= cost(s)
			in.names.drop(n)
			delete(in.index, s)
		}
	}
	in.kept = in.bytes
}

// sweep frees what is interned of names that are gone. s is the newest state there is; FS.mu is held.
func (sp *nameSpace) sweep(s *nameState) {
	if !sp.index.isFull() {
		return
	}
	used := map[string]bool{}
	sp.use(s, "", used)
	sp.moves.use(used, sp.index.name)
	sp.index.sweep(used)
	sp.moves.sweep(sp.index.has)
	sp.removed.sweep(sp.index.has)
}

// use adds what is interned of a directory and of what is below it.
func (sp *nameSpace) use(s *nameState, dir string, used map[string]bool) {
	used[dir], used[sp.removed.latest(dir)] = true, true
	children, _ := s.tree.Dir(dir)
	for _, c := range children {
		path := joinName(dir, c.Name)
		if c.Dir {
			sp.use(s, path, used)
			continue
		}
		used[path], used[path+linkSeparator+c.ID], used[sp.link(path, c.ID)] = true, true, true
	}
}

// sweepUnlisted makes room for names that are not listed.
func (sp *nameSpace) sweepUnlisted() {
	if !sp.index.isFull() {
		return
	}
	sp.f.mu.Lock()
	defer sp.f.mu.Unlock()
	sp.sweep(sp.f.state.Load().names[sp.n])
}

// sweepTargets frees the names of links that were looked up long ago: they are numbered anew when they are looked up again.
func (f *FS) sweepTargets() {
	if f.targets.isFull() {
		f.targets.sweep(nil)
	}
}
