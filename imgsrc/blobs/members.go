package blobs

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
)

const (
	// maxMembers bounds an archive. A large image has some hundred.
	maxMembers = 1 << 20
	// MaxPath bounds a member's name and where a link leads, in bytes; maxNames is as much of an archive on a disk: a tar may
	// give each a MiB, and compress that to nothing.
	MaxPath  = unix.PathMax
	maxNames = 128 << 20
	// maxHops is how many links in an archive may lead to one another.
	maxHops = 16
)

// Members are where the files of a tar lie, by their clean paths.
type Members struct {
	// Err is why there may be more than these: the tar is cut short, or damaged.
	Err error

	entries map[string]member
	headers int // that were read, those of directories too
	// unmarked is Err for what is not among them in a tar that stops where a header could be, without its two blocks of zeros:
	// it was cut just there, or made by a program that leaves them out. Of such a one what is there is taken for all.
	unmarked error
}

// A member is one entry of the archive.
type member struct {
	Place
	link   string // where another entry's body is meant
	sparse bool   // the tar has it without its holes
}

// A Place is a run of bytes.
type Place struct{ Off, Size int64 }

// ReadMembers takes in the members of a tar of this size, with names of at most limit bytes in all; file is its name, for
// messages. What comes after a broken header is not found, and Err says so. Errors: r's and ctx's; imgsrc.ErrUnsupported if
// there are too many, or their names are too long.
func ReadMembers(ctx context.Context, r io.ReaderAt, file string, size, limit int64) (*Members, error) {
	m := &Members{entries: map[string]member{}}
	source := &tracked{r: r}
	in := io.NewSectionReader(source, 0, size)
	tr := tar.NewReader(in)
	names := int64(0)
	within := "" // the member whose body is not all there
	for ; ; m.headers++ {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		h, err := tr.Next()
		if err == io.EOF {
			if !source.zeros {
				m.unmarked = m.cutShort(size, "", io.ErrUnexpectedEOF)
			}
			return m, nil
		}
		if source.err != nil { // that says nothing about the archive
			return nil, fmt.Errorf("reading %s: %w", file, source.err)
		}
		if errors.Is(err, io.ErrUnexpectedEOF) {
			m.Err = m.cutShort(size, within, err)
			return m, nil
		}
		if err != nil {
			m.Err = fmt.Errorf("after %s: %w", m.count(), err)
			return m, nil
		}
		off, err := in.Seek(0, io.SeekCurrent) // the reader reads no further than it has to
		if err != nil {
			return nil, err
		}
		if len(m.entries) == maxMembers {
			return nil, fmt.Errorf("%w: %s has more than %d members", imgsrc.ErrUnsupported, file, maxMembers)
		}
		if len(h.Name) > MaxPath || len(h.Linkname) > MaxPath {
			continue // nobody asks for it
		}
		if names += int64(len(h.Name) + len(h.Linkname)); names > limit {
			return nil, fmt.Errorf("%w: the names in %s have more than %d bytes", imgsrc.ErrUnsupported, file, limit)
		}
		name := clean(h.Name)
		switch h.Typeflag {
		case tar.TypeReg, tar.TypeGNUSparse:
			e := member{Place: Place{off, h.Size}, sparse: isSparse(h)}
			m.entries[name] = e
			if !e.sparse && h.Size > size-off {
				within = name
			}
		case tar.TypeLink:
			m.entries[name] = member{link: clean(h.Linkname)}
		case tar.TypeSymlink:
			m.entries[name] = member{link: clean(path.Join(path.Dir(name), h.Linkname))}
		}
	}
}

// cutShort says where the tar ends, in a member or behind the last one. It is io.ErrUnexpectedEOF.
func (m *Members) cutShort(size int64, within string, err error) error {
	where := "after " + m.count()
	if within != "" {
		where = fmt.Sprintf("within %q", within)
	}
	return imgsrc.Of(err, fmt.Errorf("its tar is cut short at byte %d, %s", size, where))
}

// count says how many members were found.
func (m *Members) count() string {
	if m.headers == 1 {
		return "1 member"
	}
	return fmt.Sprintf("%d members", m.headers)
}

// tracked remembers that what lies below a tar's reader has failed, and whether what was read last was a block of zeros, as at
// the end of a tar.
type tracked struct {
	r     io.ReaderAt
	err   error
	zeros bool
}

const tarBlock = 512

func (t *tracked) ReadAt(p []byte, off int64) (int, error) {
	n, err := t.r.ReadAt(p, off)
	if err != nil && err != io.EOF {
		t.err = err
	}
	if n > 0 {
		t.zeros = n == tarBlock && [tarBlock]byte(p[:n]) == [tarBlock]byte{}
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

// rest is why a member may be missing; nil if all are there.
func (m *Members) rest() error {
	if m.Err != nil {
		return m.Err
	}
	return m.unmarked
}

// Len is how many there are, with the links among them.
func (m *Members) Len() int { return len(m.entries) }

// Find returns where a file lies, also through links. Errors: fs.ErrNotExist, with imgsrc.ErrDamaged if it may be behind
// what can be read; imgsrc.ErrDamaged for a link that leads nowhere; imgsrc.ErrUnsupported for a sparse file.
func (m *Members) Find(name string) (Place, error) {
	name = clean(name)
	for range maxHops {
		e, ok := m.entries[name]
		switch {
		case !ok && m.rest() != nil:
			return Place{}, imgsrc.Of(fs.ErrNotExist, fmt.Errorf("%w: %s is not in what can be read of the archive: %w", imgsrc.ErrDamaged, name, m.rest()))
		case !ok:
			return Place{}, imgsrc.Of(fs.ErrNotExist, fmt.Errorf("%s is not in the archive", name))
		case e.sparse:
			return Place{}, fmt.Errorf("%w: %s lies in the archive without its holes: make the archive without --sparse", imgsrc.ErrUnsupported, name)
		case e.link == "":
			return e.Place, nil
		}
		name = e.link
	}
	return Place{}, fmt.Errorf("%w: %s is a link that leads to no file", imgsrc.ErrDamaged, name)
}
