package imgsrc

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// historyEntry is one step of an image's making, as the config has it.
type historyEntry struct {
	Created    *timeText `json:"created"`
	CreatedBy  *string   `json:"created_by"`
	Author     *string   `json:"author"`
	Comment    *string   `json:"comment"`
	EmptyLayer bool      `json:"empty_layer"`

	layer int // the layer that this step made, -1 if it made none or there is none left for it
}

// parseHistory reads the history and joins it to the layers: each entry that is not an empty layer has made the next
// one. Where the two lists end at different places, what is left over stays alone.
func (f *Facts) parseHistory(v1 *schema1) {
	switch {
	case v1 != nil && v1.err != nil:
		f.historyErr = f.damaged("history", v1.err)
		return
	case v1 != nil:
		f.history = v1.history
	case f.cfgErr != nil:
		f.historyErr = f.cfgErr
		return
	default:
		var err error
		if f.history, err = decodeList[historyEntry](f.cfg.History); err != nil {
			f.historyErr = f.damaged("history", err)
			return
		}
	}
	if f.history == nil {
		f.historyErr = f.absent("history")
		return
	}
	n := 0
	for i := range f.history {
		e := &f.history[i]
		e.layer = -1
		if e.EmptyLayer || n == len(f.Layers) {
			continue
		}
		e.layer = n
		f.Layers[n].entry = i
		if e.CreatedBy != nil {
			f.Layers[n].CreatedBy = *e.CreatedBy
		}
		n++
	}
}

// HistoryJSON returns the history as a JSON array, oldest entry first, each with the digests and the size in bytes of
// the layer that it made. What the image does not say is left out.
func HistoryJSON(f *Facts) ([]byte, error) {
	if f.history == nil {
		return nil, f.historyErr
	}
	type entry struct {
		Created    *timeText `json:"created,omitempty"`
		CreatedBy  *string   `json:"createdBy,omitempty"`
		Author     *string   `json:"author,omitempty"`
		Comment    *string   `json:"comment,omitempty"`
		EmptyLayer bool      `json:"emptyLayer"`
		Digest     string    `json:"digest,omitempty"`
		DiffID     string    `json:"diffID,omitempty"`
		Size       *int64    `json:"size,omitempty"`
	}
	list := make([]entry, len(f.history))
	for i, h := range f.history {
		e := entry{Created: h.Created, CreatedBy: h.CreatedBy, Author: h.Author, Comment: h.Comment, EmptyLayer: h.EmptyLayer}
		if h.layer >= 0 {
			l := &f.Layers[h.layer]
			e.Digest, e.DiffID = string(l.Digest), string(l.DiffID)
			if l.Size >= 0 {
				e.Size = &l.Size
			}
		}
		list[i] = e
	}
	return encodeJSON(list)
}

const (
	// missing stands for what the image does not say, in the columns of one word, so that a row has always as many; it is
	// podman's word for it.
	missing = "<missing>"
	// maxPad is how wide a column is padded. Without a bound one long command among many entries would be paid for in
	// spaces once for each of them.
	maxPad = 200
)

// HistoryText returns the history as a table with the columns of "podman history", oldest entry first and nothing cut
// off. ID is the digest of the entry's layer, CREATED its time in RFC 3339, SIZE its bytes in the manifest. A control
// character in a text is shown as a space.
func HistoryText(f *Facts) ([]byte, error) {
	if f.history == nil {
		return nil, f.historyErr
	}
	if len(f.history) == 0 {
		return []byte{}, nil
	}
	rows := [][5]string{{"ID", "CREATED", "CREATED BY", "SIZE", "COMMENT"}}
	for _, h := range f.history {
		row := [5]string{missing, missing, oneLine(h.CreatedBy), missing, oneLine(h.Comment)}
		if h.Created != nil {
			row[1] = h.Created.text
		}
		switch {
		case h.EmptyLayer:
			row[3] = "0"
		case h.layer >= 0:
			l := &f.Layers[h.layer]
			row[0] = string(l.Digest)
			if l.Size >= 0 {
				row[3] = strconv.FormatInt(l.Size, 10)
			}
		}
		rows = append(rows, row)
	}
	var width [5]int
	for _, row := range rows {
		for i, cell := range row {
			width[i] = min(max(width[i], utf8.RuneCountInString(cell)), maxPad)
		}
	}
	var b bytes.Buffer
	for _, row := range rows {
		start := b.Len()
		for i, cell := range row {
			fmt.Fprintf(&b, "%-*s  ", width[i], cell)
		}
		b.Truncate(start + len(bytes.TrimRight(b.Bytes()[start:], " ")))
		b.WriteByte('\n')
	}
	return b.Bytes(), nil
}

func oneLine(s *string) string {
	if s == nil {
		return ""
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == '\u2028' || r == '\u2029' {
			return ' '
		}
		return r
	}, *s)
}
