package layer

import "hash/maphash"

// A nameTable finds a node by its directory and name: open addressing over node numbers.
type nameTable struct {
	seed  maphash.Seed
	slots []uint32 // 0: free, because the root has no name
	used  int
}

func (t *nameTable) init() {
	t.seed = maphash.MakeSeed()
	t.slots = make([]uint32, 1<<10)
}

func (t *nameTable) hash(dir uint32, name string) uint64 {
	return maphash.String(t.seed, name) ^ uint64(dir)*0x9e3779b97f4a7c15
}

func (t *nameTable) find(b *indexBuilder, dir uint32, name string, h uint64) (uint32, bool) {
	mask := uint64(len(t.slots) - 1)
	for i := h & mask; ; i = (i + 1) & mask {
		n := t.slots[i]
		if n == 0 {
			return 0, false
		}
		if e := &b.nodes[n]; e.hash == h && e.parent == dir && string(b.nameOf(n)) == name {
			return n, true
		}
	}
}

// has says whether node n is still what its name stands for.
func (t *nameTable) has(n uint32, h uint64) bool {
	mask := uint64(len(t.slots) - 1)
	for i := h & mask; t.slots[i] != 0; i = (i + 1) & mask {
		if t.slots[i] == n {
			return true
		}
	}
	return false
}

func (t *nameTable) replace(b *indexBuilder, old, n uint32, h uint64) {
	mask := uint64(len(t.slots) - 1)
	for i := h & mask; ; i = (i + 1) & mask {
		if t.slots[i] == old {
			t.slots[i] = n
			return
		}
	}
}

func (t *nameTable) insert(b *indexBuilder, n uint32) {
	if 2*(t.used+1) > len(t.slots) {
		old := t.slots
		t.slots = make([]uint32, 2*len(old))
		for _, m := range old {
			if m != 0 {
				t.put(m, b.nodes[m].hash)
			}
		}
	}
	t.put(n, b.nodes[n].hash)
	t.used++
}

func (t *nameTable) put(n uint32, h uint64) {
	mask := uint64(len(t.slots) - 1)
	i := h & mask
	for t.slots[i] != 0 {
		i = (i + 1) & mask
	}
	t.slots[i] = n
}
