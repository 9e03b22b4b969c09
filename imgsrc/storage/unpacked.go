package storage

import (
	"context"
	"errors"
	"fmt"
	"hash/crc64"
	"io"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/flight"
)

// unpacked is a directory with the files of a layer.
type unpacked struct {
	s   *Source
	dir string
	sum bool // whether Where is a checksum

	mu     sync.Mutex
	root   int // the directory, open if opened is set
	opened bool
}

// ReadBody returns nothing that does not have the checksum Where, if that is one.
func (u *unpacked) ReadBody(ctx context.Context, b imgsrc.Body, p []byte, off int64) (int, error) {
	if off < 0 || off >= b.Size {
		return 0, io.EOF
	}
	var end error
	if int64(len(p)) > b.Size-off {
		p, end = p[:b.Size-off], io.EOF
	}
	var err error
	if b.Size <= smallBody {
		err = u.readSmall(b, p, off)
	} else {
		err = u.readLarge(ctx, b, p, off)
	}
	switch {
	case err == nil:
		return len(p), end
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return 0, err
	}
	return 0, fmt.Errorf("reading from %s: %w", u.dir, err)
}

// readSmall reads a whole file, and fills p from it. It keeps nothing open, and makes no more system calls than it must:
// small files are most of a layer.
func (u *unpacked) readSmall(b imgsrc.Body, p []byte, off int64) error {
	fd, err := u.open(b.Path)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return &os.PathError{Op: "stat", Path: b.Path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size != b.Size {
		return fmt.Errorf("%q has %d bytes on the disk, and %d in the layer: %w", b.Path, st.Size, b.Size, imgsrc.ErrDamaged)
	}
	whole := p
	if int64(len(p)) < b.Size {
		whole = make([]byte, b.Size)
	}
	for n := 0; n < len(whole); {
		m, err := unix.Pread(fd, whole[n:], int64(n))
		if err != nil && err != unix.EINTR {
			return &os.PathError{Op: "read", Path: b.Path, Err: err}
		}
		if m == 0 && err == nil {
			break // it has become shorter: the checksum tells
		}
		n += max(0, m)
	}
	if u.sum && crc64.Checksum(whole, crcTable) != b.Where {
		return fmt.Errorf("%q has another checksum than the layer: %w", b.Path, imgsrc.ErrDamaged)
	}
	copy(p, whole[off:])
	return nil
}

// A fileKey names a file of an unpacked layer.
type fileKey struct{ dir, name string }

// readLarge reads from a file that stays open, and is verified once in each of its states.
func (u *unpacked) readLarge(ctx context.Context, b imgsrc.Body, p []byte, off int64) error {
	f, release, err := u.openLarge(b.Path)
	if err != nil {
		return err
	}
	defer release()
	key := fileKey{u.dir, b.Path}
	for range 3 {
		id, err := identityOf(f.File)
		if err != nil {
			return err
		}
		if !u.s.verified.has(key, id) {
			if err := u.verify(ctx, key, b); err != nil {
				return err
			}
			if !u.s.verified.has(key, id) {
				continue
			}
		}
		if _, err := f.ReadAt(p, off); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		// What was read is what was verified if the file is still the same now.
		now, err := identityOf(f.File)
		if err != nil {
			return err
		}
		if now == id {
			return nil
		}
	}
	return fmt.Errorf("%q changes while it is read: %w", b.Path, imgsrc.ErrDamaged)
}

// verify compares a large file with its body, once for all who wait.
func (u *unpacked) verify(ctx context.Context, key fileKey, b imgsrc.Body) error {
	_, err := flight.Do(ctx, u.s.work, key, func(ctx context.Context) (struct{}, error) {
		// The reader that began this may leave, and close what it has open.
		own := &unpacked{s: u.s, dir: u.dir, sum: u.sum}
		defer own.Close()
		f, release, err := own.openLarge(b.Path)
		if err != nil {
			return struct{}{}, err
		}
		defer release()
		var id identity
		if u.sum {
			id, err = checkFile(ctx, f.File, b.Path, b.Size, b.Where)
		} else if id, err = identityOf(f.File); err == nil && id.size != b.Size {
			err = fmt.Errorf("%q has %d bytes, and had %d: %w", b.Path, id.size, b.Size, imgsrc.ErrDamaged)
		}
		if err == nil {
			u.s.verified.add(key, id)
		}
		return struct{}{}, err
	})
	return err
}

func (u *unpacked) openLarge(name string) (*openFile, func(), error) {
	return u.s.bodies.open(fileKey{u.dir, name}, func() (*os.File, error) {
		fd, err := u.open(name)
		if err != nil {
			return nil, err
		}
		return os.NewFile(uintptr(fd), filepath.Join(u.dir, name)), nil
	})
}

// open opens a file below the directory. The name comes from the layer.
func (u *unpacked) open(name string) (int, error) {
	root, err := u.openRoot()
	if err != nil {
		return -1, err
	}
	return u.s.openIn(root, u.dir, name)
}

func (u *unpacked) openRoot() (int, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.opened {
		return u.root, nil
	}
	fd, err := openDir(u.dir)
	if err != nil {
		return -1, err
	}
	u.root, u.opened = fd, true
	return fd, nil
}

// Close is called when nobody reads any more.
func (u *unpacked) Close() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.opened {
		return nil
	}
	u.opened = false
	return unix.Close(u.root)
}

// verifiedFiles is how many large files are remembered as right.
const verifiedFiles = 4096

// verified remembers in which state a file was found right.
type verified struct {
	mu    sync.Mutex
	files *lru[fileKey, identity] // guarded by mu
}

func newVerified() *verified { return &verified{files: newLRU[fileKey, identity](verifiedFiles, nil)} }

func (v *verified) has(key fileKey, id identity) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	was, ok := v.files.get(key)
	return ok && was == id
}

func (v *verified) add(key fileKey, id identity) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.files.put(key, id, 1)
}
