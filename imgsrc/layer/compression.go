package layer

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/layer/inflate"
)

// A Compression is a way to compress a stream of bytes.
type Compression string

// The compressions that layers come in.
const (
	None  Compression = "none"
	Gzip  Compression = "gzip"
	Bzip2 Compression = "bzip2"
	Xz    Compression = "xz"
	Zstd  Compression = "zstd"
)

// HeadLen is how many bytes from the start of a stream Detect needs, where the stream has as many.
const HeadLen = 10

// maxWindow bounds what a stream can make its decompressor allocate: the most that the zstd command takes unasked, and
// twice what xz -9 needs.
const maxWindow = 128 << 20

// Detect tells the compression of a stream from its first bytes. What is not known to be compressed is None.
func Detect(head []byte) Compression {
	switch {
	case bytes.HasPrefix(head, []byte("\x1f\x8b\x08")):
		return Gzip
	case bytes.HasPrefix(head, []byte("\x28\xb5\x2f\xfd")), isSkippable(head):
		return Zstd
	case bytes.HasPrefix(head, []byte("\xfd7zXZ\x00")):
		return Xz
	case len(head) >= 10 && string(head[:3]) == "BZh" && head[3] >= '1' && head[3] <= '9' &&
		(string(head[4:10]) == "1AY&SY" || string(head[4:10]) == "\x17\x72\x45\x38\x50\x90"):
		return Bzip2 // either a block or the end of an empty stream must follow: "BZh9" alone can be a file's name
	}
	return None
}

// isSkippable says whether head begins a skippable frame (RFC 8878, section 3.1.2), which some tools put first.
func isSkippable(head []byte) bool {
	return len(head) >= 4 && head[0]&0xf0 == 0x50 && head[1] == 0x2a && head[2] == 0x4d && head[3] == 0x18
}

// Decompress returns the uncompressed bytes of r, and the compression that it found. The caller closes the reader,
// which does not close r. Errors, from Decompress and from Read: those of r as they are; imgsrc.ErrDamaged if the
// stream breaks its format, ends early, or is followed by something else (zeros after gzip and xz are ignored);
// imgsrc.ErrUnsupported if it needs more than 128 MiB of window, or a filter that is not known.
func Decompress(r io.Reader) (io.ReadCloser, Compression, error) {
	src := &sourceReader{r: r}
	br := bufio.NewReaderSize(src, 64<<10)
	head, err := br.Peek(HeadLen)
	if err != nil && err != io.EOF {
		return nil, None, err
	}
	d := &decompressor{src: src, kind: Detect(head)}
	switch d.kind {
	case Gzip:
		z := inflaters.Get().(*inflate.Reader)
		z.Reset(br)
		d.out, d.close = z, func() {
			z.Reset(nil)
			inflaters.Put(z)
		}
	case Bzip2:
		d.out = bzip2.NewReader(br)
	case Xz:
		d.out = newXzReader(br)
	case Zstd:
		// One goroutine: the pass has its own for everything else, and more of them cost more than they bring.
		z, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, d.kind, d.explain(err)
		}
		d.out, d.close = z, z.Close
	default:
		d.out = br
	}
	return d, d.kind, nil
}

// inflaters are kept because each has more than half a megabyte of buffers, and many layers are smaller.
var inflaters = sync.Pool{New: func() any { return inflate.NewReader(nil) }}

// A sourceReader remembers the error of the reader below a decompressor, so that a disk that fails is not taken for a
// stream that is broken.
type sourceReader struct {
	r   io.Reader
	err error
}

func (s *sourceReader) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

type decompressor struct {
	src   *sourceReader
	kind  Compression
	out   io.Reader
	close func()
	err   error
}

func (d *decompressor) Read(p []byte) (int, error) {
	if d.err != nil {
		return 0, d.err
	}
	n, err := d.out.Read(p)
	if err != nil {
		d.err = d.explain(err)
	}
	return n, d.err
}

func (d *decompressor) explain(err error) error {
	switch {
	case d.src.err != nil:
		return d.src.err
	case err == io.EOF:
		return io.EOF
	case errors.Is(err, imgsrc.ErrUnsupported):
		return err
	case errors.Is(err, zstd.ErrWindowSizeExceeded):
		return fmt.Errorf("zstd stream: %w: %w", imgsrc.ErrUnsupported, err)
	}
	return fmt.Errorf("%s stream: %w: %w", d.kind, imgsrc.ErrDamaged, err)
}

func (d *decompressor) Close() error {
	d.err = io.ErrClosedPipe
	if d.close != nil {
		d.close()
		d.close, d.out = nil, nil
	}
	return nil
}
