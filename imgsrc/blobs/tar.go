package blobs

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"sync"
	"syscall"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/layer"
)

const (
	// maxMembers bounds an archive. A large image has some hundred.
	maxMembers = 1 << 20
	// maxPath bounds a member's name and where a link leads, in bytes, and maxNames those of all together: a tar may give
	// each a MiB, and compress that to nothing.
	maxPath  = unix.PathMax
	maxNames = 128 << 20
	// maxHops is how many links in an archive may lead to one another.
	maxHops = 16
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
	entries  map[string]member
	err      error // why there may be more than this: the archive is cut short, or damaged

	mu   sync.Mutex
	refs int
}

// A member is one entry of the archive.
type member struct {
	off, size int64
	link      string // where another entry's body is meant
	sparse    bool   // the tar has it without its holes
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
	m := &members{file: f, identity: IdentityOf(fi), plain: f, entries: map[string]member{}, refs: 1}
	size := fi.Size()
	head := make([]byte, layer.HeadLen)
	n, err := f.ReadAt(head, 0)
	if err != nil && err != io.EOF {
		return nil, err
	}
	if kind := layer.Detect(head[:n]); kind != layer.None {
		if m.plain, size, err = t.decompressed(ctx, f, kind); err != nil {
			return nil, fmt.Errorf("decompressing %s: %w", t.file, err)
		}
	}
	if err := m.readHeaders(ctx, t.file, size, maxNames); err != nil {
		if m.plain != layerReader(f) {
			err = errors.Join(err, m.plain.Close())
		}
		return nil, err
	}
	return m, nil
}

// readHeaders takes in the members of a tar of this size, with names of at most limit bytes in all. What comes after a
// broken header is not found, and m.err says so.
func (m *members) readHeaders(ctx context.Context, file string, size, limit int64) error {
	source := &tracked{r: m.plain}
	in := io.NewSectionReader(source, 0, size)
	tr := tar.NewReader(in)
	names := int64(0)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if source.err != nil { // that says nothing about the archive
			return fmt.Errorf("reading %s: %w", file, source.err)
		}
		if err != nil {
			m.err = fmt.Errorf("reading %s after %d members: %w", file, len(m.entries), err)
			if len(m.entries) == 0 {
				return fmt.Errorf("%w: %s is no tar archive, compressed or not: %w", imgsrc.ErrNoSource, file, err)
			}
			return nil
		}
		off, err := in.Seek(0, io.SeekCurrent)
		if err != nil {
			return err
		}
		if len(m.entries) == maxMembers {
			return fmt.Errorf("%w: %s has more than %d members", imgsrc.ErrUnsupported, file, maxMembers)
		}
		if len(h.Name) > maxPath || len(h.Linkname) > maxPath {
			continue // nobody asks for it
		}
		if names += int64(len(h.Name) + len(h.Linkname)); names > limit {
			return fmt.Errorf("%w: the names in %s have more than %d bytes", imgsrc.ErrUnsupported, file, limit)
		}
		name := clean(h.Name)
		switch h.Typeflag {
		case tar.TypeReg, tar.TypeGNUSparse:
			e := member{off: off, size: h.Size, sparse: isSparse(h)}
			m.entries[name] = e
			if !e.sparse && h.Size > size-off {
				m.err = fmt.Errorf("%s ends within %s", file, name)
			}
		case tar.TypeLink:
			m.entries[name] = member{link: clean(h.Linkname)}
		case tar.TypeSymlink:
			m.entries[name] = member{link: clean(path.Join(path.Dir(name), h.Linkname))}
		}
	}
}

// tracked remembers that what lies below a tar's reader has failed.
type tracked struct {
	r   io.ReaderAt
	err error
}

func (t *tracked) ReadAt(p []byte, off int64) (int, error) {
	n, err := t.r.ReadAt(p, off)
	if err != nil && err != io.EOF {
		t.err = err
	}
	return n, err
}

// isSparse says whether a member lies in the archive as GNU tar writes it with --sparse.
func isSparse(h *tar.Header) bool {
	if h.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// clean is a member's path from the archive's top, out of which none leads.
func clean(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }

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

// find follows links to a body.
func (m *members) find(name string) (member, error) {
	for range maxHops {
		e, ok := m.entries[name]
		switch {
		case !ok && m.err != nil:
			return member{}, fmt.Errorf("%w: %s is not in the archive: %w: %w", imgsrc.ErrDamaged, name, m.err, fs.ErrNotExist)
		case !ok:
			return member{}, fmt.Errorf("%s is not in the archive: %w", name, fs.ErrNotExist)
		case e.sparse:
			return member{}, fmt.Errorf("%w: %s lies in the archive without its holes: make the archive without --sparse", imgsrc.ErrUnsupported, name)
		case e.link == "":
			return e, nil
		}
		name = e.link
	}
	return member{}, fmt.Errorf("%w: %s is a link that leads to no file", imgsrc.ErrDamaged, name)
}

func (m *members) identityOf(e member) Identity {
	id := m.identity
	id.off, id.size = e.off, e.size
	return id
}

// Open implements [Dir].
func (t *Tar) Open(name string) (File, error) {
	m, err := t.current()
	if err != nil {
		return nil, err
	}
	e, err := m.find(clean(name))
	if err != nil {
		m.release()
		return nil, err
	}
	return &tarFile{m: m, ReaderAt: io.NewSectionReader(m.plain, e.off, e.size), identity: m.identityOf(e)}, nil
}

// Stat implements [Dir].
func (t *Tar) Stat(name string) (Identity, error) {
	m, err := t.current()
	if err != nil {
		return Identity{}, err
	}
	defer m.release()
	e, err := m.find(clean(name))
	if err != nil {
		return Identity{}, err
	}
	return m.identityOf(e), nil
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
	return m.err
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
