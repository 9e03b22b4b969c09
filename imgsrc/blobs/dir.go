package blobs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
)

// A Dir is where files are. Its methods may be called from several goroutines at once.
type Dir interface {
	// Open opens a regular file. Errors: fs.ErrNotExist; imgsrc.ErrDamaged if it is none, or leads out of the directory.
	Open(path string) (File, error)
	// Stat says which file is there. Error: fs.ErrNotExist.
	Stat(path string) (Identity, error)
	io.Closer
}

// A File is open for reading.
type File interface {
	io.ReaderAt
	io.Closer
	// Identity is which file was opened.
	Identity() Identity
	// Now is the same file's identity now: another one if somebody has written to it.
	Now() (Identity, error)
}

// An Identity changes when somebody writes to a file or replaces it.
type Identity struct {
	dev, ino     uint64
	off, size    int64 // off: of a member in its archive
	mtime, ctime syscall.Timespec
}

// IdentityOf returns the identity of a file of the operating system.
func IdentityOf(fi fs.FileInfo) Identity {
	st := fi.Sys().(*syscall.Stat_t)
	return Identity{dev: uint64(st.Dev), ino: st.Ino, size: st.Size, mtime: st.Mtim, ctime: st.Ctim}
}

// Size is the file's number of bytes.
func (id Identity) Size() int64 { return id.size }

// ModTime is when the file was last written to: the archive, if it is in one.
func (id Identity) ModTime() time.Time { return time.Unix(id.mtime.Unix()) }

// String is for stamps.
func (id Identity) String() string {
	return fmt.Sprintf("%d:%d %d+%d %d.%09d %d.%09d", id.dev, id.ino, id.off, id.size, id.mtime.Sec, id.mtime.Nsec, id.ctime.Sec, id.ctime.Nsec)
}

// OSDir is a directory of the operating system: the one that is there under its path, which may be another one tomorrow.
// While there is none it is the last one that was.
type OSDir struct {
	path string

	mu   sync.RWMutex // held for reading while something is opened
	root *os.Root
	is   fs.FileInfo // root; nil if that could not be looked at

	closed bool
}

// NewOSDir returns the files below root, which it closes.
func NewOSDir(root *os.Root) *OSDir {
	d := &OSDir{path: root.Name()}
	d.use(root)
	return d
}

func (d *OSDir) use(root *os.Root) {
	d.root = root
	d.is, _ = root.Stat(".") // who cannot look at it now will not tell another one from it
}

// lock makes root the directory that is there, and keeps it so until it is unlocked.
func (d *OSDir) lock() (root *os.Root, unlock func()) {
	d.mu.RLock()
	if !d.replaced() {
		return d.root, d.mu.RUnlock
	}
	d.mu.RUnlock()
	d.mu.Lock()
	if d.replaced() { // nobody was faster
		if root, err := os.OpenRoot(d.path); err == nil {
			d.root.Close()
			d.use(root)
		}
	}
	d.mu.Unlock()
	d.mu.RLock()
	return d.root, d.mu.RUnlock
}

// replaced says whether another directory is there.
func (d *OSDir) replaced() bool {
	there, err := os.Stat(d.path)
	return err == nil && there.IsDir() && d.is != nil && !d.closed && !os.SameFile(there, d.is)
}

// Open implements [Dir]. A FIFO does not make it wait.
func (d *OSDir) Open(path string) (File, error) {
	root, unlock := d.lock()
	defer unlock()
	f, err := root.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		if strings.Contains(err.Error(), "escapes from parent") { // os.Root has no error value for it
			err = fmt.Errorf("%w: %s leads out of the directory", imgsrc.ErrDamaged, path)
		}
		return nil, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = fmt.Errorf("%w: %s is not a regular file", imgsrc.ErrDamaged, path)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &osFile{f, IdentityOf(fi)}, nil
}

// Stat implements [Dir].
func (d *OSDir) Stat(path string) (Identity, error) {
	root, unlock := d.lock()
	defer unlock()
	fi, err := root.Stat(path)
	if err != nil {
		return Identity{}, err
	}
	return IdentityOf(fi), nil
}

// Close implements [Dir].
func (d *OSDir) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	return d.root.Close()
}

type osFile struct {
	*os.File
	identity Identity
}

func (f *osFile) Identity() Identity { return f.identity }

func (f *osFile) Now() (Identity, error) {
	fi, err := f.Stat()
	if err != nil {
		return Identity{}, err
	}
	return IdentityOf(fi), nil
}

// ReadFile reads a file of at most limit bytes. With an error of the reading itself there is an identity too.
func ReadFile(d Dir, path string, limit int64) ([]byte, Identity, error) {
	f, err := d.Open(path)
	if err != nil {
		return nil, Identity{}, err
	}
	defer f.Close()
	id := f.Identity()
	if id.size > limit {
		return nil, Identity{}, fmt.Errorf("%w: %s has %d bytes, more than %d", imgsrc.ErrDamaged, path, id.size, limit)
	}
	b := make([]byte, id.size)
	if n, err := f.ReadAt(b, 0); int64(n) < id.size {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, id, fmt.Errorf("reading %s: %w", path, err)
	}
	return b, id, nil
}
