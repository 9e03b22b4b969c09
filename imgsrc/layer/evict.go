package layer

import (
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/imgfs/imgfs/imgsrc/cachefile"
)

// ResumedPrefix begins the names of the part files that whoever makes them goes on with, also in another process. They count,
// and are evicted, as if they were finished.
const ResumedPrefix = "fetched-"

// resumedFor is how long such a file waits for somebody who goes on with it.
const resumedFor = 7 * 24 * time.Hour

// sweep removes the part files of processes that died.
func (c *Cache) sweep() {
	parts, err := fs.ReadDir(c.dir.FS(), partDir)
	if err != nil {
		c.log.Debug("sweeping cache", "error", err)
		return
	}
	for _, part := range parts {
		if !strings.HasPrefix(part.Name(), ResumedPrefix) || isOld(part) {
			c.removeUnlocked(partDir + "/" + part.Name())
		}
	}
}

func isOld(part fs.DirEntry) bool {
	fi, err := part.Info()
	return err == nil && time.Since(fi.ModTime()) > resumedFor
}

// Room is [cachefile.Room] for a file that somebody else makes in the cache's directory: it evicts what is needed, and asks once more;
// nothing if all of the cache would not be enough.
func (c *Cache) Room(f *os.File, least int64) (int64, error) {
	n, err := cachefile.Room(f, least)
	if !errors.Is(err, syscall.ENOSPC) || c.dir == nil {
		return n, err
	}
	free, err2 := cachefile.Free(f)
	if _, total := c.evictable(); err2 != nil || least-free > total {
		return n, err
	}
	c.evict(max(least-free, evictAtOnce))
	return cachefile.Room(f, least)
}

// evictAtOnce is how many bytes at least go where the disk is full, so that it is not looked through for each chunk.
const evictAtOnce = 64 << 20

// An evictable is a file that may go, unless somebody has it open.
type evictable struct {
	path  string
	bytes bool // a layer's bytes, and not what is known of them
	size  int64
	used  time.Time
}

// evict removes files, the longest unused first, until the rest is within the limit and at least free bytes are gone.
// Those that somebody has open stay.
func (c *Cache) evict(free int64) {
	if c.dir == nil || c.limit <= 0 && free == 0 {
		return
	}
	files, total := c.evictable()
	slices.SortFunc(files, func(a, b evictable) int {
		if a.bytes != b.bytes { // indexes take little room and save much work
			if a.bytes {
				return -1
			}
			return 1
		}
		return a.used.Compare(b.used)
	})
	defer func() { c.unswept.Store(min(c.limit-total, c.limit/sweeps)) }()
	for _, f := range files {
		if (c.limit <= 0 || total <= c.limit) && free <= 0 {
			return
		}
		if c.removeUnlocked(f.path) {
			total -= f.size
			free -= f.size
			c.log.Debug("evicted from cache", "path", f.path, "size", f.size)
		}
	}
}

// evictable are the cache's files, and how many bytes they take.
func (c *Cache) evictable() (files []evictable, total int64) {
	for _, kind := range append(c.kinds(), partDir) {
		err := fs.WalkDir(c.dir.FS(), kind, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || kind == partDir && !strings.HasPrefix(d.Name(), ResumedPrefix) {
				return err
			}
			fi, err := d.Info()
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err == nil {
				size := occupied(fi)
				files = append(files, evictable{path, kind == diffKind || kind == blobKind || kind == partDir, size, fi.ModTime()})
				total += size
			}
			return err
		})
		if err != nil {
			c.log.Debug("evicting from cache", "error", err)
		}
	}
	return files, total
}

// sweeps is how often the cache is looked through while as much is written as it may hold: what other processes write
// meanwhile is above the limit for that long.
const sweeps = 64

// occupied is how many bytes a file takes: of one with holes less than its length.
func occupied(fi fs.FileInfo) int64 {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return min(fi.Size(), st.Blocks*512)
	}
	return fi.Size()
}

// Wrote counts bytes that somebody else has added to the cache's directory, and evicts what is above the limit.
func (c *Cache) Wrote(bytes int64) {
	if c.dir != nil {
		c.wrote(bytes)
	}
}

// wrote counts bytes that were added to the cache, and evicts what is above the limit, if that may be.
func (c *Cache) wrote(bytes int64) {
	if c.unswept.Add(-bytes) <= 0 {
		c.evict(0)
	}
}

// kinds are the directories that hold finished files.
func (c *Cache) kinds() []string {
	dirs, err := fs.ReadDir(c.dir.FS(), ".")
	if err != nil {
		c.log.Debug("listing cache", "error", err)
	}
	var kinds []string
	for _, d := range dirs {
		if d.IsDir() && d.Name() != partDir {
			kinds = append(kinds, d.Name())
		}
	}
	return kinds
}

// removeUnlocked removes a file unless somebody has a lock on it, and says whether it did.
func (c *Cache) removeUnlocked(path string) bool {
	f, err := cachefile.TryLock(c.dir, path, os.O_RDONLY)
	if err != nil {
		return false
	}
	defer f.Close()
	return c.dir.Remove(path) == nil
}
