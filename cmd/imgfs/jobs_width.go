package main

import (
	"bytes"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// What a line of `imgfs jobs --follow` has, in columns: title, bar, and how far the job has come, each beside a blank. What
// does not fit goes in this order: the time that is left, most of the bar, most of the title, the bar, the rate, the total.
const (
	widestBar   = 30
	narrowBar   = 12
	leastBar    = 5
	progressFor = 37 // "1023.9 MiB / 1023.9 MiB  1023.9 MiB/s"
	leftFor     = 15 // "  99h59m59s left"
	leastTitle  = 29 // where there are 80 columns
)

// titleWidth is how many of a terminal's columns a title may take. It depends on nothing else, so that the bars of several
// jobs begin in one column.
func titleWidth(columns int) int {
	room := columns - 2 - narrowBar - progressFor
	return max(room-leftFor, min(room, leastTitle), min(columns/3, leastTitle))
}

// title is what stands before the bar: number, operation and the end of the reference, which says more than its beginning.
func (t *jobText) title(width int) string {
	head, reference := t.head, t.reference
	if t.point != "" {
		head = last(strings.TrimSuffix(t.point, " "), max(width-columnsOf(t.head+" "+reference)-1, width/3)) + " " + head
	}
	if room := width - columnsOf(head) - 1; room >= leastBar && reference != "" {
		head += " " + last(reference, room)
	}
	return first(head, width)
}

// progress is what stands behind the bar, for which it leaves room if there is enough.
func (t *jobText) progress(columns int) string {
	for _, fit := range []struct {
		bar   int
		texts []string
	}{
		{narrowBar, []string{t.amount, t.rate, t.left}}, {leastBar, []string{t.amount, t.rate}}, {0, []string{t.amount, t.rate}},
		{leastBar, []string{t.amount}}, {0, []string{t.amount}}, {0, []string{t.bytes}},
	} {
		var some []string
		for _, text := range fit.texts {
			if text != "" {
				some = append(some, text)
			}
		}
		text := strings.Join(some, "  ")
		if fit.bar > 0 && columnsOf(text)+fit.bar+2 <= columns {
			return text
		}
		if fit.bar == 0 && columnsOf(text) < columns {
			return fmt.Sprintf("%*s", columns, text) // the bar gets nothing
		}
	}
	return ""
}

func columnsOf(text string) int { return len([]rune(text)) }

// first is the beginning of a text that is too wide.
func first(text string, width int) string {
	if r := []rune(text); len(r) > width {
		return string(r[:max(width-1, 0)]) + "…"
	}
	return text
}

// last is the end of a text that is too wide.
func last(text string, width int) string {
	if r := []rune(text); len(r) > width {
		return "…" + string(r[len(r)-max(width-1, 0):])
	}
	return text
}

// A terminal is where bars are drawn. One that does not say how large it is has 80 columns and 24 lines.
type terminal struct {
	bytes.Buffer // what is to be drawn next

	f     *os.File
	drawn int // lines that are drawn over
}

// IsTerminal is for the bars.
func (t *terminal) IsTerminal() bool { return true }

// GetTermSize returns columns and lines.
func (t *terminal) GetTermSize() (columns, lines int, err error) {
	columns, lines = 80, 24
	size, err := unix.IoctlGetWinsize(int(t.f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return columns, lines, nil //nolint:nilerr // it does not say
	}
	if size.Col > 0 {
		columns = int(size.Col)
	}
	if size.Row > 0 {
		lines = int(size.Row)
	}
	return columns, lines, nil
}

// Flush draws over what was drawn last, and leaves the last lines of it to be drawn over.
func (t *terminal) Flush(lines int) error {
	if t.drawn > 0 {
		if _, err := fmt.Fprintf(t.f, "\x1b[%dA\x1b[J", t.drawn); err != nil {
			return err
		}
	}
	t.drawn = lines
	_, err := t.WriteTo(t.f)
	return err
}
