package fs

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/layer"
)

// A small file costs its reader a round trip, whatever is in it. So the answer to the first read of one is preceded by
// the bytes of those that come after it in the directory, straight into the kernel's cache: whoever reads one file of a
// directory (grep -r, rsync, tar) mostly reads the next one next.
//
// The kernel makes the one who stores wait while somebody else's read of the same file is under way. Only files behind the
// one that is being read are stored, so such waits never go round in a circle.

// aheadFiles is how many bytes are stored ahead of one read at the most; more brings nothing.
const aheadBytes = 256 << 10

// aheadOf remembers which of a directory's files have been stored, so that a second reader does not pay again.
type aheadOf struct{ done atomic.Uint64 }

// take says whether file i, one of the first 64, is yet to be stored, and counts it as stored.
func (a *aheadOf) take(i uint32) bool {
	if i >= 64 {
		return false
	}
	bit := uint64(1) << i
	return a.done.Or(bit)&bit == 0
}

// ahead collects what to store before a read is answered.
type ahead struct {
	f     *FS
	bytes int
}

// store stores a file, and says whether there is room for more.
func (a *ahead) store(n node, b []byte) bool {
	if len(b) == 0 {
		return true
	}
	if a.bytes += len(b); a.bytes > aheadBytes {
		return false
	}
	// A file that the kernel does not know is refused, at a fraction of a round trip.
	return a.f.server.Load().InodeNotifyStoreCache(uint64(n), 0, b).Ok()
}

const (
	// aheadFile is the largest file that is stored ahead, in bytes; the kernel reads larger ones ahead by itself.
	aheadFile = 128 << 10
	// aheadAgain is how many files are looked at anew when one that was stored is asked for: the kernel has dropped it.
	aheadAgain = 1024
)

// treeAhead remembers which files of a tree have been stored.
type treeAhead struct{ done []atomic.Uint64 }

func (a *treeAhead) init(n uint32) { a.done = make([]atomic.Uint64, n/64+1) }

// take says whether file n is yet to be stored, and counts it as stored.
func (a *treeAhead) take(n uint32) bool {
	bit := uint64(1) << (n % 64)
	return a.done[n/64].Load()&bit == 0 && a.done[n/64].Or(bit)&bit == 0
}

// drop counts the files from first to end as not stored.
func (a *treeAhead) drop(first, end uint32) {
	for w := first / 64; w <= (end-1)/64; w++ {
		keep := uint64(0)
		if w == first/64 {
			keep |= 1<<(first%64) - 1
		}
		if w == (end-1)/64 && end%64 != 0 {
			keep |= ^(uint64(1)<<(end%64) - 1)
		}
		a.done[w].And(keep)
	}
}

// A batch is files that are read to be stored.
type batch struct {
	first uint32 // the node at which looking for them began
	next  uint32 // and at which looking for more would begin
	files []aheadBody
	done  chan struct{} // closed when all have been read
}

type aheadBody struct {
	node  uint32
	place layer.Place
	bytes []byte // nil if it could not be read: whoever asks for it hears why
}

const (
	// aheadReaders is how many files of a batch are read at a time.
	aheadReaders = 4
	// aheadWait is how long a reader waits for others' files at the most.
	aheadWait = 50 * time.Millisecond
	// aheadFar is how many files that would have to be fetched are passed over to find those that would not.
	aheadFar = 64
	// aheadBatches is how many batches are kept for readers who may never come.
	aheadBatches = 4
)

// readAhead stores the files behind file n: the rest of its directory, and then those of the next directories in the
// order of a walk, as far as the kernel has listed them. That is how find, grep -r, tar and rsync go. While the kernel's
// reader is at these, the batch after them is read.
func (t *tree) readAhead(ctx context.Context, n uint32) {
	f := t.img.f
	if f.server.Load() == nil {
		return
	}
	if !t.ahead.take(n) {
		t.ahead.drop(n+1, min(t.Len(), n+aheadAgain))
	}
	key := treeKey{t.img.slot, t.view}
	b, ok := f.batches.take(key)
	if !ok || b.first <= n || b.first > n+aheadAgain {
		b = t.batch(n + 1)
		soon, cancel := context.WithTimeout(ctx, aheadWait)
		t.load(soon, b)
		cancel()
	}
	select {
	case <-b.done:
	case <-time.After(aheadWait): // whoever asked for one file does not wait for the layers of others
		return
	case <-ctx.Done():
		return
	}
	a := ahead{f: f}
	for i, file := range b.files {
		if file.bytes != nil && !a.store(t.node(file.node), file.bytes) {
			for _, rest := range b.files[i:] {
				t.ahead.drop(rest.node, rest.node+1)
			}
			return
		}
	}
	if b = t.batch(b.next); len(b.files) > 0 {
		f.batches.put(key, b, 1)
		go t.load(f.ctx, b)
	}
}

// batch chooses the files from node first on that are worth storing, up to aheadBytes. None is fetched for that.
func (t *tree) batch(first uint32) *batch {
	b := &batch{first: first, next: first, done: make(chan struct{})}
	here := make([]bool, t.Layers())
	for n := range here {
		here[n] = t.img.isLocal(t.base + n)
	}
	far := 0
	for size := int64(0); b.next < t.Len(); b.next++ {
		p, ok := t.Place(b.next)
		if !ok || p.Size == 0 || p.Size > aheadFile || t.Inode(b.next) != b.next {
			continue
		}
		if !here[p.Layer] && !t.isNear(p) {
			if far++; far > aheadFar {
				break
			}
			continue
		}
		if size += p.Size; size > aheadBytes {
			break
		}
		if t.ahead.take(b.next) {
			b.files = append(b.files, aheadBody{node: b.next, place: p})
		}
	}
	return b
}

// isNear says whether a file of a layer that is not here can be read without fetching anything.
func (t *tree) isNear(p layer.Place) bool {
	files := t.img.f.files.use(contentKey{slot: t.img.slot, layer: t.base + p.Layer, kind: contentFiles})
	if files == nil {
		return false
	}
	defer files.release()
	partial, ok := files.it.(imgsrc.Partial)
	return ok && files.it.Key() == t.keys[p.Layer] && partial.Near(p.Body)
}

// load reads the files of a batch, several at a time: they may lie on a disk.
func (t *tree) load(ctx context.Context, b *batch) {
	defer close(b.done)
	var wg sync.WaitGroup
	var next atomic.Int64
	for range min(aheadReaders, len(b.files)) {
		wg.Go(func() {
			defer t.img.f.recovered("reading ahead")
			for {
				i := int(next.Add(1)) - 1
				if i >= len(b.files) || ctx.Err() != nil {
					return
				}
				file := &b.files[i]
				buf := make([]byte, file.place.Size)
				if n, err := t.read(ctx, file.place, buf, 0); err == nil && n == len(buf) {
					file.bytes = buf
				}
			}
		})
	}
	wg.Wait()
}
