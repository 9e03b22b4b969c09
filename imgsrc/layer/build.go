package layer

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
)

// How long another process's part file may stay as it is before that process is taken to be stuck, and how often to
// look.
const (
	stallTime = 30 * time.Second
	pollTime  = 20 * time.Millisecond
)

var errBusy = errors.New("another process holds the lock")

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
		c.warnUnkept(err)
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
	f, err := c.lockPart(k)
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
	if err := flock(f, unix.LOCK_SH); err != nil {
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

// lockPart opens k's part file with an exclusive lock, waiting for the process that has it: that one renames its file or
// removes it, and the next look makes a new one. It returns errBusy if that process does nothing any more.
func (c *Cache) lockPart(k key) (*os.File, error) {
	// Somebody may have emptied the cache. If it cannot be made, opening the file says so.
	_ = c.dir.Mkdir(partDir, 0o700)
	var lastSize int64 = -1
	lastChange := time.Now()
	for {
		f, err := c.tryLock(k.partPath(), os.O_RDWR|os.O_CREATE)
		if err == nil || !errors.Is(err, errBusy) {
			return f, err
		}
		if fi, err := c.dir.Stat(k.partPath()); err == nil && fi.Size() != lastSize {
			lastSize, lastChange = fi.Size(), time.Now()
		}
		if time.Since(lastChange) > stallTime {
			return nil, fmt.Errorf("waiting for %s: %w", k.partPath(), err)
		}
		select {
		case <-time.After(pollTime):
		case <-c.ctx.Done():
			return nil, c.ctx.Err()
		}
	}
}

// tryLock opens a file and locks it exclusively. It returns errBusy if somebody else has the lock, or has just replaced
// the file.
func (c *Cache) tryLock(path string, flags int) (*os.File, error) {
	f, err := c.dir.OpenFile(path, flags|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, err
	}
	err = flock(f, unix.LOCK_EX|unix.LOCK_NB)
	if err == nil && !c.isSame(path, f) {
		err = unix.EWOULDBLOCK
	}
	if err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = errBusy
		}
		return nil, err
	}
	return f, nil
}

// isSame says whether f is what path names.
func (c *Cache) isSame(path string, f *os.File) bool {
	named, err1 := c.dir.Lstat(path)
	opened, err2 := f.Stat()
	return err1 == nil && err2 == nil && os.SameFile(named, opened)
}

// removeSame removes path if it is still f.
func (c *Cache) removeSame(path string, f *os.File) {
	if !c.isSame(path, f) {
		return
	}
	if err := c.dir.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.log.Debug("removing cache file", "path", path, "error", err)
	}
}

// bringPrivate decompresses into a file that has no name any more.
func (c *Cache) bringPrivate(src blobSource) (*store, error) {
	f, err := os.CreateTemp("", "imgfs-layer-")
	if err != nil {
		return nil, &sinkError{err}
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
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

// room returns how much may be written to f before asking again, at least a chunk. Error: ENOSPC if the file system has
// hardly anything left, even after evicting.
func (c *Cache) room(f *os.File) (int64, error) {
	for evicted := false; ; evicted = true {
		var st unix.Statfs_t
		if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
			return 0, &os.PathError{Op: "statfs", Path: f.Name(), Err: err}
		}
		bsize := int64(st.Bsize)
		keep := min(1<<30, int64(st.Blocks)*bsize/20)
		if free := int64(st.Bavail)*bsize - keep; free >= chunkSize {
			return min(free, 64<<20), nil
		}
		if evicted || c.dir == nil {
			return 0, &os.PathError{Op: "write", Path: f.Name(), Err: unix.ENOSPC}
		}
		c.evict(64 << 20)
	}
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

func flock(f *os.File, how int) error {
	for {
		if err := unix.Flock(int(f.Fd()), how); err != unix.EINTR {
			return err
		}
	}
}
