package ops

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"testing/synctest"
)

func TestEventsCut(t *testing.T) {
	var l eventLog
	var handedOut, was []byte
	cuts, number := 0, 0
	for range 30_000 {
		before := len(l.text)
		l.add(event{Type: "tag", Reference: strings.Repeat("x", number%200), Bytes: int64(number)})
		number++
		text, _ := l.read()
		switch {
		case len(text) > maxEvents:
			t.Fatalf("%d bytes", len(text))
		case len(text) < before:
			cuts++
			if len(text) > maxEvents/2 || len(text) < maxEvents/2-1000 {
				t.Errorf("cut to %d bytes", len(text))
			}
		}
		if number == 3000 {
			handedOut, was = text, bytes.Clone(text)
		}
	}
	if cuts < 2 {
		t.Fatalf("%d cuts", cuts)
	}
	if !bytes.Equal(handedOut, was) {
		t.Error("events that had been handed out have changed")
	}
	text, _ := l.read()
	lines := bytes.Split(bytes.TrimSuffix(text, []byte("\n")), []byte("\n"))
	for i, line := range lines { // whole lines, and all of the newest
		var e event
		if err := json.Unmarshal(line, &e); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		if e.Bytes != int64(number-len(lines)+i) {
			t.Fatalf("line %d is event %d", i, e.Bytes)
		}
	}
}

func TestEventsAppend(t *testing.T) {
	var l eventLog
	l.add(event{Type: "a"})
	text, _ := l.read()
	_ = append(text, "overwritten"...) // must not reach the log's own bytes
	l.add(event{Type: "b"})
	if text, _ := l.read(); strings.Contains(string(text), "over") || strings.Count(string(text), "\n") != 2 {
		t.Errorf("%s", text)
	}
	if n := testing.AllocsPerRun(100, func() { l.read() }); n > 0 {
		t.Errorf("%v allocations a read", n)
	}
}

// TestTimesMove has everything happen at one moment: times must move all the same.
func TestTimesMove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, _ := newOps(t, Options{})
		o.Record("link-error", "", "what was wrong")
		if text, _ := o.Events(); !strings.Contains(string(text), `"type":"link-error","error":"what was wrong"`) {
			t.Errorf("what has failed is %s", text)
		}
		o.Record("drop", "", "half a line")
		_, first := o.Events()
		o.Record("drop", "", "another")
		text, second := o.Events()
		if !second.After(first) || !strings.Contains(string(text), `"type":"drop"`) || !strings.Contains(string(text), "half a line") {
			t.Errorf("%s, then %s: %s", first, second, text)
		}
		if text, changed := o.LastError("x"); text != "" || !changed.IsZero() {
			t.Errorf("%q %s", text, changed)
		}
		o.errors.set("x", "")
		if _, changed := o.LastError("x"); !changed.IsZero() {
			t.Error("nothing has changed, but the time")
		}
		o.errors.set("x", "a")
		_, first = o.LastError("x")
		o.errors.set("x", "")
		text2, second := o.LastError("x")
		if text2 != "" || !second.After(first) {
			t.Errorf("%q, %s then %s", text2, first, second)
		}
	})
}
