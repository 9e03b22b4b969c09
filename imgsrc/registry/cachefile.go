package registry

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/cachefile"
)

// found opens the blob's file in the cache, with a lock that keeps it from being evicted. Nil if there is none.
func (x *blob) found() *os.File {
	b, path := x.blobs, blobPath(x.digest)
	if b.dir == nil {
		return nil
	}
	f, err := b.dir.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil // it is fetched then
	}
	_ = cachefile.Flock(f, unix.LOCK_SH|unix.LOCK_NB) // who evicts it at this moment leaves a file without a name
	fi, err := f.Stat()
	if err != nil || !fi.Mode().IsRegular() {
		b.source.log.Warn("discarding cache file", "path", path, "error", "it is no file")
		cachefile.Remove(b.dir, path, f, b.source.log)
		f.Close()
		return nil
	}
	if now := time.Now(); now.Sub(fi.ModTime()) > usedTime {
		_ = b.dir.Chtimes(path, now, now)
	}
	return f
}

// usedTime is how exactly the use of a file is noted: doing so has it hashed again.
const usedTime = time.Hour

// verifyAgain looks at the file that is open. It may have changed only its place: somebody has emptied the cache.
func (x *blob) verifyAgain(ctx context.Context) (bool, error) {
	if x.file == nil {
		return false, nil
	}
	err := x.verify(ctx, x.file)
	if err == nil {
		x.finish(x.file)
		return true, nil
	}
	if errors.Is(err, imgsrc.ErrDamaged) {
		x.discard(x.file, err)
		x.drop()
		err = nil
	}
	return false, err
}

// discard removes a file from the cache that is not what its name says.
func (x *blob) discard(f *os.File, err error) {
	x.blobs.source.log.Warn("discarding cache file", "path", blobPath(x.digest), "error", err)
	if x.blobs.dir != nil {
		cachefile.Remove(x.blobs.dir, blobPath(x.digest), f, x.blobs.source.log)
	}
}

// bringFound takes the blob from the cache, and says whether it was there and right.
func (x *blob) bringFound(ctx context.Context) (bool, error) {
	f := x.found()
	if f == nil {
		return false, nil
	}
	err := x.useFound(ctx, f)
	if err != nil {
		f.Close()
		return false, err
	}
	err = x.verify(ctx, f)
	size := fileSize(f)
	switch {
	case err == nil && (x.size < 0 || size == x.size):
		x.finish(f)
		return true, nil
	case err == nil: // another manifest's has the right size, and the file is its
		err = fmt.Errorf("%w: it has %d bytes, and its descriptor says %d", imgsrc.ErrDamaged, size, x.size)
	case errors.Is(err, imgsrc.ErrDamaged):
		x.discard(f, err)
		err = nil
	}
	x.drop()
	return false, err
}

// verify hashes a file, unless it is the one that was found right before.
func (x *blob) verify(ctx context.Context, f *os.File) error {
	id, err := cachefile.Identify(f)
	if err != nil {
		return err
	}
	x.blobs.mu.Lock()
	known := x.blobs.verified[x.digest] == id
	x.blobs.mu.Unlock()
	if known {
		return nil
	}
	sum := x.digest.Algorithm().Hash()
	if err := hashFile(ctx, f, sum, 0, id.Size); err != nil {
		return err
	}
	if got := digest.NewDigest(x.digest.Algorithm(), sum); got != x.digest {
		return fmt.Errorf("%w: its bytes are %s", imgsrc.ErrDamaged, got)
	}
	x.blobs.remember(x.digest, id)
	return nil
}

// spareVerified is how many files may be remembered that are gone, and as many as there are.
const spareVerified = 1024

// remember notes that a file was found right. It forgets those that are gone from the cache, now and then.
func (b *blobs) remember(d digest.Digest, id cachefile.Identity) {
	b.mu.Lock()
	b.verified[d] = id
	var all []digest.Digest
	if len(b.verified) > 2*b.lasting+spareVerified {
		b.lasting = len(b.verified) // until it is known
		all = slices.Collect(maps.Keys(b.verified))
	}
	b.mu.Unlock()
	if all == nil {
		return
	}
	gone := slices.DeleteFunc(all, func(d digest.Digest) bool { return hasFile(b.dir, blobPath(d)) })
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, d := range gone {
		if b.open[d] == nil {
			delete(b.verified, d)
		}
	}
	b.lasting = len(b.verified)
}

// hashFile adds the bytes of f from an offset up to another to sum.
func hashFile(ctx context.Context, f *os.File, sum hash.Hash, off, end int64) error {
	buf := make([]byte, 1<<20)
	for off < end {
		m, err := f.ReadAt(buf[:min(int64(len(buf)), end-off)], off)
		sum.Write(buf[:m])
		off += int64(m)
		if err != nil && (err != io.EOF || off < end) {
			return fmt.Errorf("reading %s: %w", f.Name(), err)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return nil
}

// hasFile says whether a file is there. A dir of nil has none.
func hasFile(dir *os.Root, path string) bool {
	if dir == nil {
		return false
	}
	fi, err := dir.Lstat(path)
	return err == nil && fi.Mode().IsRegular()
}
