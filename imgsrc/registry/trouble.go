package registry

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/flight"
)

// A trouble is that requests of one kind to a server have just failed for good: it was away, hung, or answered that it is not well,
// each of them for as often as it was asked. An image of sixty layers is sixty such requests. So for a moment, which is as long as
// it took to find out (flight.Kept), or until one succeeds, each further request is made once; given little time, if one got no
// answer at all; and after three such in a row none is made. A server that answers may be slow. The zero value is no trouble.
type trouble struct {
	mu     sync.Mutex
	silent int // requests without an answer, one after the other
	last   error
	until  time.Time
}

const (
	// brief is which part of a document's time a request is given in trouble.
	brief = 5
	// maxSilent is how many requests that get no answer say that there will be none.
	maxSilent = 3
)

// troubleOf is where failures of a request count; nil if they do not.
func (p place) troubleOf(r *request) *trouble {
	switch {
	case p.client.patient, !isQuestion(r):
		return nil
	case strings.Contains(r.path, "/blobs/"):
		return &p.blobs
	}
	return &p.documents
}

func (p place) blobTrouble() *trouble {
	if p.client.patient {
		return nil
	}
	return &p.blobs
}

// begin returns whether a request is to be made only once, and how long it may wait for an answer: brief, or 0 if as long as ever.
// Error: no request is to be made.
func (t *trouble) begin(brief time.Duration) (once bool, limit time.Duration, err error) {
	if t == nil {
		return false, 0, nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case time.Now().After(t.until):
		return false, 0, nil
	case t.silent >= maxSilent:
		return false, 0, &failure{
			text:      fmt.Sprintf("not asked: it did not answer a moment ago: %s", t.last),
			condition: syscall.ETIMEDOUT,
		}
	case t.silent > 0:
		return true, brief, nil
	}
	return true, 0, nil
}

// end takes note of what came of a request, with all its attempts.
func (t *trouble) end(err error, begun time.Time) {
	if t == nil {
		return
	}
	var f *failure
	failed := errors.As(err, &f)
	silent := failed && f.status == 0 && errors.Is(f.condition, syscall.ETIMEDOUT)
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case silent || failed && f.temporary && !errors.Is(err, imgsrc.ErrDamaged):
		now := time.Now()
		if now.After(t.until) {
			t.silent = 0
		}
		if until := now.Add(flight.Kept(now.Sub(begun))); until.After(t.until) {
			t.until = until
		}
		t.last = err
		if silent {
			t.silent++
		} else if f.status != 0 { // it answers, and may be slow
			t.silent = 0
		}
	case err == nil || failed && f.status != 0: // it has answered
		t.silent, t.last, t.until = 0, nil, time.Time{}
	}
}
