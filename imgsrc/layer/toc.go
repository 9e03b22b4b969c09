package layer

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
)

// The annotations of a layer that say how to verify its table of contents, and where it is: eStargz's
// (https://github.com/containerd/stargz-snapshotter/blob/main/docs/estargz.md) and those of zstd:chunked
// (https://github.com/containers/storage/blob/main/docs/containers-storage-zstd-chunked.md).
const (
	stargzDigest    = "containerd.io/snapshot/stargz/toc.digest"
	chunkedChecksum = "io.github.containers.zstd-chunked.manifest-checksum"
	chunkedPosition = "io.github.containers.zstd-chunked.manifest-position"
	// Earlier these were the names: skopeo 1.9 writes them.
	oldChunkedChecksum = "io.containers.zstd-chunked.manifest-checksum"
	oldChunkedPosition = "io.containers.zstd-chunked.manifest-position"
)

const (
	// maxTOC is how many bytes a table of contents may have: some two million files. It is never in memory as a whole.
	maxTOC = 1 << 30
	// maxPackedTOC is how many of the blob.
	maxPackedTOC = 192 << 20
	// maxTOCEntry is how many bytes of it one entry may have, or whatever else stands in it.
	maxTOCEntry = 16 << 20
	// stargzFooter is how many bytes the end of an eStargz blob has: a gzip member without content, whose header says where
	// the table of contents begins.
	stargzFooter = 51
)

// A TOCRef is where a layer's table of contents is, and what it must be. It is comparable.
type TOCRef struct {
	// Digest is what the manifest says of the table: of the JSON with eStargz, of its compressed bytes with zstd:chunked.
	Digest digest.Digest

	size int64 // of the blob
	zstd bool
	// Of zstd:chunked: where the compressed table begins, and how many bytes it has, compressed and not.
	off, packed, plain int64
}

// FindTOC says where the table of contents is of a layer with these annotations, whose blob has size bytes. Errors:
// imgsrc.ErrAbsent if it has none that could be verified; imgsrc.ErrUnsupported if it cannot be used.
func FindTOC(annotations map[string]string, size int64) (TOCRef, error) {
	ref := TOCRef{size: size}
	name, position := stargzDigest, ""
	for checksum, at := range map[string]string{chunkedChecksum: chunkedPosition, oldChunkedChecksum: oldChunkedPosition} {
		if annotations[checksum] != "" && annotations[at] != "" && (!ref.zstd || checksum == chunkedChecksum) {
			ref.zstd, name, position = true, checksum, annotations[at] // also if it is eStargz's too, as stargz-snapshotter makes it
		}
	}
	text, ok := annotations[name]
	if !ok || size < 0 {
		return TOCRef{}, fmt.Errorf("table of contents: %w", imgsrc.ErrAbsent)
	}
	var err error
	if ref.Digest, err = digest.Parse(text); err != nil || ref.Digest.Algorithm() != digest.SHA256 {
		return TOCRef{}, fmt.Errorf("annotation %s: %w: %q is no sha256 digest", name, imgsrc.ErrUnsupported, text)
	}
	if ref.zstd && !ref.setPosition(position) {
		return TOCRef{}, fmt.Errorf("annotation beside %s: %w: the position %q of a blob of %d bytes", name, imgsrc.ErrUnsupported, position, size)
	}
	return ref, nil
}

// setPosition takes "offset:length:uncompressed length:type", and says whether that can be.
func (r *TOCRef) setPosition(text string) bool {
	fields := strings.Split(text, ":")
	if len(fields) != 4 || fields[3] != "1" {
		return false
	}
	for i, to := range []*int64{&r.off, &r.packed, &r.plain} {
		n, err := strconv.ParseInt(fields[i], 10, 64)
		if err != nil || n <= 0 {
			return false
		}
		*to = n
	}
	return r.off <= r.size && r.packed <= r.size-r.off && r.packed <= maxPackedTOC && r.plain <= maxTOC
}

// A RangeReader returns bytes of a blob, exactly those from one offset to before another. They need not be verified.
type RangeReader func(ctx context.Context, from, to int64) ([]byte, error)

// A TOC is a table of contents that has been verified.
type TOC struct {
	ref    TOCRef
	packed []byte // as it is in the blob
	end    int64  // of the files' bytes in the blob
}

// ReadTOC reads a table of contents, and verifies it. Errors: imgsrc.ErrDamaged if it is not what the manifest says;
// imgsrc.ErrUnsupported if it is too large; read's.
func (r TOCRef) ReadTOC(ctx context.Context, read RangeReader) (*TOC, error) {
	t := &TOC{ref: r, end: r.off}
	var err error
	if r.zstd {
		if t.packed, err = read(ctx, r.off, r.off+r.packed); err == nil {
			err = r.verify(digest.FromBytes(t.packed))
		}
	} else {
		err = t.readStargz(ctx, read)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the table of contents: %w", err)
	}
	return t, nil
}

func (r TOCRef) verify(got digest.Digest) error {
	if got != r.Digest {
		return fmt.Errorf("%w: its bytes are %s, and the manifest says %s", imgsrc.ErrDamaged, got, r.Digest)
	}
	return nil
}

// stargzTail is how many bytes of a blob's end to ask for, in the hope that the table is among them: it mostly has a
// hundredth of all.
func stargzTail(size int64) int64 { return min(size, max(stargzFooter, 4<<10, min(size/64, 1<<20))) }

func (t *TOC) readStargz(ctx context.Context, read RangeReader) error {
	size := t.ref.size
	if size < stargzFooter {
		return fmt.Errorf("%w: a blob of %d bytes", imgsrc.ErrDamaged, size)
	}
	from := size - stargzTail(size)
	tail, err := read(ctx, from, size)
	if err != nil {
		return err
	}
	off, ok := parseStargzFooter(tail[len(tail)-stargzFooter:])
	last := size - stargzFooter
	switch {
	case !ok || off > last:
		return fmt.Errorf("%w: the blob does not end as eStargz does", imgsrc.ErrDamaged)
	case last-off > maxPackedTOC:
		return fmt.Errorf("%w: it has %d bytes", imgsrc.ErrUnsupported, last-off)
	}
	t.end = off
	if off >= from {
		t.packed = tail[off-from : last-from]
	} else if t.packed, err = read(ctx, off, last); err != nil {
		return err
	}
	json, err := t.open(ctx)
	if err != nil {
		return err
	}
	defer json.Close()
	sum := digest.SHA256.Digester()
	if _, err := io.Copy(sum.Hash(), json); err != nil {
		return json.failure(err)
	}
	return t.ref.verify(sum.Digest())
}

// parseStargzFooter takes the offset from a footer: a gzip header (RFC 1952) with an extra field of its own.
func parseStargzFooter(b []byte) (off int64, ok bool) {
	const extra = "\x1a\x00SG\x16\x00" // the length of all extra fields, this one's name, and its length
	if len(b) != stargzFooter || string(b[:4]) != "\x1f\x8b\x08\x04" || string(b[10:16]) != extra || string(b[32:38]) != "STARGZ" {
		return 0, false
	}
	off, err := strconv.ParseInt(string(b[16:32]), 16, 64)
	return off, err == nil && off >= 0
}

// A tocReader is a table of contents as it is unpacked: no more than it may have, and no more at once than has been allowed.
type tocReader struct {
	io.Reader
	ctx    context.Context
	stream io.Closer
	left   int64 // of the table
	once   int64 // that may be read until allow is called
	err    error // why there is no more, other than its end
}

// open unpacks the table, until ctx ends. Error: imgsrc.ErrUnsupported if it is too large.
func (t *TOC) open(ctx context.Context) (*tocReader, error) {
	z, _, err := Decompress(bytes.NewReader(t.packed))
	if err != nil {
		return nil, err
	}
	r := &tocReader{Reader: z, ctx: ctx, stream: z, left: t.ref.plain, once: math.MaxInt64}
	if t.ref.zstd {
		return r, nil
	}
	// It is in a tar that holds nothing else.
	in := tar.NewReader(z)
	h, err := in.Next()
	switch {
	case err != nil:
		err = fmt.Errorf("%w: %w", imgsrc.ErrDamaged, err)
	case h.Name != stargzTOC || h.Size > maxTOC:
		err = fmt.Errorf("%w: the tar that should hold it has %q of %d bytes", imgsrc.ErrUnsupported, h.Name, h.Size)
	}
	if err != nil {
		z.Close()
		return nil, err
	}
	r.Reader, r.left = in, h.Size
	return r, nil
}

func (r *tocReader) Close() error { return r.stream.Close() }

// allow lets so many more bytes be read.
func (r *tocReader) allow(n int64) { r.once = n }

func (r *tocReader) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	if r.err = r.ctx.Err(); r.err != nil {
		return 0, r.err
	}
	if r.once <= 0 {
		r.err = fmt.Errorf("%w: something in it has more than %d bytes", imgsrc.ErrUnsupported, maxTOCEntry)
		return 0, r.err
	}
	n, err := r.Reader.Read(p[:min(int64(len(p)), r.once)])
	r.left -= int64(n)
	r.once -= int64(n)
	switch {
	case r.left < 0:
		r.err = fmt.Errorf("%w: it has more bytes than it should", imgsrc.ErrUnsupported)
		return 0, r.err
	case err != nil && err != io.EOF:
		r.err = err
	}
	return n, err
}

// failure is what came of reading: what was wrong with the bytes, rather than what was made of that.
func (r *tocReader) failure(err error) error {
	switch {
	case r.ctx.Err() != nil:
		return r.ctx.Err()
	case r.err == nil || errors.Is(r.err, imgsrc.ErrUnsupported):
		return cmp.Or(r.err, err)
	default:
		return fmt.Errorf("%w: %w", imgsrc.ErrDamaged, r.err)
	}
}

// Entries goes through the table. It calls emit for each entry, as Files.Entries does; a File's Where is what Chunks.Read
// needs. A nil emit leaves that out. Errors: imgsrc.ErrUnsupported if the table says something that a tar could not, or not all
// that a tar says; imgsrc.ErrDamaged; ctx's.
func (t *TOC) Entries(ctx context.Context, emit func(*imgsrc.File) error) (*Chunks, error) {
	in, err := t.open(ctx)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	s := &tocScan{end: t.end, emit: emit, stargz: !t.ref.zstd, allow: in.allow}
	if err := s.scan(in); err != nil {
		if IsEmitError(err) {
			return nil, err
		}
		return nil, in.failure(err)
	}
	in.allow(maxTOC)
	if _, err := io.Copy(io.Discard, in); err != nil {
		return nil, in.failure(err)
	}
	if in.left != 0 {
		return nil, fmt.Errorf("%w: the table of contents has %d bytes less than it should", imgsrc.ErrDamaged, in.left)
	}
	return s.finish(), nil
}

// sumLen is how many bytes a chunk's digest has.
const sumLen = sha256.Size
