package storage

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	tarsplit "github.com/vbatts/tar-split/tar/storage"

	"github.com/imgfs/imgfs/imgsrc"
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
	in := bufio.NewReaderSize(r, 64<<10)
	plain, err := decompress(in)
	if err != nil {
		return err
	}
	defer plain.Close()
	lines := bufio.NewReaderSize(plain, 64<<10)
	var long []byte // a line that is longer than the reader's buffer
	for n := 0; ; n++ {
		if n%checkEvery == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		line, err := lines.ReadSlice('\n')
		for long = long[:0]; errors.Is(err, bufio.ErrBufferFull); {
			long = append(long, line...)
			if len(long) > maxLine {
				return fmt.Errorf("line %d is longer than %d bytes", n+1, maxLine)
			}
			line, err = lines.ReadSlice('\n')
		}
		if err != nil && err != io.EOF {
			return err
		}
		if len(long) > 0 {
			long = append(long, line...)
			line = long
		}
		if line = bytes.TrimSpace(line); len(line) > 0 {
			if err := addEntry(b, line); err != nil {
				return fmt.Errorf("line %d: %w", n+1, err)
			}
		}
		if err == io.EOF {
			return nil
		}
	}
}

func addEntry(b *builder, line []byte) error {
	var e tarsplit.Entry
	if err := json.Unmarshal(line, &e); err != nil {
		return err
	}
	switch e.Type {
	case tarsplit.SegmentType:
		return b.segment(e.Payload)
	case tarsplit.FileType:
		if e.Size == 0 {
			return nil // no body: a directory, a link, an empty file
		}
		return b.file(e.GetName(), e.Size, e.Payload)
	}
	return fmt.Errorf("an entry of the unknown type %d", e.Type)
}

// decompress goes by the first bytes.
func decompress(in *bufio.Reader) (io.ReadCloser, error) {
	magic, err := in.Peek(4)
	if err != nil && err != io.EOF {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		return gzip.NewReader(in)
	case bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		d, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(8<<20))
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	}
	return nil, errors.New("neither gzip nor zstd")
}
