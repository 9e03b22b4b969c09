package layer

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/imgfs/imgfs/imgsrc"
)

// tocEntry is an entry of a table of contents. eStargz and zstd:chunked say nearly the same.
type tocEntry struct {
	Type     string            `json:"type"`
	Name     string            `json:"name"`
	LinkName string            `json:"linkName"`
	Mode     int64             `json:"mode"`
	Size     int64             `json:"size"`
	UID      int64             `json:"uid"`
	GID      int64             `json:"gid"`
	ModTime  string            `json:"modtime"`
	DevMajor int64             `json:"devMajor"`
	DevMinor int64             `json:"devMinor"`
	Xattrs   map[string][]byte `json:"xattrs"`

	// Of a regular file, and of each of its chunks behind the first.
	Digest      string `json:"digest"`
	Offset      int64  `json:"offset"`
	EndOffset   int64  `json:"endOffset"`
	InnerOffset int64  `json:"innerOffset"`
	ChunkOffset int64  `json:"chunkOffset"`
	ChunkSize   int64  `json:"chunkSize"`
	ChunkDigest string `json:"chunkDigest"`
	ChunkType   string `json:"chunkType"`
}

var tocTypes = map[string]byte{
	"reg": '0', "hardlink": '1', "symlink": '2', "char": '3', "block": '4', "dir": '5', "fifo": '6',
}

// A tocScan goes through a table of contents. A file's entries lie behind one another: the first one, and a "chunk" for
// each part behind the first.
type tocScan struct {
	end    int64 // of the files' bytes in the blob
	stargz bool
	emit   func(*imgsrc.File) error
	allow  func(bytes int64) // called before so many are read

	chunks []chunk
	count  int          // entries of files so far
	file   *imgsrc.File // the one whose chunks are being listed
	first  tocEntry     // its entry
	done   int64        // bytes of it that the chunks so far have

	names  []string // of the files that have chunks; nil if there are too many of them
	named  int      // bytes of them
	firsts []uint32 // and the first of these
}

// errUnusable is what is wrong with a table of contents that its digest matches.
func errUnusable(format string, args ...any) error {
	return fmt.Errorf("table of contents: %w: %s", imgsrc.ErrUnsupported, fmt.Sprintf(format, args...))
}

func (s *tocScan) scan(r io.Reader) error {
	s.allow(maxTOCEntry)
	d := json.NewDecoder(r)
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return errUnusable("it is no JSON object")
	}
	version, listed := 0, false
	for d.More() {
		s.allow(maxTOCEntry)
		key, err := d.Token()
		if err != nil {
			return errUnusable("%v", err)
		}
		switch key {
		case "version":
			err = d.Decode(&version)
		case "entries":
			if listed {
				return errUnusable("it has two lists of entries")
			}
			listed = true
			if err := s.entries(d); err != nil {
				return err
			}
		default:
			var skipped json.RawMessage
			err = d.Decode(&skipped)
		}
		if err != nil {
			return errUnusable("%v", err)
		}
	}
	if _, err := d.Token(); err != nil {
		return errUnusable("%v", err)
	}
	if version != 1 {
		return errUnusable("it is of version %d", version)
	}
	return s.flush()
}

func (s *tocScan) entries(d *json.Decoder) error {
	t, err := d.Token()
	if err == nil && t == nil { // null
		return nil
	}
	if err != nil || t != json.Delim('[') {
		return errUnusable("its entries are no list")
	}
	for d.More() {
		s.allow(maxTOCEntry)
		var e tocEntry
		if err := d.Decode(&e); err != nil {
			return errUnusable("%v", err)
		}
		if err := s.entry(&e); err != nil {
			return err
		}
	}
	if _, err := d.Token(); err != nil {
		return errUnusable("%v", err)
	}
	return nil
}

func (s *tocScan) entry(e *tocEntry) error {
	if e.Type == "chunk" {
		if s.file == nil || s.file.Type != '0' || e.Name != "" && e.Name != s.file.Name {
			return errUnusable("a chunk of %q, which is not the file before it", e.Name)
		}
		return s.chunk(e)
	}
	if err := s.flush(); err != nil {
		return err
	}
	if s.count++; s.count > MaxEntries {
		return fmt.Errorf("%w: %w", imgsrc.ErrDamaged, errTooMany)
	}
	f, err := e.file()
	if err != nil {
		return err
	}
	s.file, s.first, s.done = f, *e, 0
	if f.Type != '0' || f.Size == 0 {
		return nil
	}
	f.Where = uint64(len(s.chunks))
	return s.chunk(e)
}

// file is the entry as a tar's header would say it.
func (e *tocEntry) file() (*imgsrc.File, error) {
	t, ok := tocTypes[e.Type]
	switch {
	case !ok:
		return nil, errUnusable("%q is of type %q", e.Name, e.Type)
	case isLossy(e.Name) || isLossy(e.LinkName): // the tar has the bytes
		return nil, errUnusable("the name %q is not what the tar has", e.Name)
	case e.Size < 0 || e.DevMajor < 0 || e.DevMinor < 0 || e.DevMajor > math.MaxUint32 || e.DevMinor > math.MaxUint32:
		return nil, errUnusable("%q has %d bytes, or is device %d:%d", e.Name, e.Size, e.DevMajor, e.DevMinor)
	}
	f := &imgsrc.File{
		Name: e.Name, Type: t, Link: e.LinkName, Mode: uint32(e.Mode) & 0o7777, UID: uint32(e.UID), GID: uint32(e.GID),
		Major: uint32(e.DevMajor), Minor: uint32(e.DevMinor),
	}
	if t == '0' {
		f.Size, f.Stored = e.Size, e.Size
	}
	if e.ModTime != "" {
		at, err := time.Parse(time.RFC3339Nano, e.ModTime)
		if err != nil {
			return nil, errUnusable("%q was modified at %q", e.Name, e.ModTime)
		}
		if !at.IsZero() {
			f.Sec, f.Nsec = at.Unix(), uint32(at.Nanosecond())
		}
	}
	for name, value := range e.Xattrs {
		if isLossy(name) {
			return nil, errUnusable("%q has the attribute %q, which is not what the tar has", e.Name, name)
		}
		if isXattr(name, len(value)) {
			f.Xattrs = append(f.Xattrs, imgsrc.Xattr{Name: name, Value: string(value)})
		}
	}
	slices.SortFunc(f.Xattrs, func(a, b imgsrc.Xattr) int { return strings.Compare(a.Name, b.Name) })
	return f, nil
}

// isLossy says whether a text holds what JSON has in place of bytes that are not UTF-8.
func isLossy(s string) bool { return strings.ContainsRune(s, '\ufffd') }

// chunk adds the next chunk of the file.
func (s *tocScan) chunk(e *tocEntry) error {
	c := chunk{off: e.Offset, end: e.EndOffset, at: s.done, size: e.ChunkSize, inner: e.InnerOffset, zeros: e.ChunkType == "zeros"}
	left := s.file.Size - s.done
	if c.size == 0 {
		c.size = left
	}
	if e.Type == "chunk" || c.size < left {
		c.end = 0 // what is said is where the file ends
	}
	switch {
	case e.ChunkOffset != s.done || c.size <= 0 || c.size > left:
		return errUnusable("%q has %d bytes, and a chunk of %d at %d behind %d", s.file.Name, s.file.Size, c.size, e.ChunkOffset, s.done)
	case e.ChunkType != "" && !c.zeros:
		return errUnusable("%q has a chunk of type %q", s.file.Name, e.ChunkType)
	}
	s.done += c.size
	if !c.zeros {
		text := e.ChunkDigest
		if text == "" && c.size == s.file.Size {
			text = s.first.Digest
		}
		if err := c.check(s.file.Name, text, s.end); err != nil {
			return err
		}
	}
	if len(s.chunks) >= maxChunks {
		return errUnusable("it has more than %d chunks", maxChunks)
	}
	s.chunks = append(s.chunks, c)
	return nil
}

// check fails for a chunk that cannot be read.
func (c *chunk) check(name, sum string, end int64) error {
	switch {
	case c.off < 0 || c.off >= end:
		return errUnusable("%q is at %d of %d", name, c.off, end)
	case c.inner < 0 || c.inner > maxChunk || c.size > maxChunk-c.inner:
		return errUnusable("%q has a chunk of %d bytes behind %d", name, c.size, c.inner)
	}
	text, ok := strings.CutPrefix(sum, "sha256:")
	b, err := hex.DecodeString(text)
	if !ok || err != nil || len(b) != sumLen {
		return errUnusable("%q has a chunk with the digest %q", name, sum)
	}
	copy(c.sum[:], b)
	return nil
}

// flush ends the file whose chunks were listed.
func (s *tocScan) flush() error {
	f := s.file
	s.file = nil
	if f == nil {
		return nil
	}
	if f.Type == '0' && s.done != f.Size {
		return errUnusable("%q has %d bytes, and its chunks %d", f.Name, f.Size, s.done)
	}
	count := uint64(len(s.chunks)) - f.Where
	if f.Stored > 0 {
		s.named += len(f.Name)
		if s.firsts = append(s.firsts, uint32(f.Where)); len(s.firsts) <= maxTurns && s.named <= maxTurnNames {
			s.names = append(s.names, f.Name)
		} else {
			s.names = nil
		}
		f.Where |= count << 32
	}
	if s.emit == nil || s.stargz && isStargzMark(f) {
		return nil
	}
	if err := s.emit(f); err != nil {
		return &emitError{err}
	}
	return nil
}

// emitError tells what the receiver of entries says from what is wrong with the table.
type emitError struct{ error }

func (e *emitError) Unwrap() error { return e.error }

// IsEmitError says whether Entries has failed with an error of emit.
func IsEmitError(err error) bool {
	var e *emitError
	return errors.As(err, &e)
}

// finish makes the table of chunks. A chunk whose end is not said ends where another begins.
func (s *tocScan) finish() *Chunks {
	t := &Chunks{list: slices.Clip(s.chunks), starts: make([]int64, 0, len(s.chunks)+1), turns: newTurns(s.names, s.firsts)}
	for i := range t.list {
		if c := &t.list[i]; !c.zeros || c.off > 0 && c.off < s.end {
			t.starts = append(t.starts, c.off)
		}
	}
	t.starts = append(t.starts, s.end)
	slices.Sort(t.starts)
	t.starts = slices.Clip(slices.Compact(t.starts))
	for i := range t.list {
		c := &t.list[i]
		if c.zeros {
			continue
		}
		next, _ := slices.BinarySearch(t.starts, c.off+1)
		end := t.starts[next] // there is one: chunks begin before the end
		if c.end <= c.off || c.end > end {
			c.end = end
		}
		// What follows a chunk need not be another at once, and no format makes one twice as long as it is.
		c.end = c.off + min(c.end-c.off, 2*(c.inner+c.size)+slack) // a blob may be said to have 2^63 bytes
	}
	return t
}
