package layer

import (
	"fmt"
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

// The first pass over a layer whose bytes were evicted, read from its beginning as it arrives.
func BenchmarkArriving(b *testing.B) {
	plain := payload(64 << 20)
	blob := &testBlob{bytes: gzipped(b, plain)}
	dir := b.TempDir()
	c := testCache(b, dir, 0)
	d := c.Diff(blob.digest(), digest.FromBytes(plain), blob.open)
	buf := make([]byte, 128<<10)
	b.SetBytes(int64(len(plain)))
	for b.Loop() {
		d.Close()
		if err := c.dir.RemoveAll(diffKind); err != nil {
			b.Fatal(err)
		}
		for off, err := int64(0), error(nil); err != io.EOF; off += int64(len(buf)) {
			if _, err = d.ReadAt(b.Context(), buf, off); err != nil && err != io.EOF {
				b.Fatal(err)
			}
		}
		c.jobs.Wait()
	}
}

// An index of many files in directories that have entries of their own, as most layers are, and without.
func BenchmarkBuildIndex(b *testing.B) {
	for _, dirs := range []bool{true, false} {
		var e entries
		for i := range 100_000 {
			at := fmt.Sprintf("usr/share/package-%d/lib/part-%d", i/200, i/20)
			if dirs && i%20 == 0 {
				e = append(e, dir(at, 0o755))
			}
			e = append(e, reg(fmt.Sprintf("%s/file-%d", at, i), "1"))
		}
		b.Run(fmt.Sprintf("dirs=%v", dirs), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := BuildIndex(b.Context(), e); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
