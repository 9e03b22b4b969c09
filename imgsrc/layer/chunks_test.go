package layer

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"runtime"
	"sync"
	"testing"
)

// zstdFrame is a frame of one raw block that says that its window has 2^log bytes.
func zstdFrame(log int, body []byte) []byte {
	n := len(body)<<3 | 1 // the last block
	return append([]byte{0x28, 0xb5, 0x2f, 0xfd, 0, byte((log - 10) << 3), byte(n), byte(n >> 8), byte(n >> 16)}, body...)
}

// A chunk is what is in it, whatever window its frame asks for; that many readers ask for one takes no more memory.
func TestUnpackWindow(t *testing.T) {
	body := make([]byte, 100)
	_, _ = rand.Read(body)
	for _, rest := range []string{"", "\x28\xb5\x2f\xfdnone"} {
		const log, limit = 27, 1 << 30
		packed := append(zstdFrame(17, body), zstdFrame(log, body)...) // it need not be the first that says so
		packed = append(packed, rest...)                               // nor be the last
		chunks := &Chunks{list: []chunk{{end: int64(len(packed)), inner: 100, size: 100, sum: sha256.Sum256(body)}}}
		runtime.GC()
		var before, now runtime.MemStats
		runtime.ReadMemStats(&before)
		var wg sync.WaitGroup
		var mu sync.Mutex
		most := uint64(0)
		for range 40 {
			wg.Go(func() {
				b, err := chunks.Unpack(0, packed)
				if err != nil || !bytes.Equal(b, body) {
					t.Errorf("a window of 2^%d, and %q: %v", log, rest, err)
				}
				mu.Lock()
				defer mu.Unlock()
				runtime.ReadMemStats(&now)
				most = max(most, now.HeapAlloc-min(now.HeapAlloc, before.HeapAlloc))
			})
		}
		wg.Wait()
		if most > limit {
			t.Errorf("windows of 2^%d, and %q: %d MiB in use", log, rest, most>>20)
		}
	}
}
