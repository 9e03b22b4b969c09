package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
)

// documents keeps manifests and configs by digest, and what tags meant when that was last asked:
//
//	manifests/<algorithm>/<hex>   a manifest or a config, exactly its bytes
//	manifests/tags/<hex>          the last listing of a source, as JSON; <hex> is the hash of the source's name
//	manifests/new-<number>        a file that is being written
//
// A document is verified whenever it is read. What a listing says cannot be verified, so that only its owner may write
// to the directory.
type documents struct {
	log *slog.Logger
	dir *os.Root // nil: kept in memory
	seq atomic.Int64

	mu     sync.Mutex
	memory map[digest.Digest][]byte
	held   int // bytes in memory
}

const (
	maxDocuments   = 512 << 20 // bytes in the directory; the longest unused are removed when it is opened
	maxHeld        = 64 << 20  // bytes in memory, where there is no directory
	documentsDir   = "manifests"
	tagsDir        = "tags"
	unfinished     = "new-"
	unfinishedTime = time.Hour
)

func openDocuments(cacheDir string, log *slog.Logger) *documents {
	d := &documents{log: log, memory: map[digest.Digest][]byte{}}
	if cacheDir == "" {
		return d
	}
	dir := filepath.Join(cacheDir, documentsDir)
	err := os.MkdirAll(dir, 0o700)
	if err == nil {
		d.dir, err = os.OpenRoot(dir)
	}
	if err == nil {
		if err = checkOwner(d.dir); err != nil {
			d.dir.Close()
			d.dir = nil
		}
	}
	if err != nil {
		log.Warn("keeping manifests in the cache is not possible", "error", err)
		return d
	}
	d.sweep(maxDocuments)
	return d
}

// checkOwner fails if somebody else could have put files into dir.
func checkOwner(dir *os.Root) error {
	fi, err := dir.Stat(".")
	if err != nil {
		return err
	}
	st := fi.Sys().(*syscall.Stat_t)
	if int(st.Uid) != os.Geteuid() || fi.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%w: %s belongs to uid %d and has mode %04o: only its owner may write there", fs.ErrPermission, dir.Name(), st.Uid, fi.Mode().Perm())
	}
	return nil
}

// sweep removes what was never finished, and the longest unused until the rest has at most limit bytes.
func (d *documents) sweep(limit int64) {
	type file struct {
		path string
		size int64
		used time.Time
	}
	var files []file
	var total int64
	err := fs.WalkDir(d.dir.FS(), ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		fi, err := entry.Info()
		if err != nil {
			return nil //nolint:nilerr // another process has removed it
		}
		if isUnfinished(path) {
			if time.Since(fi.ModTime()) > unfinishedTime {
				_ = d.dir.Remove(path)
			}
			return nil
		}
		files = append(files, file{path, fi.Size(), fi.ModTime()})
		total += fi.Size()
		return nil
	})
	if err != nil {
		d.log.Debug("sweeping the cache of manifests", "error", err)
	}
	slices.SortFunc(files, func(a, b file) int { return a.used.Compare(b.used) })
	for _, f := range files {
		if total <= limit {
			return
		}
		if d.dir.Remove(f.path) == nil {
			total -= f.size
		}
	}
}

func isUnfinished(path string) bool {
	return len(path) > len(unfinished) && path[:len(unfinished)] == unfinished
}

func documentPath(d digest.Digest) string { return d.Algorithm().String() + "/" + d.Encoded() }

// get returns the bytes of d, nil if they are not there. d is valid.
func (d *documents) get(dg digest.Digest) []byte {
	if d.dir == nil {
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.memory[dg]
	}
	path := documentPath(dg)
	b, used, err := d.read(path)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			d.log.Debug("reading the cache of manifests", "path", path, "error", err)
		}
		return nil
	}
	if dg.Algorithm().FromBytes(b) != dg {
		d.log.Warn("discarding cache file", "path", documentsDir+"/"+path, "error", "its bytes are not what its name says")
		_ = d.dir.Remove(path)
		return nil
	}
	if now := time.Now(); now.Sub(used) > time.Hour {
		_ = d.dir.Chtimes(path, now, now)
	}
	return b
}

// read reads a regular file of at most imgsrc.MaxManifest bytes.
func (d *documents) read(path string) ([]byte, time.Time, error) {
	f, err := d.dir.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, time.Time{}, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil || !fi.Mode().IsRegular() {
		return nil, time.Time{}, errors.Join(err, fs.ErrInvalid)
	}
	b, err := io.ReadAll(io.LimitReader(f, 4*imgsrc.MaxManifest))
	return b, fi.ModTime(), err
}

// has says whether the bytes of d are there, without reading them.
func (d *documents) has(dg digest.Digest) bool {
	if d.dir == nil {
		return d.get(dg) != nil
	}
	_, err := d.dir.Stat(documentPath(dg))
	return err == nil
}

// put keeps b, which has been verified. That it cannot is no failure.
func (d *documents) put(dg digest.Digest, b []byte) {
	if d.dir == nil {
		d.mu.Lock()
		defer d.mu.Unlock()
		if _, ok := d.memory[dg]; ok || len(b) > maxHeld {
			return
		}
		for old, bytes := range d.memory {
			if d.held+len(b) <= maxHeld {
				break
			}
			delete(d.memory, old)
			d.held -= len(bytes)
		}
		d.memory[dg] = b
		d.held += len(b)
		return
	}
	d.write(documentPath(dg), b)
}

// write makes a file that another reader sees whole or not at all.
func (d *documents) write(path string, b []byte) {
	name := fmt.Sprintf("%s%d-%d", unfinished, os.Getpid(), d.seq.Add(1))
	err := d.dir.MkdirAll(filepath.Dir(path), 0o700)
	if err == nil {
		err = d.dir.WriteFile(name, b, 0o600)
	}
	if err == nil {
		err = d.dir.Rename(name, path)
	}
	if err != nil {
		_ = d.dir.Remove(name)
		d.log.Debug("writing to the cache of manifests", "path", path, "error", err)
	}
}

// tagsPath is where the listing of a source is kept.
func tagsPath(source string) string { return tagsDir + "/" + digest.FromString(source).Encoded() }

// saveTags keeps what a source has listed, for a mount without the network.
func (d *documents) saveTags(source string, refs []tagged) {
	b, err := json.Marshal(refs)
	if err != nil || d.dir == nil || len(b) > 4*imgsrc.MaxManifest {
		return
	}
	d.write(tagsPath(source), b)
}

// loadTags returns what saveTags kept. Error: fs.ErrNotExist if there is nothing.
func (d *documents) loadTags(source string) ([]tagged, error) {
	if d.dir == nil {
		return nil, fs.ErrNotExist
	}
	b, _, err := d.read(tagsPath(source))
	if err != nil {
		return nil, err
	}
	var refs []tagged
	if err := json.Unmarshal(b, &refs); err != nil {
		return nil, fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	}
	return slices.DeleteFunc(refs, func(t tagged) bool { return !t.valid() }), nil
}

func (d *documents) close() error {
	if d.dir == nil {
		return nil
	}
	return d.dir.Close()
}
