package storage

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/klauspost/compress/zstd"
	tarsplit "github.com/vbatts/tar-split/tar/storage"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/layer/inflate"
)

const (
	// maxLine bounds a line of a tar-split file, in bytes. The longest that are written hold 1 MiB of padding, or of
	// extended headers, in base64.
	maxLine = 16 << 20
	// checkEvery is how many lines are read between two looks at the context.
	checkEvery = 256
)

// readTarSplit indexes a tar-split file: JSON, a line an entry, compressed with gzip as the library writes it, or with
// zstd as it lies in a zstd:chunked blob. size is the length that the tar must have; if it is not known, 0. What it
// holds in memory is bounded by size and by the packed index. Error: [imgsrc.ErrDamaged] if it is not such a file.
func readTarSplit(ctx context.Context, r io.Reader, size int64) (*index, error) {
	limit := size
	if limit <= 0 {
		limit = unlimited
	}
	b, err := newBuilder(limit)
	if err != nil {
		return nil, err
	}
	in := &tracked{r: r}
	if err := readEntries(ctx, in, b); err != nil {
		if ctx.Err() != nil || in.err != nil {
			return nil, err // not the file's fault
		}
		return nil, fmt.Errorf("%w: %w", err, imgsrc.ErrDamaged)
	}
	x := b.index()
	if size > 0 && x.size != size {
		return nil, fmt.Errorf("the tar has %d bytes, not %d: %w", x.size, size, imgsrc.ErrDamaged)
	}
	return x, nil
}

// tracked remembers the error of reading, to tell a bad disk from bad bytes.
type tracked struct {
	r   io.Reader
	err error
}

func (t *tracked) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	if err != nil && err != io.EOF {
		t.err = err
	}
	return n, err
}

func readEntries(ctx context.Context, r io.Reader, b *builder) error {
	entries, err := newEntryReader(ctx, r)
	if err != nil {
		return err
	}
	defer entries.close()
	for {
		e, err := entries.next()
		if err == io.EOF {
			return nil
		}
		if err == nil {
			err = addEntry(b, e)
		}
		if err != nil {
			return fmt.Errorf("line %d: %w", entries.line, err)
		}
	}
}

func addEntry(b *builder, e *tarsplit.Entry) error {
	if e.Type == tarsplit.SegmentType {
		return b.segment(e.Payload)
	}
	if e.Size == 0 {
		return nil // no body: a directory, a link, an empty file
	}
	return b.file(e.GetName(), e.Size, e.Payload)
}

// An entryReader reads the lines of a tar-split file.
type entryReader struct {
	ctx   context.Context
	plain io.ReadCloser
	lines *bufio.Reader
	line  int    // the one read last, from 1
	long  []byte // a line that is longer than the reader's buffer
	entry tarsplit.Entry
	buf   []byte // room for a payload
}

func newEntryReader(ctx context.Context, r io.Reader) (*entryReader, error) {
	plain, err := decompress(bufio.NewReaderSize(r, 64<<10))
	if err != nil {
		return nil, err
	}
	return &entryReader{ctx: ctx, plain: plain, lines: bufio.NewReaderSize(plain, 64<<10)}, nil
}

func (r *entryReader) close() { r.plain.Close() }

// next returns the next entry, a segment or a file; it is valid until the next call. At the end it returns io.EOF.
func (r *entryReader) next() (*tarsplit.Entry, error) {
	for {
		if r.line++; r.line%checkEvery == 1 && r.ctx.Err() != nil {
			return nil, r.ctx.Err()
		}
		line, err := r.lines.ReadSlice('\n')
		for r.long = r.long[:0]; errors.Is(err, bufio.ErrBufferFull); {
			r.long = append(r.long, line...)
			if len(r.long) > maxLine {
				return nil, fmt.Errorf("it is longer than %d bytes", maxLine)
			}
			line, err = r.lines.ReadSlice('\n')
		}
		if err != nil && err != io.EOF {
			return nil, err
		}
		if len(r.long) > 0 {
			r.long = append(r.long, line...)
			line = r.long
		}
		if line = bytes.TrimSpace(line); len(line) > 0 {
			return r.parse(line)
		}
		if err == io.EOF {
			return nil, io.EOF
		}
	}
}

// The beginning of a segment's line, as the library writes it. Segments are most of a file, and reading them as JSON
// would be most of the work.
var segmentStart = []byte(`{"type":2,"payload":"`)

func (r *entryReader) parse(line []byte) (*tarsplit.Entry, error) {
	r.entry = tarsplit.Entry{}
	if rest, ok := bytes.CutPrefix(line, segmentStart); ok {
		if end := bytes.IndexByte(rest, '"'); end >= 0 && isEntryEnd(rest[end:]) {
			r.buf = slices.Grow(r.buf[:0], base64.StdEncoding.DecodedLen(end))
			if n, err := base64.StdEncoding.Decode(r.buf[:cap(r.buf)], rest[:end]); err == nil {
				r.entry.Type, r.entry.Payload = tarsplit.SegmentType, r.buf[:n]
				return &r.entry, nil
			}
		}
	}
	if err := json.Unmarshal(line, &r.entry); err != nil {
		return nil, err
	}
	if r.entry.Type != tarsplit.SegmentType && r.entry.Type != tarsplit.FileType {
		return nil, fmt.Errorf("an entry of the unknown type %d", r.entry.Type)
	}
	return &r.entry, nil
}

// isEntryEnd says whether b is what the library writes behind a payload: the position, if there is one, and no more.
func isEntryEnd(b []byte) bool {
	rest := bytes.TrimPrefix(b, []byte(`"`))
	if at, ok := bytes.CutPrefix(rest, []byte(`,"position":`)); ok {
		rest = bytes.TrimLeft(at, "0123456789")
	}
	return string(rest) == "}"
}

// decompress goes by the first bytes.
func decompress(in *bufio.Reader) (io.ReadCloser, error) {
	magic, err := in.Peek(4)
	if err != nil && err != io.EOF {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		return io.NopCloser(inflate.NewReader(in)), nil
	case bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		d, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(8<<20))
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	}
	return nil, errors.New("neither gzip nor zstd")
}
