package layer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
)

// A Cache holds decompressed layers in files, for all the mounts and processes that are given the same directory. Its
// methods may be called from several goroutines at once.
type Cache struct {
	log     *slog.Logger
	dir     *os.Root     // the versioned directory; nil if nothing can be kept. It never changes: Close closes it under its readers
	limit   int64        // bytes; 0: none
	unswept atomic.Int64 // how many bytes may be written before the files are looked through again
	bomb    bomb
	warn    sync.Once // that layers are not kept is said once

	ctx    context.Context // of all passes
	cancel context.CancelFunc
	jobs   sync.WaitGroup
	slots  chan struct{} // one for each pass that may run at a time

	damage damage // that is in the log

	indexes  *indexes
	indexing chan struct{} // one for each index that may be made at a time; they wait for passes, and not the other way round
	large    chan struct{} // one for the index being made that may take much memory; who has it waits for no other index
	together int64         // bytes that the indexes of one tree may take
	// One for each index that may be read from its file at a time, and one for the large one among them.
	loading, loadingLarge chan struct{}

	mu      sync.Mutex
	entries map[key]*entry // those that are held or being made
	closed  bool
}

// version is the directory of this file format.
const version = "v1"

// The directories below it.
const (
	diffKind = "diff"
	blobKind = "blob"
	partDir  = "part"
)

// A key names an entry, and its file.
type key struct {
	kind   string
	digest digest.Digest
}

func (k key) path() string {
	return k.kind + "/" + k.digest.Algorithm().String() + "/" + k.digest.Encoded()
}

func (k key) partPath() string {
	return partDir + "/" + k.kind + "-" + k.digest.Algorithm().String() + "-" + k.digest.Encoded()
}

// OpenCache opens the cache below dir, which is made if it is missing, and removes what processes that died have left
// there. The files together take at most limit bytes (0: no bound) as soon as nobody reads those above it. If the
// directory cannot be written, or others can write to it, the cache works without, and says so in the log; an empty dir
// asks for that. A nil log discards. Errors: the system's, if dir is something else than a directory.
func OpenCache(dir string, limit int64, log *slog.Logger) (*Cache, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	c := &Cache{
		log:     log,
		limit:   limit,
		bomb:    defaultBomb,
		slots:   make(chan struct{}, runtime.GOMAXPROCS(0)),
		entries: map[key]*entry{},
		indexes: newIndexes(),

		indexing: make(chan struct{}, 2*runtime.GOMAXPROCS(0)),
		large:    make(chan struct{}, 1),
		together: maxIndexes,

		loading:      make(chan struct{}, runtime.GOMAXPROCS(0)),
		loadingLarge: make(chan struct{}, 1),
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	if dir == "" {
		return c, nil
	}
	root, err := openDir(dir)
	switch {
	case err == nil:
		c.dir = root
		c.sweep()
		c.evict(0)
	case isUnusable(err):
		c.warnUnkept(err)
	default:
		return nil, fmt.Errorf("opening cache %s: %w", dir, err)
	}
	return c, nil
}

// openDir opens dir's versioned directory and what is always in it.
func openDir(dir string) (*os.Root, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	outer, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer outer.Close()
	if err := outer.Mkdir(version, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	root, err := outer.OpenRoot(version)
	if err != nil {
		return nil, err
	}
	if err := checkOwner(root); err != nil {
		root.Close()
		return nil, err
	}
	for _, sub := range []string{partDir, diffKind, blobKind} {
		// On a read-only file system the entries that are there can still be read.
		if err := root.Mkdir(sub, 0o700); err != nil && !errors.Is(err, fs.ErrExist) && !isUnusable(err) {
			root.Close()
			return nil, err
		}
	}
	return root, nil
}

// checkOwner fails if somebody else could have put files into root: checksums tell damage, not malice.
func checkOwner(root *os.Root) error {
	fi, err := root.Stat(".")
	if err != nil {
		return err
	}
	st := fi.Sys().(*syscall.Stat_t)
	if int(st.Uid) != os.Geteuid() || fi.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%w: %s/%s belongs to uid %d and has mode %04o: only its owner may write there",
			fs.ErrPermission, root.Name(), version, st.Uid, fi.Mode().Perm())
	}
	return nil
}

// isUnusable says whether err means that a directory is sound but cannot be written.
func isUnusable(err error) bool {
	for _, e := range []error{fs.ErrPermission, unix.EROFS, unix.ENOSPC, unix.EDQUOT, unix.EIO, unix.ENOLCK, unix.EOPNOTSUPP} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func (c *Cache) warnUnkept(err error) {
	c.warn.Do(func() {
		c.log.Warn("keeping decompressed layers in the cache is not possible; using temporary files", "error", err)
	})
}

// Close stops the passes that are under way and closes all files. What is read afterwards fails with fs.ErrClosed.
func (c *Cache) Close() error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.cancel()
	c.jobs.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	for k, e := range c.entries {
		c.dropStore(e)
		delete(c.entries, k)
	}
	if c.dir == nil {
		return nil
	}
	return c.dir.Close()
}

// Has says whether the layer with this diff id can be read without opening its blob. It costs a stat(2) at the most.
func (c *Cache) Has(diffID digest.Digest) bool {
	if diffID.Validate() != nil {
		return false
	}
	k := key{diffKind, diffID}
	c.mu.Lock()
	e := c.entries[k]
	open := e != nil && (e.store != nil || e.job != nil && e.job.growing != nil)
	c.mu.Unlock()
	if open || c.dir == nil {
		return open
	}
	_, err := c.dir.Lstat(k.path())
	return err == nil
}

// Diff returns the uncompressed tar of a layer: what open returns, decompressed. It does nothing yet: the first Size or
// ReadAt finds the file in the cache or decompresses the layer into it, and others wait. blob is the digest of the
// compressed bytes, diffID of the uncompressed, empty if it is not known. open is called on the cache's context,
// perhaps more than once; its reader ends when that context does.
//
// Errors of the content: imgsrc.ErrDamaged if the blob or what is in it is not what the digests say,
// imgsrc.ErrUnsupported if it needs too much memory, those of open, and fs.ErrClosed when the cache has been closed.
// Close lets go of the file; a later call opens it again.
func (c *Cache) Diff(blob, diffID digest.Digest, open func(context.Context) (io.ReadCloser, error)) imgsrc.Content {
	d := &content{cache: c, src: blobSource{blob: blob, diffID: diffID, open: open}, key: key{diffKind, diffID}}
	if diffID == "" {
		d.key = key{blobKind, blob}
	}
	d.invalid = blob.Validate()
	if d.invalid == nil && diffID != "" {
		d.invalid = diffID.Validate()
	}
	if d.invalid != nil {
		d.invalid = fmt.Errorf("opening layer %q with diff id %q: %w: %w", blob, diffID, imgsrc.ErrDamaged, d.invalid)
	}
	return d
}
