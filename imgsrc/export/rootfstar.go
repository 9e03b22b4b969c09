package export

import (
	"context"
	"fmt"
	"io"
	"sort"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/layer"
)

// A RootfsTar is the layout of a tree as a tar: where each of its entries begins. It holds neither the tree nor any
// header, which are made again for whoever reads there: twelve bytes a file, and what hard links take.
//
// The entries are in the order of a walk, a directory before what is in it and names sorted, from "./" on. A file's
// further names are links to the first of them. A sparse file is one in the tar too (PAX, GNU's format 1.0).
type RootfsTar struct {
	nodes []uint32          // of the entries
	at    []int64           // where each begins, and where the last one ends
	first map[uint32]uint32 // of a file with several names, by its inode: the name that comes first
	made  time.Time         // when the image was made: the time of directories that no layer has an entry for

	large atomic.Pointer[largeHead]
}

// A largeHead is the header of the entry that was read last of those whose headers are large: to make it again for every
// part of it would take long.
type largeHead struct {
	entry int
	member
}

// largeHeads is how many bytes a header has that is kept.
const largeHeads = 64 << 10

// A PlaceReader reads the file that has its bytes at a place in a tree, as imgsrc.Content.ReadAt does. Holes are zeros.
type PlaceReader func(ctx context.Context, p layer.Place, b []byte, off int64) (int, error)

// LayOutRootfs lays out a tree as a tar. It reads no body. Errors: imgsrc.ErrDamaged if there is an entry that cannot be
// had: an archive without it would be another tree's; imgsrc.ErrUnsupported if it would be too large; ctx's.
func LayOutRootfs(ctx context.Context, t *layer.Tree, made time.Time) (*RootfsTar, error) {
	r := &RootfsTar{nodes: make([]uint32, 0, t.Len()), at: make([]int64, 1, t.Len()+1), first: map[uint32]uint32{}, made: made}
	var buf []byte
	end := int64(0)
	add := func(n uint32) error {
		if len(r.nodes)%1024 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		if linked(t, n) {
			if in := t.Inode(n); r.first[in] == 0 { // the root is no file
				r.first[in] = n
			}
		}
		e, err := r.entry(t, n, buf[:0])
		if err != nil {
			return err
		}
		if e.body > maxArchive-end {
			return errTooLarge(t.Path(n))
		}
		buf = e.head
		r.nodes = append(r.nodes, n)
		end += e.size()
		r.at = append(r.at, end)
		return nil
	}
	if err := add(0); err != nil {
		return nil, err
	}
	type dir struct{ next, end uint32 }
	first, count, _ := t.Dir(0)
	walk := []dir{{first, first + count}}
	for len(walk) > 0 {
		d := &walk[len(walk)-1]
		if d.next == d.end {
			walk = walk[:len(walk)-1]
			continue
		}
		n := d.next
		d.next++
		if err := add(n); err != nil {
			return nil, err
		}
		if first, count, ok := t.Dir(n); ok && count > 0 {
			walk = append(walk, dir{first, first + count})
		}
	}
	return r, nil
}

// linked says whether a file has several names.
func linked(t *layer.Tree, n uint32) bool {
	a, err := t.Attr(n)
	return err == nil && a.Nlink > 1
}

// A member is an entry of the tar: its header, with a sparse file's map, and its body.
type member struct {
	head   []byte
	body   int64       // bytes
	place  layer.Place // of the body
	sparse *sparseBody
}

func (m *member) size() int64 { return int64(len(m.head)) + padded(m.body) }

// reader reads the body.
func (m *member) reader(read PlaceReader) Reader {
	file := func(ctx context.Context, p []byte, off int64) (int, error) { return read(ctx, m.place, p, off) }
	if m.sparse != nil {
		return m.sparse.reader(file)
	}
	return file
}

// entry makes the entry of a node; its header is appended to buf.
func (r *RootfsTar) entry(t *layer.Tree, n uint32, buf []byte) (member, error) {
	a, err := t.Attr(n)
	if err != nil {
		return member{}, err
	}
	h := header{name: t.Path(n), mode: a.Mode & 0o7777, uid: a.UID, gid: a.GID, sec: a.Sec, nsec: a.Nsec, xattrs: t.Xattrs(n)}
	if a.Implicit {
		h.sec, h.nsec = r.made.Unix(), uint32(r.made.Nanosecond())
	}
	if a.Nlink > 1 {
		if first := r.first[t.Inode(n)]; first != n {
			h.typ, h.link = typeLink, t.Path(first)
			return member{head: appendHeader(buf, &h)}, nil
		}
	}
	switch a.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		h.typ, h.name = typeDir, h.name+"/"
		if n == 0 {
			h.name = "./"
		}
	case unix.S_IFREG:
		h.typ = typeRegular
		m := member{}
		m.place, _ = t.Place(n)
		if m.body = m.place.Size; m.place.Extents != nil {
			m.sparse = newSparseBody(m.place.Extents, m.place.Size)
		}
		if m.sparse == nil {
			h.size = m.body
			m.head = appendHeader(buf, &h)
			return m, nil
		}
		m.body = m.sparse.data()
		h.sparse, h.realSize, h.size = true, m.place.Size, int64(len(m.sparse.text))+m.body
		m.head = append(appendHeader(buf, &h), m.sparse.text...)
		return m, nil
	case unix.S_IFLNK:
		h.typ = typeSymlink
		h.link, _ = t.Readlink(n)
	case unix.S_IFCHR, unix.S_IFBLK:
		h.typ = typeChar
		if a.Mode&unix.S_IFMT == unix.S_IFBLK {
			h.typ = typeBlock
		}
		h.major, h.minor = a.Rdev>>8&0xfff, a.Rdev&0xff|a.Rdev>>12&^0xff
	case unix.S_IFIFO:
		h.typ = typeFIFO
	default:
		return member{}, fmt.Errorf("%q: %w: no tar has a file of mode %o", t.Path(n), imgsrc.ErrUnsupported, a.Mode)
	}
	return member{head: appendHeader(buf, &h)}, nil
}

// Size is how many bytes the tar has.
func (r *RootfsTar) Size() int64 { return r.at[len(r.at)-1] + int64(len(trailer)) }

// Memory is what the layout occupies, in bytes.
func (r *RootfsTar) Memory() int64 {
	return int64(cap(r.nodes))*4 + int64(cap(r.at))*8 + int64(len(r.first))*16
}

// ReadAt reads from the tar as imgsrc.Content.ReadAt does. t is the tree that it was made from, or one that was made from
// the same layers, and read reads the bodies of its files.
func (r *RootfsTar) ReadAt(ctx context.Context, t *layer.Tree, read PlaceReader, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errNegative(off)
	}
	n := 0
	var buf []byte
	for i := sort.Search(len(r.nodes), func(i int) bool { return r.at[i+1] > off }); n < len(p) && i < len(r.nodes); i++ {
		e, err := r.again(t, i, &buf)
		if err != nil {
			return n, err
		}
		at := off + int64(n) - r.at[i]
		if head := int64(len(e.head)); at < head {
			k := copy(p[n:], e.head[at:])
			n, at = n+k, at+int64(k)-head
		} else {
			at -= head
		}
		if at >= 0 && at < e.body && n < len(p) {
			part := p[n:min(int64(len(p)), int64(n)+e.body-at)]
			if err := readBody(ctx, e.reader(read), part, at); err != nil {
				return n, fmt.Errorf("reading %q at %d: %w", e.place.Body.Path, at, err)
			}
			n += len(part)
		}
		rest := p[n:max(n, int(min(int64(len(p)), r.at[i+1]-off)))]
		clear(rest)
		n += len(rest)
	}
	if n < len(p) && off+int64(n) < r.Size() {
		rest := p[n:min(int64(len(p)), r.Size()-off)]
		clear(rest)
		n += len(rest)
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// again makes entry i again, with buf for its header.
func (r *RootfsTar) again(t *layer.Tree, i int, buf *[]byte) (member, error) {
	if kept := r.large.Load(); kept != nil && kept.entry == i {
		return kept.member, nil
	}
	n := r.nodes[i]
	if n >= t.Len() {
		return member{}, errOther
	}
	e, err := r.entry(t, n, (*buf)[:0])
	if err != nil {
		return member{}, err
	}
	if e.size() != r.at[i+1]-r.at[i] {
		return member{}, errOther
	}
	*buf = e.head
	if len(e.head) > largeHeads {
		r.large.Store(&largeHead{i, e})
		*buf = nil // it is not ours any more
	}
	return e, nil
}

var errOther = fmt.Errorf("%w: the layers are not those that the archive was laid out for", imgsrc.ErrDamaged)
