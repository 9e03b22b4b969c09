package export

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sort"

	"github.com/imgfs/imgfs/imgsrc"
)

// A Reader reads bytes that lie somewhere, as imgsrc.Content.ReadAt does.
type Reader func(ctx context.Context, p []byte, off int64) (int, error)

// An Archive is a tar that nobody has written: its headers are in memory, and the bodies of its members are read from
// where they lie when somebody reads there. It is immutable, and any number may read it at once.
type Archive struct {
	segments []segment
	memory   int64
	tooLarge string // the member that would make it so; nothing is added behind it
}

// maxArchive is how many bytes an archive may have: sizes are what a manifest or a table of contents says, and a file's own
// size has 63 bits.
const maxArchive = 1 << 62

func errTooLarge(name string) error {
	return fmt.Errorf("%q would make the archive longer than a file can be: %w", name, imgsrc.ErrUnsupported)
}

var _ imgsrc.Content = (*Archive)(nil)

// A segment is a run of an archive's bytes: some in memory, or a member's body.
type segment struct {
	end  int64 // where it ends in the archive
	text []byte
	name string // of the member, for messages
	body Reader
}

// Size implements [imgsrc.Content]. It costs nothing.
func (a *Archive) Size(context.Context) (int64, error) { return a.length(), nil }

func (a *Archive) length() int64 {
	if len(a.segments) == 0 {
		return 0
	}
	return a.segments[len(a.segments)-1].end
}

// Memory is what the archive occupies, in bytes.
func (a *Archive) Memory() int64 { return a.memory + int64(len(a.segments))*96 }

// Sum is a hash of all that the archive has in memory: another one with the same sum is the same, if what has one digest or
// one name is the same.
func (a *Archive) Sum() [sha256.Size]byte {
	h := sha256.New()
	for i := range a.segments {
		h.Write(a.segments[i].text)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// Close implements [imgsrc.Content]. What an archive reads from is not its own.
func (a *Archive) Close() error { return nil }

// ReadAt implements [imgsrc.Content]. Errors: imgsrc.ErrDamaged for a body that ends before it should, and those of the
// body's reader.
func (a *Archive) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errNegative(off)
	}
	i := sort.Search(len(a.segments), func(i int) bool { return a.segments[i].end > off })
	n := 0
	for ; n < len(p) && i < len(a.segments); i++ {
		s := &a.segments[i]
		start := int64(0)
		if i > 0 {
			start = a.segments[i-1].end
		}
		at := off + int64(n) - start
		part := p[n:min(int64(len(p)), int64(n)+s.end-start-at)]
		if s.body == nil {
			copy(part, s.text[at:])
		} else if err := readBody(ctx, s.body, part, at); err != nil {
			return n, fmt.Errorf("reading %s at %d: %w", s.name, at, err)
		}
		n += len(part)
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func errNegative(off int64) error {
	return fmt.Errorf("reading an archive at the negative offset %d: %w", off, fs.ErrInvalid)
}

// readBody fills p, which lies within the body.
func readBody(ctx context.Context, r Reader, p []byte, off int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	n, err := r(ctx, p, off)
	switch {
	case n == len(p):
		return nil
	case err == nil || errors.Is(err, io.EOF):
		return fmt.Errorf("%w: it ends after %d bytes", imgsrc.ErrDamaged, off+int64(n))
	}
	return err
}

// text adds bytes.
func (a *Archive) text(b []byte) {
	if len(b) == 0 || a.tooLarge != "" {
		return
	}
	a.memory += int64(len(b))
	if n := len(a.segments); n > 0 && a.segments[n-1].body == nil { // one run with those before
		s := &a.segments[n-1]
		s.text = append(s.text, b...)
		s.end += int64(len(b))
		return
	}
	a.segments = append(a.segments, segment{end: a.length() + int64(len(b)), text: append([]byte(nil), b...)})
}

// file adds a member whose content is at hand.
func (a *Archive) file(name string, mtime int64, content []byte) {
	a.text(appendHeader(nil, &header{name: name, typ: typeRegular, mode: 0o644, sec: mtime, size: int64(len(content))}))
	a.text(content)
	a.text(padding(int64(len(content))))
}

// dir adds a directory, whose name ends in a slash.
func (a *Archive) dir(name string, mtime int64) {
	a.text(appendHeader(nil, &header{name: name, typ: typeDir, mode: 0o755, sec: mtime}))
}

// body adds a member that is read from elsewhere.
func (a *Archive) body(name string, mtime, size int64, r Reader) {
	if a.tooLarge == "" && (size < 0 || size > maxArchive-a.length()) {
		a.tooLarge = name
	}
	if a.tooLarge != "" {
		return
	}
	a.text(appendHeader(nil, &header{name: name, typ: typeRegular, mode: 0o644, sec: mtime, size: size}))
	if size > 0 {
		a.segments = append(a.segments, segment{end: a.length() + size, name: name, body: r})
	}
	a.text(padding(size))
}

// finish adds the end of a tar: two empty blocks. Error: imgsrc.ErrUnsupported if it would be too large.
func (a *Archive) finish() error {
	if a.tooLarge != "" {
		return errTooLarge(a.tooLarge)
	}
	a.text(trailer[:])
	return nil
}
