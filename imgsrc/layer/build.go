package layer

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/cachefile"
)

// stallTime is how long another process's part file may stay as it is before that process is taken to be stuck.
const stallTime = 30 * time.Second

// bring gets at a layer's bytes: from the cache, from another process that is making them, or by a pass. If distrust is
// set, the file in the cache is made anew.
func (c *Cache) bring(k key, src blobSource, distrust bool, j *job) (s *store, err error) {
	defer func() {
		if r := recover(); r != nil { // the decompressors meet bytes from outside here
			err = fmt.Errorf("%w: decompressor: panic: %v", imgsrc.ErrDamaged, r)
		}
	}()
	if c.dir != nil {
		s, err := c.bringShared(k, src, distrust, j)
		if err == nil || !isSinkError(err) {
			return s, err
		}
		if c.ctx.Err() != nil {
			return nil, err
		}
		if errors.Is(err, cachefile.ErrBusy) {
			c.log.Warn("another process has stopped in the middle of a layer; using a temporary file", "path", k.path())
		} else {
			c.warnUnkept(err)
		}
	}
	s, err = c.bringPrivate(src)
	if err != nil && isSinkError(err) && c.ctx.Err() == nil {
		return c.bringReplay(src)
	}
	return s, err
}

// bringShared finds or makes the file in the cache directory. Errors that have to do with that directory are sinkErrors.
func (c *Cache) bringShared(k key, src blobSource, distrust bool, j *job) (*store, error) {
	if !distrust {
		if s := c.openStore(k); s != nil {
			return s, nil
		}
	}
	f, err := cachefile.Lock(c.ctx, c.dir, k.partPath(), stallTime)
	if err != nil {
		return nil, &sinkError{err}
	}
	kept := false
	defer func() {
		if !kept {
			c.removeSame(k.partPath(), f)
			f.Close()
		}
	}()
	if !distrust { // another process may have finished it while this one waited
		if s := c.openStore(k); s != nil {
			return s, nil
		}
	}
	if err := f.Truncate(0); err != nil {
		return nil, &sinkError{err}
	}
	g := c.grow(k, f, distrust, j)
	p, err := c.fillTagged(k, f, src, g)
	if err != nil {
		return nil, err
	}
	if _, err := f.WriteAt(trailer(k, p), p.size); err != nil {
		return nil, &sinkError{err}
	}
	if err := c.rename(f, k); err != nil {
		return nil, &sinkError{err}
	}
	kept = true
	// From the exclusive lock of a writer to the shared one of a reader.
	if err := cachefile.Flock(f, unix.LOCK_SH); err != nil {
		c.log.Debug("locking cache file", "path", k.path(), "error", err)
	}
	s, err := newStore(f, p)
	if err != nil {
		f.Close()
		return nil, &sinkError{err}
	}
	c.wrote(p.size)
	return s, nil
}

// grow lets the job's readers read from f as it is filled, if the layer's tags are known; else it returns nil.
func (c *Cache) grow(k key, f *os.File, distrust bool, j *job) *growing {
	if distrust {
		return nil
	}
	t := c.loadTags(k)
	if t == nil {
		return nil
	}
	g := newGrowing(j.done, t)
	c.mu.Lock()
	j.growing = &store{pass: pass{size: t.size}, file: f, growing: g, refs: 1}
	c.mu.Unlock()
	close(j.early)
	return g
}

// fillTagged is fill, and keeps tags of what has turned out right, unless there are some.
func (c *Cache) fillTagged(k key, f *os.File, src blobSource, g *growing) (*pass, error) {
	if g != nil {
		p, err := c.fill(f, src, g.advance)
		if err == nil && g.isStrange() {
			c.dropTags(k)
		}
		return p, err
	}
	t, err := newTags()
	if err != nil { // the layer is then read when it is there as a whole
		c.log.Debug("tagging the chunks of a layer", "path", k.path(), "error", err)
		return c.fill(f, src, func([]byte, uint32) {})
	}
	p, err := c.fill(f, src, func(chunk []byte, _ uint32) { t.add(chunk) })
	if err == nil {
		c.saveTags(k, t)
	}
	return p, err
}

func (c *Cache) rename(f *os.File, k key) error {
	if err := c.dir.MkdirAll(k.kind+"/"+k.digest.Algorithm().String(), 0o700); err != nil {
		return err
	}
	return c.dir.Rename(k.partPath(), k.path())
}

// bringPrivate decompresses into a file that has no name any more.
func (c *Cache) bringPrivate(src blobSource) (*store, error) {
	f, err := cachefile.Unnamed("imgfs-layer-")
	if err != nil {
		return nil, &sinkError{err}
	}
	p, err := c.fill(f, src, func([]byte, uint32) {})
	if err == nil {
		var s *store
		if s, err = newStore(f, p); err == nil {
			return s, nil
		}
	}
	f.Close()
	return nil, err
}

// fill runs a pass over the blob into f, and calls wrote with each chunk that is there and its checksum.
func (c *Cache) fill(f *os.File, src blobSource, wrote func(chunk []byte, sum uint32)) (*pass, error) {
	if err := take(c.ctx, c.slots); err != nil {
		return nil, err
	}
	defer func() { <-c.slots }()
	var room int64 // bytes that may be written before looking again
	return runPass(c.ctx, src, c.bomb, func(chunk []byte, off int64, sum uint32) error {
		if room < int64(len(chunk)) {
			var err error
			if room, err = c.room(f); err != nil {
				return err
			}
		}
		room -= int64(len(chunk))
		_, err := f.WriteAt(chunk, off)
		if err == nil {
			wrote(chunk, sum)
		}
		return err
	})
}

// take waits for one of the places that a channel stands for.
func take(ctx context.Context, places chan struct{}) error {
	select {
	case places <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// removeSame removes path from the cache if it is still f.
func (c *Cache) removeSame(path string, f *os.File) { cachefile.Remove(c.dir, path, f, c.log) }

// room returns how much may be written to f before asking again, at least a chunk. Error: ENOSPC if the file system has
// hardly anything left, even after evicting.
func (c *Cache) room(f *os.File) (int64, error) {
	n, err := cachefile.Room(f, chunkSize)
	if errors.Is(err, unix.ENOSPC) && c.dir != nil {
		c.evict(evictAtOnce)
		n, err = cachefile.Room(f, chunkSize)
	}
	return n, err
}

// trailer is what follows the layer's bytes in k's file.
func trailer(k key, p *pass) []byte {
	b := make([]byte, 0, 4*len(p.sums)+footerLen)
	for _, sum := range p.sums {
		b = binary.LittleEndian.AppendUint32(b, sum)
	}
	b = append(b, magic...)
	b = binary.LittleEndian.AppendUint64(b, uint64(p.size))
	return binary.LittleEndian.AppendUint32(b, trailerSum(k, b))
}

func trailerSum(k key, b []byte) uint32 {
	return crc32.Update(crc32.Checksum([]byte(k.path()), castagnoli), castagnoli, b)
}
