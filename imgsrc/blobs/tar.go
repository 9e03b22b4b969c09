package blobs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"syscall"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/layer"
)

// A Tar is the files of a tar archive, by their clean paths.
type Tar struct {
	file  string // the archive's path
	cache *layer.Cache

	ctx    context.Context // of indexing it anew
	cancel context.CancelFunc

	mu     sync.Mutex
	now    *members // nil once it is closed
	failed unread
}

// unread is a state of the archive that could not be indexed.
type unread struct {
	identity Identity
	err      error
}

var _ Dir = (*Tar)(nil)

// OpenTar indexes an archive. Cache takes the bytes of one that is compressed; without it such an archive is
// imgsrc.ErrUnsupported. Other errors: imgsrc.ErrNoSource if it is no tar archive.
func OpenTar(ctx context.Context, file string, cache *layer.Cache) (*Tar, error) {
	t := &Tar{file: file, cache: cache}
	m, err := t.index(ctx)
	if err != nil {
		return nil, err
	}
	t.now = m
	t.ctx, t.cancel = context.WithCancel(context.Background())
	return t, nil
}

// members is what an archive held when it was indexed. It stays open as long as one of its members is.
type members struct {
	file     *os.File
	identity Identity
	plain    layerReader // the tar's bytes
	*Members

	mu   sync.Mutex
	refs int
}

// layerReader is random access to the tar, compressed or not.
type layerReader interface {
	io.ReaderAt
	io.Closer
}

// index reads the headers of the archive as it is now.
func (t *Tar) index(ctx context.Context) (*members, error) {
	f, err := os.OpenFile(t.file, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
			err = fmt.Errorf("%w: %w", imgsrc.ErrNoSource, err)
		}
		return nil, err
	}
	m, err := t.indexFile(ctx, f)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return m, nil
}

func (t *Tar) indexFile(ctx context.Context, f *os.File) (*members, error) {
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("%w: %s is not a regular file", imgsrc.ErrNoSource, t.file)
	}
	m := &members{file: f, identity: IdentityOf(fi), plain: f, refs: 1}
	size := fi.Size()
	head := make([]byte, layer.HeadLen)
	n, err := f.ReadAt(head, 0)
	if err != nil && err != io.EOF {
		return nil, err
	}
	if kind := layer.Detect(head[:n]); kind != layer.None {
		m.plain, size, err = t.decompressed(ctx, f, kind)
		if errors.Is(err, io.ErrUnexpectedEOF) && errors.Is(err, imgsrc.ErrDamaged) {
			return nil, imgsrc.Of(err, fmt.Errorf("%s: %w: it is cut short at byte %d, within its %s stream", t.file, imgsrc.ErrDamaged, fi.Size(), kind))
		}
		if err != nil {
			return nil, fmt.Errorf("decompressing %s: %w", t.file, err)
		}
	}
	m.Members, err = ReadMembers(ctx, m.plain, t.file, size, maxNames)
	switch {
	case err == nil && fi.Size() == 0:
		err = fmt.Errorf("%w: %s is empty", imgsrc.ErrNoSource, t.file)
	case err == nil && m.Err != nil && m.headers == 0:
		err = fmt.Errorf("%w: %s is no tar archive, compressed or not", imgsrc.ErrNoSource, t.file)
	}
	if err != nil {
		if m.plain != layerReader(f) {
			err = errors.Join(err, m.plain.Close())
		}
		return nil, err
	}
	return m, nil
}

// decompressed is the whole archive without its compression, as the cache has it.
func (t *Tar) decompressed(ctx context.Context, f *os.File, kind layer.Compression) (layerReader, int64, error) {
	if t.cache == nil {
		return nil, 0, fmt.Errorf("%w: %s compression without a cache", imgsrc.ErrUnsupported, kind)
	}
	sum := digest.Canonical.Digester()
	if _, err := io.Copy(sum.Hash(), readerOf(ctx, f)); err != nil {
		return nil, 0, err
	}
	c := t.cache.Diff(sum.Digest(), "", func(context.Context) (io.ReadCloser, error) { return os.Open(t.file) })
	size, err := c.Size(ctx)
	if err != nil {
		return nil, 0, errors.Join(err, c.Close())
	}
	return contentAt{c}, size, nil
}

// readerOf reads a file from its beginning until ctx ends.
func readerOf(ctx context.Context, f io.ReaderAt) io.Reader {
	return &ctxReader{ctx, io.NewSectionReader(f, 0, 1<<62)}
}

type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (r *ctxReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

// contentAt is a Content as an io.ReaderAt. What it waits for is decompressed already.
type contentAt struct{ c imgsrc.Content }

func (c contentAt) ReadAt(p []byte, off int64) (int, error) {
	return c.c.ReadAt(context.Background(), p, off)
}

func (c contentAt) Close() error { return c.c.Close() }

// current returns the archive's members as they are now; the caller lets go of them.
func (t *Tar) current() (*members, error) {
	fi, err := os.Stat(t.file)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.now == nil {
		return nil, fmt.Errorf("reading %s: %w", t.file, fs.ErrClosed)
	}
	if id := IdentityOf(fi); t.now.identity != id {
		if t.failed.identity == id {
			return nil, t.failed.err
		}
		m, err := t.index(t.ctx)
		if err != nil {
			if isVerdict(err) {
				t.failed = unread{id, err}
			}
			return nil, err
		}
		t.now.release()
		t.now = m
	}
	t.now.mu.Lock()
	t.now.refs++
	t.now.mu.Unlock()
	return t.now, nil
}

// isVerdict says whether an error is about the archive, and not about this attempt to read it.
func isVerdict(err error) bool {
	return errors.Is(err, imgsrc.ErrDamaged) || errors.Is(err, imgsrc.ErrNoSource) || errors.Is(err, imgsrc.ErrUnsupported)
}

func (m *members) release() {
	m.mu.Lock()
	m.refs--
	last := m.refs == 0
	m.mu.Unlock()
	if last {
		m.plain.Close()
		m.file.Close()
	}
}

func (m *members) identityOf(at Place) Identity {
	id := m.identity
	id.off, id.size = at.Off, at.Size
	return id
}

// Open implements [Dir].
func (t *Tar) Open(name string) (File, error) {
	m, err := t.current()
	if err != nil {
		return nil, err
	}
	at, err := m.Find(name)
	if err != nil {
		m.release()
		return nil, err
	}
	return &tarFile{m: m, ReaderAt: io.NewSectionReader(m.plain, at.Off, at.Size), identity: m.identityOf(at)}, nil
}

// Stat implements [Dir].
func (t *Tar) Stat(name string) (Identity, error) {
	m, err := t.current()
	if err != nil {
		return Identity{}, err
	}
	defer m.release()
	at, err := m.Find(name)
	if err != nil {
		return Identity{}, err
	}
	return m.identityOf(at), nil
}

// File is the archive's path, as it was opened.
func (t *Tar) File() string { return t.file }

// Identity is the archive's own, also if it cannot be indexed as it is now.
func (t *Tar) Identity() (Identity, error) {
	fi, err := os.Stat(t.file)
	if err != nil {
		return Identity{}, err
	}
	return IdentityOf(fi), nil
}

// Problem is why the archive may hold more than what could be found in it; nil if it is whole.
func (t *Tar) Problem() error {
	m, err := t.current()
	if err != nil {
		return err
	}
	defer m.release()
	return m.Err
}

// Rest is why what is not in the archive may only be missing; nil if nothing is. An archive that ends between two members, and
// without an end, is whole if it has all that is asked for.
func (t *Tar) Rest() error {
	m, err := t.current()
	if err != nil {
		return err
	}
	defer m.release()
	return m.rest()
}

// Close implements [Dir]. Members that are open stay readable.
func (t *Tar) Close() error {
	t.cancel()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.now != nil {
		t.now.release()
		t.now = nil
	}
	return nil
}

type tarFile struct {
	io.ReaderAt
	m        *members
	identity Identity
	once     sync.Once
}

func (f *tarFile) Identity() Identity { return f.identity }

func (f *tarFile) Now() (Identity, error) {
	fi, err := f.m.file.Stat()
	if err != nil {
		return Identity{}, err
	}
	id := IdentityOf(fi)
	id.off, id.size = f.identity.off, f.identity.size
	return id, nil
}

func (f *tarFile) Close() error {
	f.once.Do(f.m.release)
	return nil
}
