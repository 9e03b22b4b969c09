package layer

import (
	"io"
	"os"
	"testing"

	"github.com/opencontainers/go-digest"
)

// The first pass over a layer, and reading it afterwards as a kernel with a read-ahead of 128 KiB does.
// IMGFS_BENCH_LAYER may name a compressed layer to take instead of a made up one.
func BenchmarkDiff(b *testing.B) {
	layers := map[string][]byte{"gzip": gzipped(b, payload(64<<20)), "zstd": zstded(b, payload(64<<20))}
	if path := os.Getenv("IMGFS_BENCH_LAYER"); path != "" {
		blob, err := os.ReadFile(path)
		if err != nil {
			b.Fatal(err)
		}
		layers = map[string][]byte{"file": blob}
	}
	for name, bytes := range layers {
		plain, _, err := decompressAll(bytes)
		if err != nil {
			b.Fatal(err)
		}
		blob, diffID := &testBlob{bytes: bytes}, digest.FromBytes(plain)
		b.Run(name+"/pass", func(b *testing.B) {
			b.SetBytes(int64(len(plain)))
			for b.Loop() {
				d := testCache(b, b.TempDir(), 0).Diff(blob.digest(), diffID, blob.open)
				if _, err := d.Size(b.Context()); err != nil {
					b.Fatal(err)
				}
				d.Close()
			}
		})
		d := testCache(b, b.TempDir(), 0).Diff(blob.digest(), diffID, blob.open)
		buf := make([]byte, 128<<10)
		for _, when := range []string{"first", "again"} {
			b.Run(name+"/read-"+when, func(b *testing.B) {
				b.SetBytes(int64(len(plain)))
				for b.Loop() {
					if when == "first" {
						d.Close() // so that nothing is known to be verified
					}
					for off, err := int64(0), error(nil); err != io.EOF; off += int64(len(buf)) {
						if _, err = d.ReadAt(b.Context(), buf, off); err != nil && err != io.EOF {
							b.Fatal(err)
						}
					}
				}
			})
		}
	}
}
