package storage

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc64"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"

	"github.com/opencontainers/go-digest"
	tarsplit "github.com/vbatts/tar-split/tar/storage"

	"github.com/imgfs/imgfs/imgsrc"
	tarlayer "github.com/imgfs/imgfs/imgsrc/layer"
)

// splitForm is the form of files whose bodies lie under their names in a layer's directory. Where is the CRC-64 that
// tar-split has recorded of them.
const splitForm = "split"

// Files implements [imgsrc.Image]. A layer without tar-split is walked.
func (m *image) Files(ctx context.Context, n int) (imgsrc.Files, error) {
	return openLayer(ctx, m, n, m.s.files)
}

// files opens the files of a layer whose tar's digest, if there is one, is diffID.
func (s *Source) files(l *layer, diffID digest.Digest) (imgsrc.Files, error) {
	tarSplit, dir, err := s.locate(l)
	if errors.Is(err, imgsrc.ErrAbsent) && dir != "" {
		return s.walk(l, dir), nil
	}
	if err != nil {
		return nil, err
	}
	if diffID != "" && diffID != l.DiffID {
		return nil, fmt.Errorf("layer %s has the diff id %s, and the image's config says %s: %w", l.ID, l.DiffID, diffID, imgsrc.ErrDamaged)
	}
	info, err := os.Stat(tarSplit)
	if err != nil {
		return nil, err
	}
	return &splitFiles{
		unpacked: unpacked{s: s, dir: dir, sum: true},
		key:      splitKey(l.DiffID, tarSplit, info), tarSplit: tarSplit, size: l.Size,
	}, nil
}

// splitKey is the key of a layer's files as its tar-split file lists them now. That file is not compared with the diff
// id, which would take all the bodies: whoever can write to one store must not decide what a layer is in another, nor
// in this one when it has been repaired. Nobody can set a file's ctime. Its device and inode are left out, because there
// are file systems that number them anew.
func splitKey(diffID digest.Digest, tarSplit string, info fs.FileInfo) imgsrc.FilesKey {
	id := identityIn(info)
	return imgsrc.FilesKey{Form: splitForm, Digest: diffID, Place: fmt.Sprintf("%s size %d mtime %d.%09d ctime %d.%09d",
		tarSplit, id.size, id.mtime.Sec, id.mtime.Nsec, id.ctime.Sec, id.ctime.Nsec)}
}

// splitFiles are a layer's files as tar-split lists them.
type splitFiles struct {
	unpacked
	key      imgsrc.FilesKey
	tarSplit string
	size     int64 // of the tar; 0 or less if not known
}

var _ imgsrc.Files = (*splitFiles)(nil)

func (f *splitFiles) Key() imgsrc.FilesKey { return f.key }

func (f *splitFiles) Entries(ctx context.Context, emit func(*imgsrc.File) error) error {
	err := f.entries(ctx, emit)
	if err != nil {
		return fmt.Errorf("reading %s: %w", f.tarSplit, err)
	}
	return nil
}

// Root implements [imgsrc.Files].
func (f *splitFiles) Root(ctx context.Context) (*imgsrc.File, error) {
	return tarlayer.RootOf(func(emit func(*imgsrc.File) error) error { return f.Entries(ctx, emit) })
}

func (f *splitFiles) entries(ctx context.Context, emit func(*imgsrc.File) error) error {
	file, err := openRegular(f.tarSplit)
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if splitKey(f.key.Digest, f.tarSplit, info) != f.key {
		return fmt.Errorf("it has been replaced: %w", syscall.EAGAIN)
	}
	in := &tracked{r: file}
	lines, err := newEntryReader(ctx, in)
	if err != nil {
		if in.err != nil {
			return in.err
		}
		return fmt.Errorf("%w: %w", err, imgsrc.ErrDamaged)
	}
	defer lines.close()
	t := &splitTar{lines: lines}
	var stopped error // by emit
	emit = func(emit func(*imgsrc.File) error) func(*imgsrc.File) error {
		return func(file *imgsrc.File) error {
			stopped = emit(file)
			return stopped
		}
	}(emit)
	err = tarlayer.ScanTar(t, func(file *imgsrc.File) error {
		if file.Type != '0' {
			return emit(file)
		}
		// On the disk a sparse file has its holes.
		stored := file.Stored
		file.Extents, file.Stored = nil, file.Size
		sum, err := t.body(stored)
		if err != nil {
			return err
		}
		file.Where = sum
		return emit(file)
	})
	if err == nil && f.size > 0 {
		err = t.drain(f.size)
	}
	switch {
	case stopped != nil:
		return stopped
	case err == nil, ctx.Err() != nil, in.err != nil:
		return errors.Join(ctx.Err(), in.err)
	case errors.Is(err, imgsrc.ErrDamaged):
		return err
	}
	return fmt.Errorf("%w: %w", err, imgsrc.ErrDamaged)
}

// splitTar is a tar as its reader wants it, with nothing in place of the bodies: they are skipped, but for a map that
// says that a sparse file is all holes, which is read out of one.
type splitTar struct {
	lines  *entryReader
	seg    []byte // what is left of the current segment
	last   []byte // the last block of a segment: a header, when a body follows
	inBody bool
	size   int64 // of the current body, as tar-split counts it
	left   int64 // of it
	taken  int64 // of it
	sum    uint64
	total  int64 // bytes of the tar so far
}

const emptyMap = "0\n"

// load makes the next entry current.
func (t *splitTar) load() error {
	e, err := t.lines.next()
	if err != nil {
		return err
	}
	if e.Type == tarsplit.SegmentType {
		t.seg = e.Payload
		if n := len(t.seg); n >= tarBlock {
			t.last = append(t.last[:0], t.seg[n-tarBlock:]...)
		}
		t.total += int64(len(t.seg))
		return nil
	}
	if e.Size == 0 {
		return nil
	}
	if e.Size < 0 || len(e.Payload) != crc64.Size {
		return fmt.Errorf("line %d: a body of %d bytes with a checksum of %d", t.lines.line, e.Size, len(e.Payload))
	}
	t.inBody, t.size, t.left, t.taken = true, e.Size, e.Size, 0
	t.sum = binary.BigEndian.Uint64(e.Payload)
	t.total += e.Size
	return nil
}

func (t *splitTar) Read(p []byte) (int, error) {
	for len(t.seg) == 0 && !t.inBody {
		if err := t.load(); err != nil {
			return 0, err
		}
	}
	if len(t.seg) > 0 {
		n := copy(p, t.seg)
		t.seg = t.seg[n:]
		return n, nil
	}
	n := int(min(int64(len(p)), t.left))
	clear(p[:n])
	if t.taken < int64(len(emptyMap)) {
		copy(p[:n], emptyMap[t.taken:])
	}
	t.take(int64(n))
	return n, nil
}

func (t *splitTar) take(n int64) {
	t.left -= n
	t.taken += n
	t.inBody = t.left > 0
}

// Seek skips forward, which is all that a reader of tars does.
func (t *splitTar) Seek(off int64, whence int) (int64, error) {
	if whence != io.SeekCurrent || off < 0 {
		return 0, errors.ErrUnsupported
	}
	for rest := off; rest > 0; {
		switch {
		case len(t.seg) > 0:
			n := min(rest, int64(len(t.seg)))
			t.seg = t.seg[n:]
			rest -= n
		case t.inBody:
			n := min(rest, t.left)
			t.take(n)
			rest -= n
		default:
			if err := t.load(); err != nil {
				return 0, err
			}
		}
	}
	return off, nil // only differences are looked at
}

// body returns the checksum of the body of the entry whose header was just read, of which the tar has stored bytes.
func (t *splitTar) body(stored int64) (uint64, error) {
	for len(t.seg) == 0 && !t.inBody {
		err := t.load()
		if err == io.EOF {
			return 0, nil
		}
		if err != nil {
			return 0, err
		}
	}
	if !t.inBody {
		if stored > 0 && t.taken == 0 {
			return 0, fmt.Errorf("line %d: a body of %d bytes is missing", t.lines.line, stored)
		}
		return 0, nil
	}
	if t.taken > 0 { // the map of a sparse file was taken from it
		n, err := strconv.ParseInt(strings.Trim(string(t.last[124:136]), " \x00"), 8, 64)
		if err != nil {
			return 0, fmt.Errorf("line %d: the header before it has no size", t.lines.line)
		}
		stored = n - t.taken
	}
	// Of a sparse file tar-split counts the holes, and the tar does not.
	t.total += t.taken + stored - t.size
	t.left = stored
	t.inBody = stored > 0
	t.taken = 0
	return t.sum, nil
}

// drain reads what is behind the tar's end, and compares its length with the one that it must have.
func (t *splitTar) drain(size int64) error {
	for {
		err := t.load()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
	}
	if t.total != size {
		return fmt.Errorf("the tar has %d bytes, not %d", t.total, size)
	}
	return nil
}
