package ops

import (
	"bytes"
	"encoding/json"
	"sync"
	"time"
)

// maxEvents is how many bytes of events are kept; past it the older half goes.
const maxEvents = 1 << 20

// An event is one line of the events file.
type event struct {
	Time      time.Time `json:"time"`
	Type      string    `json:"type"`
	Image     string    `json:"image,omitempty"`
	Reference string    `json:"reference,omitempty"`
	User      *uint32   `json:"user,omitempty"`     // uid
	Duration  float64   `json:"duration,omitempty"` // seconds
	Bytes     int64     `json:"bytes,omitempty"`    // sent
	Job       uint32    `json:"job,omitempty"`      // its number in jobs/
	Error     string    `json:"error,omitempty"`
	Message   string    `json:"message,omitempty"`
	Origin    string    `json:"origin,omitempty"` // "source": somebody else has done it
}

// eventLog is the text of the events. The bytes behind text are only ever appended to; a slice of them that has been
// handed out therefore never changes.
type eventLog struct {
	mu      sync.Mutex
	text    []byte
	changed time.Time
}

func (l *eventLog) add(e event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.changed = later(l.changed)
	e.Time = l.changed
	line, err := json.Marshal(e)
	if err != nil {
		panic(err) // strings and numbers: there is nothing that cannot be written
	}
	l.text = append(append(l.text, line...), '\n')
	if len(l.text) > maxEvents {
		cut := len(l.text) - maxEvents/2
		cut += bytes.IndexByte(l.text[cut-1:], '\n') // a line that begins at cut stays whole
		l.text = append(make([]byte, 0, maxEvents), l.text[cut:]...)
	}
}

func (l *eventLog) read() ([]byte, time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text[:len(l.text):len(l.text)], l.changed
}

// lastErrors is the text of each image's last failed operation.
type lastErrors struct {
	mu   sync.Mutex
	byID map[string]lastError
}

type lastError struct {
	text    string
	changed time.Time
}

func (l *lastErrors) set(id, text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	last := l.byID[id]
	if text == "" && last.text == "" {
		return
	}
	if l.byID == nil {
		l.byID = map[string]lastError{}
	}
	l.byID[id] = lastError{text, later(last.changed)}
}

func (l *lastErrors) get(id string) (string, time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	last := l.byID[id]
	return last.text, last.changed
}

// later is now, or the first moment after t if the clock has not moved past it: what a reader takes for a file's mtime
// must never stand still when the content changes.
func later(t time.Time) time.Time {
	now := time.Now().UTC().Round(0)
	if !now.After(t) {
		now = t.Add(time.Nanosecond)
	}
	return now
}
