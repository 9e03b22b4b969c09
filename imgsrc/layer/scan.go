package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/imgfs/imgfs/imgsrc"
)

// TarFiles returns the entries of an uncompressed tar, whose bodies it reads by their offset. The key's form is "tar".
// Closing it closes c. If c is costly to begin with, head opens the same bytes for reading their beginning, unverified;
// it may be nil.
func TarFiles(c imgsrc.Content, key imgsrc.FilesKey, head func(context.Context) (io.ReadCloser, error)) imgsrc.Files {
	return &tarFiles{c, key, head}
}

type tarFiles struct {
	content imgsrc.Content
	key     imgsrc.FilesKey
	head    func(context.Context) (io.ReadCloser, error)
}

func (t *tarFiles) Root(ctx context.Context) (*imgsrc.File, error) {
	if t.head == nil {
		return RootOf(func(emit func(*imgsrc.File) error) error { return t.Entries(ctx, emit) })
	}
	r, err := t.head(ctx)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	plain, _, err := Decompress(r)
	if err != nil {
		return nil, err
	}
	defer plain.Close()
	return RootOf(func(emit func(*imgsrc.File) error) error { return ScanTar(plain, emit) })
}

var errFirst = errors.New("the first entry is enough")

// RootOf returns the first entry of those that entries lists, if it is for the root directory, and else nil. The marks of
// eStargz do not count.
func RootOf(entries func(emit func(*imgsrc.File) error) error) (root *imgsrc.File, err error) {
	err = entries(func(f *imgsrc.File) error {
		if isStargzMark(f) {
			return nil
		}
		root = AsRoot(f)
		return errFirst
	})
	if err != nil && !errors.Is(err, errFirst) {
		return nil, err
	}
	return root, nil
}

// AsRoot returns an entry if it is for the root directory, and else nil.
func AsRoot(f *imgsrc.File) *imgsrc.File {
	if parts, ok := splitPath(nil, f.Name); !ok || len(parts) > 0 || f.Type != '5' {
		return nil
	}
	return f
}

// TarForm is the form of files whose bodies lie in an uncompressed tar.
const TarForm = "tar"

// TOCForm is the form of files that a table of contents lists, and whose bodies lie compressed in the blob.
const TOCForm = "toc"

func (t *tarFiles) Key() imgsrc.FilesKey { return t.key }
func (t *tarFiles) Close() error         { return t.content.Close() }

func (t *tarFiles) Entries(ctx context.Context, emit func(*imgsrc.File) error) error {
	size, err := t.content.Size(ctx)
	if err != nil {
		return err
	}
	r := &contentReader{ctx: ctx, content: t.content, size: size}
	return ScanTar(r, func(f *imgsrc.File) error {
		f.Where = uint64(r.off)
		if f.Stored > size-r.off {
			return fmt.Errorf("%w: %q at %d has %d bytes, and the tar ends after %d", imgsrc.ErrDamaged, f.Name, r.off, f.Stored, size-r.off)
		}
		return emit(f)
	})
}

func (t *tarFiles) ReadBody(ctx context.Context, b imgsrc.Body, p []byte, off int64) (int, error) {
	if off < 0 || off >= b.Size {
		return 0, io.EOF
	}
	var end error
	if int64(len(p)) > b.Size-off {
		p, end = p[:b.Size-off], io.EOF
	}
	n, err := t.content.ReadAt(ctx, p, int64(b.Where)+off)
	if n == len(p) {
		return n, end
	}
	return n, err
}

// contentReader reads headers: it seeks over bodies, and reads nothing that it is not asked for, because the bodies may
// lie anywhere.
type contentReader struct {
	ctx     context.Context
	content imgsrc.Content
	size    int64
	off     int64
}

func (r *contentReader) Read(p []byte) (int, error) {
	n, err := r.content.ReadAt(r.ctx, p, r.off)
	r.off += int64(n)
	if n > 0 && err == io.EOF {
		err = nil
	}
	return n, err
}

func (r *contentReader) Seek(off int64, whence int) (int64, error) {
	if whence != io.SeekCurrent || off < 0 {
		return 0, errors.ErrUnsupported
	}
	r.off += min(off, r.size-r.off)
	return r.off, nil
}

// ScanTar calls emit for each entry of the tar that r holds, when r stands at the entry's body. r should be an
// io.Seeker, or else bodies are read. Stored is set, Where is not. Errors: emit's and r's as they are;
// imgsrc.ErrDamaged if it is not a tar, or ends in the middle of an entry.
func ScanTar(r io.Reader, emit func(*imgsrc.File) error) error {
	head := &headReader{r: r}
	var in io.Reader = head
	if s, ok := r.(io.Seeker); ok {
		in = &headSeeker{head, s}
	}
	t := tar.NewReader(in)
	for {
		head.head = head.head[:0]
		head.keep = true
		h, err := t.Next()
		head.keep = false
		switch {
		case err == io.EOF:
			return nil
		case head.err != nil:
			return head.err
		case err != nil:
			return fmt.Errorf("%w: reading the tar header at %d: %w", imgsrc.ErrDamaged, max(0, head.count-int64(len(head.head))), err)
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		f, err := fileOf(h, head.head)
		if err != nil {
			return fmt.Errorf("%w: reading the tar header of %q: %w", imgsrc.ErrDamaged, h.Name, err)
		}
		if err := emit(f); err != nil {
			return err
		}
	}
}

// headReader keeps what is read of a header, for the parts of it that the library does not hand out, and the error of
// the reader below, to tell a bad disk from bad bytes.
type headReader struct {
	r     io.Reader
	keep  bool
	head  []byte
	count int64 // bytes read or skipped
	err   error
}

// maxHead bounds what is kept of one header. A sparse map may be this long.
const maxHead = 4 << 20

func (h *headReader) Read(p []byte) (int, error) {
	n, err := h.r.Read(p)
	h.count += int64(n)
	if h.keep && len(h.head)+n <= maxHead {
		h.head = append(h.head, p[:n]...)
	}
	if err != nil && err != io.EOF {
		h.err = err
	}
	return n, err
}

type headSeeker struct {
	*headReader
	s io.Seeker
}

// Seek is how the library leaves a body behind: what was read before belongs to that.
func (h *headSeeker) Seek(off int64, whence int) (int64, error) {
	at, err := h.s.Seek(off, whence)
	if err == nil && whence == io.SeekCurrent {
		h.count += off
	}
	h.head = h.head[:0]
	return at, err
}

const (
	blockSize = 512
	// maxXattr and maxXattrName are the kernel's.
	maxXattr     = 64 << 10
	maxXattrName = 255
	xattrPrefix  = "SCHILY.xattr."
)

// fileOf is a tar header as a File. head ends with the raw blocks of the header, extensions included.
func fileOf(h *tar.Header, head []byte) (*imgsrc.File, error) {
	f := &imgsrc.File{
		Name: h.Name, Type: h.Typeflag, Link: h.Linkname,
		Mode: uint32(h.Mode) & 0o7777, UID: uint32(h.Uid), GID: uint32(h.Gid),
		Sec: h.ModTime.Unix(), Nsec: uint32(h.ModTime.Nanosecond()),
		Major: uint32(h.Devmajor), Minor: uint32(h.Devminor),
	}
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, xattrPrefix)
		if ok && isXattr(name, len(value)) {
			f.Xattrs = append(f.Xattrs, imgsrc.Xattr{Name: name, Value: value})
		}
	}
	slices.SortFunc(f.Xattrs, func(a, b imgsrc.Xattr) int { return strings.Compare(a.Name, b.Name) })
	switch h.Typeflag {
	case tar.TypeLink, tar.TypeSymlink, tar.TypeChar, tar.TypeBlock, tar.TypeDir, tar.TypeFifo:
		return f, nil
	case tar.TypeGNUSparse:
		// The extension blocks of the map are the last ones read, behind the header itself.
		f.Type, f.Size = tar.TypeReg, h.Size
		return f, oldSparse(f, head)
	}
	f.Type, f.Size, f.Stored = tar.TypeReg, h.Size, h.Size
	numbers := h.PAXRecords["GNU.sparse.map"]
	switch version := h.PAXRecords["GNU.sparse.major"] + "." + h.PAXRecords["GNU.sparse.minor"]; {
	case version == "1.0":
		return f, bodySparse(f, head)
	case version == "0.0", version == "0.1", version == "." && numbers != "":
		return f, mapSparse(f, strings.FieldsFunc(numbers, func(r rune) bool { return r == ',' }))
	}
	return f, nil
}

// isXattr says whether a kernel takes an extended attribute of this name and with as many bytes.
func isXattr(name string, size int) bool {
	return hasNamespace(name) && len(name) <= maxXattrName && size <= maxXattr
}

// hasNamespace says whether a kernel takes this for the name of an extended attribute (xattr(7)).
func hasNamespace(name string) bool {
	for _, space := range []string{"user.", "security.", "trusted.", "system."} {
		if rest, ok := strings.CutPrefix(name, space); ok && rest != "" {
			return true
		}
	}
	return false
}

// mapSparse takes a map of decimal offsets and lengths, as in PAX formats 0.0 and 0.1.
func mapSparse(f *imgsrc.File, numbers []string) error {
	if len(numbers)%2 != 0 {
		return errors.New("a sparse map of an odd number of numbers")
	}
	f.Extents, f.Stored = []imgsrc.Extent{}, 0
	for i := 0; i < len(numbers); i += 2 {
		off, err1 := strconv.ParseInt(numbers[i], 10, 64)
		n, err2 := strconv.ParseInt(numbers[i+1], 10, 64)
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		if err := addExtent(f, off, n); err != nil {
			return err
		}
	}
	return nil
}

// addExtent appends a run of data, which must follow the ones before it.
func addExtent(f *imgsrc.File, off, n int64) error {
	end := int64(0)
	if k := len(f.Extents); k > 0 {
		end = f.Extents[k-1].Off + f.Extents[k-1].Len
	}
	if off < end || n < 0 || n > math.MaxInt64-off || off+n > f.Size {
		return fmt.Errorf("a sparse map with %d bytes at %d, of %d", n, off, f.Size)
	}
	if n > 0 {
		f.Extents = append(f.Extents, imgsrc.Extent{Off: off, Len: n})
		f.Stored += n
	}
	return nil
}

// bodySparse takes the map of PAX format 1.0, which stands in front of the body: a line each for the number of runs and
// for every offset and length, padded to whole blocks. head ends with those.
func bodySparse(f *imgsrc.File, head []byte) error {
	// The map begins behind the last header block, which is the one that has the tar's magic. It is digits and newlines,
	// so no block of the map can have it.
	start := -1
	for at := len(head) - blockSize; at >= 0; at -= blockSize {
		if isHeader(head[at : at+blockSize]) {
			start = at + blockSize
			break
		}
	}
	if start < 0 {
		return errors.New("a sparse map longer than can be kept")
	}
	lines := bytes.Split(bytes.TrimRight(head[start:], "\x00"), []byte("\n"))
	if len(lines) < 2 {
		return errors.New("a sparse map that is cut short")
	}
	count, err := strconv.Atoi(string(lines[0]))
	if err != nil || count < 0 || count > len(lines)/2 || len(lines) < 1+2*count {
		return errors.New("a sparse map with a wrong number of entries")
	}
	var numbers []string
	for _, line := range lines[1 : 1+2*count] {
		numbers = append(numbers, string(line))
	}
	return mapSparse(f, numbers)
}

// isHeader says whether a block is a tar header: ustar's magic or GNU's.
func isHeader(block []byte) bool { return string(block[257:262]) == "ustar" }

// oldSparse takes the map of GNU's own format: four runs in the header (at 386, a flag at 482), and 21 in each extension
// block (with a flag at 504) behind it.
func oldSparse(f *imgsrc.File, head []byte) error {
	start := -1
	for at := len(head) - blockSize; at >= 0; at -= blockSize {
		if isHeader(head[at : at+blockSize]) {
			start = at
			break
		}
	}
	if start < 0 {
		return errors.New("a sparse map longer than can be kept")
	}
	f.Extents, f.Stored = []imgsrc.Extent{}, 0
	entries, more := head[start+386:start+482], head[start+482] != 0
	for at := start + blockSize; ; at += blockSize {
		for ; len(entries) >= 24 && entries[0] != 0; entries = entries[24:] {
			off, err1 := tarNumber(entries[:12])
			n, err2 := tarNumber(entries[12:24])
			if err := errors.Join(err1, err2); err != nil {
				return err
			}
			if err := addExtent(f, off, n); err != nil {
				return err
			}
		}
		if !more {
			return nil
		}
		if at+blockSize > len(head) {
			return errors.New("a sparse map that is cut short")
		}
		entries, more = head[at:at+504], head[at+504] != 0
	}
}

// tarNumber reads a number of a header: octal digits, or bytes if the first has its highest bit set.
func tarNumber(b []byte) (int64, error) {
	if b[0]&0x80 != 0 {
		var n int64
		for i, c := range b {
			if i == 0 {
				c &= 0x3f // the second highest bit is the sign
			}
			if n > math.MaxInt64>>8 {
				return 0, errors.New("a number out of range")
			}
			n = n<<8 | int64(c)
		}
		if b[0]&0x40 != 0 {
			return 0, errors.New("a negative number")
		}
		return n, nil
	}
	text := strings.Trim(string(b), " \x00")
	if text == "" {
		return 0, nil
	}
	return strconv.ParseInt(text, 8, 64)
}
