package fs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/imgfs/imgfs/imgsrc"
)

// blockSize is what writers cut their output at (the kernel at pages, stdio at 1024 to 8192 bytes): a write that ends at
// a multiple of it, without a newline, is taken for the first half of a line.
const blockSize = 1024

// halfLineKept is how long the first half of a line waits for the second.
const halfLineKept = 2 * time.Second

// maxLine is how long a line may be, in bytes.
const maxLine = 64 << 10

// controls is the state of the writes to all control files: the half lines.
type controls struct {
	f     *FS
	mu    sync.Mutex
	halve map[halfKey]*half
}

// halfKey is where the second half of a line would come from.
type halfKey struct {
	node node
	uid  uint32
	next int64 // the file offset at which it would start
}

type half struct {
	text  []byte
	timer *time.Timer
}

func (c *controls) init(f *FS) { c.f, c.halve = f, map[halfKey]*half{} }

// isControl says whether a node takes writes.
func (f *FS) isControl(n node) bool {
	if isJob(n) {
		return true
	}
	if n.image() == 0 || n.view() != viewImage {
		return false
	}
	row := rowByID[n.entry()]
	return row != nil && row.control
}

// write carries out the lines of one write(2). Its error is the write's.
func (c *controls) write(ctx context.Context, n node, who fuse.Caller, data []byte, off int64) error {
	img := c.f.image(n.image())
	row := rowByID[n.entry()]
	if img == nil {
		return imgsrc.ErrNotFound
	}
	defer img.written(row.id)
	key := halfKey{n, who.Uid, off}
	before := c.take(key)
	text := append(before, data...)
	end := off + int64(len(data))
	rest := 0
	if end%blockSize == 0 && len(text) > 0 {
		rest = len(text) - 1 - bytes.LastIndexByte(text, '\n')
	}
	if rest > maxLine {
		return fmt.Errorf("reading a line of %d bytes: %w: longer than %d", rest, imgsrc.ErrInvalid, maxLine)
	}
	tail := bytes.Clone(text[len(text)-rest:])
	err := c.run(ctx, img, row, who, text[:len(text)-rest])
	switch {
	case errors.Is(err, context.Canceled):
		c.keep(key, before) // for the same write, should it come back
	case err == nil:
		c.keep(halfKey{n, who.Uid, end}, tail)
	}
	return err
}

// take takes the half line that was waiting for this write.
func (c *controls) take(key halfKey) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := c.halve[key]
	if h == nil {
		return nil
	}
	h.timer.Stop()
	delete(c.halve, key)
	return h.text
}

// keep keeps half a line until its other half comes, or nobody can mean it any more.
func (c *controls) keep(key halfKey, text []byte) {
	if len(text) == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	h := &half{text: text}
	h.timer = time.AfterFunc(halfLineKept, func() {
		c.mu.Lock()
		mine := c.halve[key] == h
		if mine {
			delete(c.halve, key)
		}
		c.mu.Unlock()
		if mine {
			c.f.ops.Record("drop", c.f.imageName(key.node), fmt.Sprintf("half a line at offset %d of %s was never completed: %.80q",
				key.next-int64(len(text)), rowByID[key.node.entry()].name, text))
		}
	})
	c.halve[key] = h
}

func (c *controls) run(ctx context.Context, img *image, row *row, who fuse.Caller, text []byte) error {
	lines, err := splitLines(string(text))
	sum := sha256.Sum256(text)
	w := Write{
		Control: row.name,
		Image:   img.id,
		Lines:   lines,
		Key:     row.name + " " + img.id + " " + strconv.FormatUint(uint64(who.Uid), 10) + " " + hex.EncodeToString(sum[:]),
		UID:     who.Uid,
		PID:     who.Pid,
		Err:     err,
	}
	if err == nil && len(lines) == 0 {
		return nil
	}
	err = c.f.ops.Do(ctx, w)
	if row.live != nil {
		c.f.refresh(ctx) // what was written shows at once
		c.f.settle(ctx)
	}
	return err
}

// splitLines splits what was written into lines, and each into words at blanks; a word in double quotes may hold blanks.
// Blank lines and lines that begin with # are left out. Error: ErrInvalid with the number of the line.
func splitLines(text string) ([][]string, error) {
	var lines [][]string
	number := 0
	for line := range strings.Lines(text) {
		number++
		words, err := splitWords(strings.TrimRight(line, "\r\n"))
		if err != nil {
			return nil, fmt.Errorf("line %d: %w: %w", number, imgsrc.ErrInvalid, err)
		}
		if len(words) > 0 && !strings.HasPrefix(words[0], "#") {
			lines = append(lines, words)
		}
	}
	return lines, nil
}

var (
	errQuote = errors.New("a double quote is not closed")
	errNUL   = errors.New("a zero byte")
)

func splitWords(line string) ([]string, error) {
	if strings.HasPrefix(strings.TrimLeft(line, " \t"), "#") {
		return nil, nil
	}
	if strings.IndexByte(line, 0) >= 0 {
		return nil, errNUL
	}
	var words []string
	var word strings.Builder
	inWord, quoted := false, false
	for _, b := range []byte(line) {
		switch {
		case b == '"':
			quoted, inWord = !quoted, true
		case !quoted && (b == ' ' || b == '\t'):
			if inWord {
				words = append(words, word.String())
				word.Reset()
			}
			inWord = false
		default:
			word.WriteByte(b)
			inWord = true
		}
	}
	if quoted {
		return nil, errQuote
	}
	if inWord {
		words = append(words, word.String())
	}
	return words, nil
}
