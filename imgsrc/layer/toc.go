package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
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
	// maxTOC is how many bytes a table of contents may have: a million files.
	maxTOC = 128 << 20
	// maxPackedTOC is how many of the blob.
	maxPackedTOC = 64 << 20
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

// ReadTOC reads a table of contents, and verifies it. end is where in the blob the files' bytes end. Errors:
// imgsrc.ErrDamaged if it is not what the manifest says; imgsrc.ErrUnsupported if it is too large; read's.
func (r TOCRef) ReadTOC(ctx context.Context, read RangeReader) (json []byte, end int64, err error) {
	if r.zstd {
		json, err = r.readChunked(ctx, read)
		end = r.off
	} else {
		json, end, err = r.readStargz(ctx, read)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("reading the table of contents: %w", err)
	}
	return json, end, nil
}

func (r TOCRef) readChunked(ctx context.Context, read RangeReader) ([]byte, error) {
	packed, err := read(ctx, r.off, r.off+r.packed)
	if err != nil {
		return nil, err
	}
	if err := r.verify(packed); err != nil {
		return nil, err
	}
	z, _, err := Decompress(bytes.NewReader(packed))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	json, err := readLimited(z, r.plain, len(packed))
	if err == nil && int64(len(json)) != r.plain {
		err = fmt.Errorf("%w: it has %d bytes, and the manifest says %d", imgsrc.ErrDamaged, len(json), r.plain)
	}
	return json, err
}

func (r TOCRef) verify(b []byte) error {
	if got := digest.FromBytes(b); got != r.Digest {
		return fmt.Errorf("%w: its bytes are %s, and the manifest says %s", imgsrc.ErrDamaged, got, r.Digest)
	}
	return nil
}

// stargzTail is how many bytes of a blob's end to ask for, in the hope that the table is among them: it mostly has a
// hundredth of all.
func stargzTail(size int64) int64 { return min(size, max(stargzFooter, 4<<10, min(size/64, 1<<20))) }

func (r TOCRef) readStargz(ctx context.Context, read RangeReader) (json []byte, end int64, err error) {
	if r.size < stargzFooter {
		return nil, 0, fmt.Errorf("%w: a blob of %d bytes", imgsrc.ErrDamaged, r.size)
	}
	from := r.size - stargzTail(r.size)
	tail, err := read(ctx, from, r.size)
	if err != nil {
		return nil, 0, err
	}
	off, ok := parseStargzFooter(tail[len(tail)-stargzFooter:])
	last := r.size - stargzFooter
	switch {
	case !ok || off > last:
		return nil, 0, fmt.Errorf("%w: the blob does not end as eStargz does", imgsrc.ErrDamaged)
	case last-off > maxPackedTOC:
		return nil, 0, fmt.Errorf("%w: it has %d bytes", imgsrc.ErrUnsupported, last-off)
	}
	var packed []byte
	if off >= from {
		packed = tail[off-from : last-from]
	} else if packed, err = read(ctx, off, last); err != nil {
		return nil, 0, err
	}
	if json, err = unpackStargz(packed); err == nil {
		err = r.verify(json)
	}
	return json, off, err
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

// unpackStargz takes the table out of the tar that holds nothing else.
func unpackStargz(packed []byte) ([]byte, error) {
	z, _, err := Decompress(bytes.NewReader(packed))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	t := tar.NewReader(z)
	h, err := t.Next()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", imgsrc.ErrDamaged, err)
	}
	if h.Name != stargzTOC || h.Size > maxTOC {
		return nil, fmt.Errorf("%w: the tar that should hold it has %q of %d bytes", imgsrc.ErrUnsupported, h.Name, h.Size)
	}
	return readLimited(t, h.Size, len(packed))
}

// readLimited unpacks a table to its end, which must come within limit bytes.
func readLimited(r io.Reader, limit int64, packed int) ([]byte, error) {
	var out bytes.Buffer
	out.Grow(int(min(limit, 8*int64(packed))) + bytes.MinRead)
	_, err := out.ReadFrom(io.LimitReader(r, limit+1))
	b := out.Bytes()
	switch {
	case err != nil && errors.Is(err, imgsrc.ErrUnsupported):
		return nil, err
	case err != nil:
		return nil, fmt.Errorf("%w: %w", imgsrc.ErrDamaged, err)
	case int64(len(b)) > limit:
		return nil, fmt.Errorf("%w: it has more than %d bytes", imgsrc.ErrUnsupported, limit)
	}
	return b, nil
}

// Entries goes through a table of contents that ReadTOC has returned with end. It calls emit for each entry, as Files.Entries
// does; a File's Where is what Chunks.Read needs. A nil emit leaves that out. Error: imgsrc.ErrUnsupported if the table
// says something that a tar could not, or not all that a tar says.
func (r TOCRef) Entries(json []byte, end int64, emit func(*imgsrc.File) error) (*Chunks, error) {
	s := &tocScan{end: end, emit: emit, stargz: !r.zstd}
	if err := s.scan(json); err != nil {
		return nil, err
	}
	return s.finish(), nil
}

// sumLen is how many bytes a chunk's digest has.
const sumLen = sha256.Size
