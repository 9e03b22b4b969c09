package fs

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"
)

// A blobSum is a SHA-256, or that of a digest of another algorithm.
type blobSum [sha256.Size]byte

func sumOf(d digest.Digest) (sum blobSum) {
	if d.Algorithm() != digest.SHA256 {
		return sha256.Sum256([]byte(d))
	}
	if n, err := hex.Decode(sum[:], []byte(d.Encoded())); n != len(sum) || err != nil {
		return sha256.Sum256([]byte(d)) // which is none, so that nothing has it
	}
	return sum
}

// blobNumbers numbers blobs. One that goes and comes back is the same node, unless many have gone meanwhile. The zero value is
// ready.
type blobNumbers struct {
	mu    sync.RWMutex
	index map[blobSum]uint32
	sums  ledger[blobSum]
	long  map[uint32]digest.Digest // of those that are not SHA-256
}

// number returns the number of a blob, a new one if it has none.
func (b *blobNumbers) number(d digest.Digest) uint32 {
	sum := sumOf(d)
	b.mu.Lock()
	defer b.mu.Unlock()
	if n, ok := b.index[sum]; ok {
		return n
	}
	if b.index == nil {
		b.index, b.long = map[blobSum]uint32{}, map[uint32]digest.Digest{}
	}
	n := b.sums.add(sum)
	b.index[sum] = n
	if d.Algorithm() != digest.SHA256 {
		b.long[n] = d
	}
	return n
}

// find returns the number of a blob; 0 if it has none.
func (b *blobNumbers) find(d digest.Digest) uint32 {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.index[sumOf(d)]
}

// digest is that of the blob with a number. Not ok if there is none any more.
func (b *blobNumbers) digest(n uint32) (d digest.Digest, ok bool) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	if d, ok := b.long[n]; ok {
		return d, true
	}
	sum, ok := b.sums.get(n)
	return digest.NewDigestFromBytes(digest.SHA256, sum[:]), ok
}

// count is how many blobs have a number.
func (b *blobNumbers) count() int {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.sums.len
}

// sweep drops the blobs that are not in use.
func (b *blobNumbers) sweep(used map[uint32]bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for n, sum := range b.sums.all() {
		if !used[n] {
			b.sums.drop(n)
			delete(b.index, sum)
			delete(b.long, n)
		}
	}
}

// spareBlobs is how many blobs may have a number that are not there any more.
const spareBlobs = 1024

// sweep frees the numbers of blobs that are gone. s is the newest state; nil: there is none.
func (t *ociTree) sweep(s *ociState) {
	files := 0
	if s != nil {
		files = len(s.files)
	}
	if t.numbers.count() <= 2*files+spareBlobs {
		return
	}
	used := map[uint32]bool{}
	if s != nil {
		for _, file := range s.files {
			used[file.number] = true
		}
	}
	for _, img := range t.known {
		for _, blob := range img.blobs {
			used[blob.number] = true
		}
	}
	t.numbers.sweep(used)
}

// file returns a blob of the state. Not ok if it is not there.
func (s *ociState) file(number uint32) (ociFile, bool) {
	if s == nil {
		return ociFile{}, false
	}
	i, ok := slices.BinarySearchFunc(s.files, number, func(f ociFile, n uint32) int { return cmp.Compare(f.number, n) })
	if !ok {
		return ociFile{}, false
	}
	return s.files[i], true
}

// from are the blobs of the state whose numbers are greater than one.
func (s *ociState) from(number uint64) []ociFile {
	i, _ := slices.BinarySearchFunc(s.files, number+1, func(f ociFile, n uint64) int { return cmp.Compare(uint64(f.number), n) })
	return s.files[i:]
}
