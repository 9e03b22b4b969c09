package storage

import (
	"context"
	"errors"
	"fmt"
	"hash/crc64"
	"hash/maphash"
	"io"
	"io/fs"
	"os"
	"path"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/flight"
)

const (
	// openFiles is how many bodies a source keeps open.
	openFiles = 32
	// smallBody is the length in bytes up to which a body is verified by whoever reads it first. The verification of a
	// longer one is shared by all readers and does not end when one of them leaves.
	smallBody = 256 << 10
	// verifyChunk is how many bytes are verified between two looks at the context.
	verifyChunk = 1 << 20
)

// identity tells one state of a file from another.
type identity struct {
	dev, ino     uint64
	size         int64
	mtime, ctime syscall.Timespec
}

func identityOf(f *os.File) (identity, error) {
	info, err := f.Stat()
	if err != nil {
		return identity{}, err
	}
	if !info.Mode().IsRegular() {
		return identity{}, fmt.Errorf("%s is not a regular file: %w", f.Name(), imgsrc.ErrDamaged)
	}
	return identityIn(info), nil
}

func identityIn(info fs.FileInfo) identity {
	st := info.Sys().(*syscall.Stat_t)
	return identity{st.Dev, st.Ino, st.Size, st.Mtim, st.Ctim}
}

// bodies keeps the files that were read last open.
type bodies struct {
	mu     sync.Mutex
	closed bool                 // guarded by mu
	files  *lru[any, *openFile] // guarded by mu
}

type bodyKey struct {
	l *layerIndex
	n int
}

// An openFile is closed when it has fallen out of the cache and the last reader has let go of it.
type openFile struct {
	*os.File
	refs int // guarded by bodies.mu; the cache holds one
}

func newBodies() *bodies {
	return &bodies{files: newLRU[any](openFiles, func(f *openFile) { f.unref() })}
}

// unref is called with bodies.mu held.
func (f *openFile) unref() {
	if f.refs--; f.refs == 0 {
		f.Close() // nothing was written
	}
}

// open returns the file that is known by key, and what to call when it is not needed any more.
func (b *bodies) open(key any, open func() (*os.File, error)) (*openFile, func(), error) {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return nil, nil, fs.ErrClosed
	}
	f, ok := b.files.get(key)
	if ok {
		f.refs++
		b.mu.Unlock()
		return f, func() { b.release(f) }, nil
	}
	b.mu.Unlock()
	file, err := open()
	if err != nil {
		return nil, nil, err
	}
	f = &openFile{File: file, refs: 2}
	b.mu.Lock()
	if b.closed {
		f.refs--
	} else {
		b.files.put(key, f, 1)
	}
	b.mu.Unlock()
	return f, func() { b.release(f) }, nil
}

func (b *bodies) release(f *openFile) {
	b.mu.Lock()
	f.unref()
	b.mu.Unlock()
}

// drop closes the files that nobody is reading, so that removed layers do not keep their space on the disk.
func (b *bodies) drop() {
	b.mu.Lock()
	b.files.clear()
	b.mu.Unlock()
}

func (b *bodies) close() {
	b.mu.Lock()
	b.closed = true
	b.files.clear()
	b.mu.Unlock()
}

// openFile opens the file of a body, somewhere below the layer's directory.
func (s *Source) openFile(l *layerIndex, name string) (*os.File, error) {
	rel := path.Clean("/" + name)[1:]
	if rel == "" {
		return nil, fmt.Errorf("a body is named %q: %w", name, imgsrc.ErrDamaged)
	}
	root, err := openDir(l.dir)
	if err != nil {
		return nil, err
	}
	defer unix.Close(root)
	fd, err := s.openIn(root, l.dir, rel)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path.Join(l.dir, rel)), nil
}

// fingerprint is what is kept of the identity in which a body was verified; never 0.
func (l *layerIndex) fingerprint(id identity) uint64 { return max(maphash.Comparable(l.seed, id), 1) }

// readBody fills p with the bytes of a body from off on, which must be there. It returns nothing that was not verified.
func (s *Source) readBody(ctx context.Context, l *layerIndex, c body, p []byte, off int64) error {
	f, release, err := s.openBody(l, c)
	if err != nil {
		return err
	}
	defer release()
	for range 3 {
		id, err := identityOf(f.File)
		if err != nil {
			return err
		}
		state := l.fingerprint(id)
		if l.verified[c.n].Load() != state {
			if err := s.verify(ctx, l, c, f); err != nil {
				return err
			}
			if l.verified[c.n].Load() != state {
				continue
			}
		}
		if _, err := f.ReadAt(p, off); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		// What was read is what was verified if the file is still the same now.
		if id, err = identityOf(f.File); err != nil {
			return err
		}
		if l.fingerprint(id) == state {
			return nil
		}
	}
	return fmt.Errorf("%q changes while it is read: %w", c.name, imgsrc.ErrDamaged)
}

func (s *Source) openBody(l *layerIndex, c body) (*openFile, func(), error) {
	return s.bodies.open(bodyKey{l, c.n}, func() (*os.File, error) { return s.openFile(l, c.name) })
}

// verify compares a body's length and checksum with the recorded ones, and notes in which state it was found right.
func (s *Source) verify(ctx context.Context, l *layerIndex, c body, f *openFile) error {
	if c.size <= smallBody {
		return verifyFile(ctx, l, c, f.File)
	}
	_, err := flight.Do(ctx, s.work, bodyKey{l, c.n}, func(ctx context.Context) (struct{}, error) {
		// The reader that began this may leave, and close its file.
		f, release, err := s.openBody(l, c)
		if err != nil {
			return struct{}{}, err
		}
		defer release()
		return struct{}{}, verifyFile(ctx, l, c, f.File)
	})
	return err
}

func verifyFile(ctx context.Context, l *layerIndex, c body, f *os.File) error {
	id, err := checkFile(ctx, f, c.name, c.size, c.crc)
	if err == nil {
		l.verified[c.n].Store(l.fingerprint(id))
	}
	return err
}

// checkFile compares a file with the length and the checksum of a body, and returns the identity in which it was found
// right.
func checkFile(ctx context.Context, f *os.File, name string, size int64, want uint64) (identity, error) {
	id, err := identityOf(f)
	if err != nil {
		return id, err
	}
	if id.size != size {
		return id, fmt.Errorf("%q has %d bytes on the disk, and %d in the layer: %w", name, id.size, size, imgsrc.ErrDamaged)
	}
	buf := make([]byte, min(size, verifyChunk))
	crc := crc64.New(crcTable)
	for off := int64(0); off < size; {
		if err := ctx.Err(); err != nil {
			return id, err
		}
		n, err := f.ReadAt(buf[:min(int64(len(buf)), size-off)], off)
		if err != nil && !errors.Is(err, io.EOF) {
			return id, err
		}
		if n == 0 {
			break // it has become shorter: the checksum tells
		}
		crc.Write(buf[:n])
		off += int64(n)
	}
	if crc.Sum64() != want {
		return id, fmt.Errorf("%q has another checksum than the layer: %w", name, imgsrc.ErrDamaged)
	}
	return id, nil
}
