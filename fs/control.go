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
	top   map[node]time.Time // when a write to one of the mountpoint's own controls last ended
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

func (c *controls) init(f *FS) { c.f, c.halve, c.top = f, map[halfKey]*half{}, map[node]time.Time{} }

// written is when a write to one of the mountpoint's own controls last ended; zero if none has.
func (c *controls) written(n node) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.top[n]
}

// A target is the control that a write is for.
type target struct {
	control string // its name
	image   string // the image's id; empty for the mountpoint's own
	shows   bool   // what is written shows in the tree at once
	written func() // moves its time, when a write has ended
}

// target returns the control at a node. Error: ErrNotFound if its image is gone.
func (c *controls) target(n node) (target, error) {
	if name := topControls[n.entry()]; n.image() == 0 && name != "" {
		return target{control: name, shows: true, written: func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.top[n] = later(latest(c.top[n], c.f.started), time.Now())
		}}, nil
	}
	img, row := c.f.image(n.image()), rowByID[n.entry()]
	if img == nil {
		return target{}, imgsrc.ErrNotFound
	}
	if _, err := img.current(); err != nil {
		return target{}, err
	}
	return target{control: row.name, image: img.id, shows: row.live != nil, written: func() { img.written(row.id) }}, nil
}

// spoilt has the kernel drop what somebody has put into its cache of a control without writing it.
func (c *controls) spoilt(n node) {
	if isJob(n) {
		err := imgsrc.Of(imgsrc.ErrInvalid, errors.New("a shared mapping writes nothing here: use a write"))
		_ = c.f.ops.WriteJob(n.entry(), Write{Control: "jobs", UID: c.f.uid, Err: err}) // moves the time
		return
	}
	if to, err := c.target(n); err == nil {
		to.written()
	}
}

// isControl says whether a node takes writes.
func (f *FS) isControl(n node) bool {
	if isJob(n) {
		return true
	}
	if n.image() == 0 {
		return n.view() == viewTop && topControls[n.entry()] != ""
	}
	if n.view() != viewImage {
		return false
	}
	row := rowByID[n.entry()]
	return row != nil && row.control
}

// write carries out the lines of one write(2). Its error is the write's.
func (c *controls) write(ctx context.Context, n node, who fuse.Caller, data []byte, off int64) error {
	to, err := c.target(n)
	if err != nil {
		return err
	}
	defer to.written()
	key := halfKey{n, who.Uid, off}
	before := c.take(key)
	text := append(before, data...)
	end := off + int64(len(data))
	rest := 0
	if end%blockSize == 0 && len(text) > 0 {
		rest = len(text) - 1 - bytes.LastIndexByte(text, '\n')
	}
	if rest > maxLine {
		err := imgsrc.Of(imgsrc.ErrInvalid, fmt.Errorf("a line of %d bytes is longer than %d", rest, maxLine))
		return c.do(ctx, to, who, text, nil, err)
	}
	tail := bytes.Clone(text[len(text)-rest:])
	err = c.run(ctx, to, who, text[:len(text)-rest])
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
		if to, err := c.target(key.node); mine && err == nil {
			c.f.ops.Record("drop", to.image, fmt.Sprintf("half a line at offset %d of %s was never completed: %.80q",
				key.next-int64(len(text)), to.control, text))
		}
	})
	c.halve[key] = h
}

func (c *controls) run(ctx context.Context, to target, who fuse.Caller, text []byte) error {
	lines, err := splitLines(string(text))
	if err == nil && len(lines) == 0 {
		return nil
	}
	return c.do(ctx, to, who, text, lines, err)
}

// do hands the lines of a text over, or why there are none.
func (c *controls) do(ctx context.Context, to target, who fuse.Caller, text []byte, lines [][]string, err error) error {
	sum := sha256.Sum256(text)
	w := Write{
		Control: to.control,
		Image:   to.image,
		Lines:   lines,
		Key:     to.control + " " + to.image + " " + strconv.FormatUint(uint64(who.Uid), 10) + " " + hex.EncodeToString(sum[:]),
		UID:     who.Uid,
		PID:     who.Pid,
		Err:     err,
	}
	err = c.f.ops.Do(ctx, w)
	if to.shows {
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
			return nil, imgsrc.Of(imgsrc.ErrInvalid, fmt.Errorf("line %d: %w", number, err))
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
