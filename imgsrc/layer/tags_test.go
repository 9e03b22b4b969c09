package layer

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
)

// forged is plain with other bytes at the beginning of its first chunk, and the same CRC-32C of that.
func forged(t *testing.T, plain []byte) []byte {
	t.Helper()
	evil := slices.Clone(plain)
	copy(evil, "evil")
	chunk := evil[:chunkSize]
	head := crc32.Checksum(chunk[:chunkSize-4], castagnoli)
	sum := func(last uint32) uint32 {
		return crc32.Update(head, castagnoli, binary.LittleEndian.AppendUint32(nil, last))
	}
	// The sum is linear in the bits of the last four bytes, but for a constant.
	rest, last := sum(0)^crc32.Checksum(plain[:chunkSize], castagnoli), uint32(0)
	var rows [32][2]uint32 // a sum, and the bits that make it; number n has n as its highest bit
	for i := range 32 {
		row := [2]uint32{sum(1<<i) ^ sum(0), 1 << i}
		for n := 31; n >= 0 && row[0] != 0; n-- {
			if row[0]>>n&1 == 0 {
				continue
			}
			if rows[n][0] == 0 {
				rows[n] = row
				break
			}
			row[0] ^= rows[n][0]
			row[1] ^= rows[n][1]
		}
	}
	for n := 31; n >= 0; n-- {
		if rest>>n&1 == 1 {
			rest ^= rows[n][0]
			last ^= rows[n][1]
		}
	}
	binary.LittleEndian.PutUint32(chunk[chunkSize-4:], last)
	if crc32.Checksum(chunk, castagnoli) != crc32.Checksum(plain[:chunkSize], castagnoli) || bytes.Equal(evil, plain) {
		t.Fatal("the forgery is not one")
	}
	return evil
}

// Bytes that were made to have a layer's checksums are not taken for the layer's, not even for as long as it takes to
// know its digest.
func TestForged(t *testing.T) {
	plain := payload(8 * chunkSize)
	blob := gzipped(t, plain)
	c := evicted(t, blob, plain)
	g := &gated{bytes: gzipped(t, forged(t, plain)), gate: make(chan struct{})}
	d := c.Diff(digest.FromBytes(blob), digest.FromBytes(plain), g.open)
	p := make([]byte, 4)
	read := make(chan error)
	go func() {
		_, err := d.ReadAt(context.Background(), p, 0)
		read <- err
	}()
	select {
	case err := <-read:
		t.Fatalf("%q, %v, before the digest is known", p, err)
	case <-time.After(200 * time.Millisecond):
	}
	close(g.gate)
	if err := <-read; !errors.Is(err, imgsrc.ErrDamaged) {
		t.Errorf("%q, %v, want ErrDamaged", p, err)
	}
}

// The same where nothing can be kept, and the blob is decompressed anew for every reader.
func TestForgedReplay(t *testing.T) {
	t.Setenv("TMPDIR", filepath.Join(t.TempDir(), "missing"))
	plain := payload(10 * chunkSize) // more than are held in memory
	blob := &testBlob{bytes: gzipped(t, plain)}
	d := testCache(t, "", 0).Diff(blob.digest(), digest.FromBytes(plain), blob.open)
	wantContent(t, d, plain)
	blob.bytes = gzipped(t, forged(t, plain))
	p := make([]byte, 4)
	for range 2 {
		if _, err := d.ReadAt(t.Context(), p, 0); !errors.Is(err, imgsrc.ErrDamaged) {
			t.Errorf("%q, %v, want ErrDamaged", p, err)
		}
	}
}

// Tags that a sound layer does not have are thrown away, and the layer is read all the same.
func TestTagsOfAnother(t *testing.T) {
	plain := payload(3*chunkSize + 5)
	blob := &testBlob{bytes: gzipped(t, plain)}
	c := evicted(t, blob.bytes, plain)
	k := key{diffKind, digest.FromBytes(plain)}
	was := c.loadTags(k)
	was.list[1][0] ^= 1
	c.saveTags(k, was)
	d := c.Diff(blob.digest(), digest.FromBytes(plain), blob.open)
	wantContent(t, d, plain)
	if c.loadTags(k) != nil {
		t.Error("the wrong tags are still there")
	}
}

// A file of tags survives no change of any of its parts.
func TestTagsFile(t *testing.T) {
	tags, err := newTags()
	if err != nil {
		t.Fatal(err)
	}
	chunks := [][]byte{payload(chunkSize), payload(chunkSize), payload(7)}
	for _, chunk := range chunks {
		tags.add(chunk)
	}
	k := key{tagsKind + diffKind, digest.FromString("x")}
	b := tags.encode(k)
	got, err := decodeTags(k, b)
	if err != nil || got.size != 2*chunkSize+7 {
		t.Fatal(got, err)
	}
	for n, chunk := range chunks {
		if !got.match(n, chunk) || got.match(n+3, chunk) || got.match(n, chunk[1:]) {
			t.Errorf("chunk %d", n)
		}
	}
	if tags.list[0] == tags.list[1] {
		t.Error("two chunks have one tag")
	}
	other := key{tagsKind + diffKind, digest.FromString("y")}
	if _, err := decodeTags(other, b); err == nil {
		t.Error("another layer's file")
	}
	for n := range b {
		bad := slices.Clone(b)
		bad[n] ^= 1
		if _, err := decodeTags(k, bad); err == nil {
			t.Errorf("with byte %d changed", n)
		}
		if _, err := decodeTags(k, b[:n]); err == nil {
			t.Errorf("cut to %d bytes", n)
		}
	}
}

// What an earlier version kept of a layer is not believed.
func TestSumsOfEarlierVersion(t *testing.T) {
	plain := payload(8 * chunkSize)
	blob := gzipped(t, plain)
	c := evicted(t, blob, plain)
	if err := c.dir.Rename(tagsKind+diffKind, "sums-"+diffKind); err != nil {
		t.Fatal(err)
	}
	g := &gated{bytes: blob, gate: make(chan struct{})}
	d := c.Diff(digest.FromBytes(blob), digest.FromBytes(plain), g.open)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := d.ReadAt(ctx, make([]byte, 4), 0); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, before anything is verified", err)
	}
	close(g.gate)
	wantContent(t, d, plain)
	if _, err := os.Stat(filepath.Join(c.dir.Name(), tagsKey(key{diffKind, digest.FromBytes(plain)}).path())); err != nil {
		t.Error(err)
	}
}
