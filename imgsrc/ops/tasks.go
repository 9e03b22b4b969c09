package ops

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
)

// keptTasks is how many jobs stay to be read when they have ended; of fetches, which reading brings about, as many apart.
const keptTasks = 100

// maxTasks is how many jobs there may be, most of them waiting: for each, memory is kept.
const maxTasks = 10_000

// shownEvery is how long a job stays as it was last shown: a reader's file must not change between its stat and its read.
const shownEvery = 250 * time.Millisecond

// sizeStep is what a job's text is filled up to with blanks. Two who read one file share what the kernel knows of its size:
// if that were another with each digit, one would now and then get the text of one moment, cut to the size of another.
const sizeStep = 512

// tasks are the jobs that run, wait, or have ended last, by their number, which counts from 1.
type tasks struct {
	mu       sync.Mutex
	last     uint32
	byNumber map[uint32]*task
	order    []*task // by number
	changed  time.Time
}

// add gives a task its number. Not ok if it is no job: it is over, or one with its key waits or runs.
func (ts *tasks) add(t *task) (ok bool) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if ts.sameKey(t.key) != nil || !t.begins(ts.last+1) {
		return false
	}
	if ts.byNumber == nil {
		ts.byNumber = map[uint32]*task{}
	}
	ts.last++
	ts.byNumber[t.number] = t
	ts.order = append(ts.order, t)
	ts.changed = later(ts.changed)
	return true
}

// begins makes a task the job of this number, unless it is over: its text is not made any more then.
func (t *task) begins(number uint32) (ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.state.isOver() {
		return false
	}
	t.number = number
	return true
}

// withKey returns the task with this key that waits or runs, nil if there is none.
func (ts *tasks) withKey(key string) *task {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	return ts.sameKey(key)
}

// sameKey is withKey. mu is held.
func (ts *tasks) sameKey(key string) *task {
	if key == "" {
		return nil
	}
	at := slices.IndexFunc(ts.order, func(t *task) bool { return t.key == key && !t.isOver() })
	if at < 0 {
		return nil
	}
	return ts.order[at]
}

// dismiss makes the next request with a task's key another task: this one has been cancelled and may take a while to end,
// and whoever asks after that does not mean what was cancelled.
func (ts *tasks) dismiss(t *task) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	t.key = ""
}

// full says whether there are as many jobs as there may be.
func (ts *tasks) full() bool {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	return len(ts.order) >= maxTasks
}

// ended drops the oldest job that has ended if there are too many of them, or the oldest fetch.
func (ts *tasks) ended(fetch bool) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	over, oldest := 0, -1
	for i, t := range ts.order {
		if t.fetch == fetch && t.isOver() {
			over++
			if oldest < 0 {
				oldest = i
			}
		}
	}
	if over <= keptTasks {
		return
	}
	delete(ts.byNumber, ts.order[oldest].number)
	ts.order = slices.Delete(ts.order, oldest, oldest+1)
	ts.changed = later(ts.changed)
}

func (ts *tasks) get(number uint32) *task {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	return ts.byNumber[number]
}

// listed returns the number of a task that is a job, and 0 for one that is not, or not yet.
func (t *task) listed() uint32 {
	if t == nil {
		return 0
	}
	t.o.tasks.mu.Lock()
	defer t.o.tasks.mu.Unlock()
	return t.number
}

func (t *task) isOver() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.state.isOver()
}

// Jobs returns the numbers of the jobs that run, wait, or have ended last (a hundred of them), in rising order, and when
// one came or went (zero if none ever did).
func (o *Ops) Jobs() (numbers []uint32, changed time.Time) {
	ts := &o.tasks
	ts.mu.Lock()
	defer ts.mu.Unlock()
	numbers = make([]uint32, len(ts.order))
	for i, t := range ts.order {
		numbers[i] = t.number
	}
	return numbers, ts.changed
}

// WriteJob carries out what was written to a job's file: each line must be the word cancel. It does not wait until the
// job has ended. A job that has ended stays as it is, and that is no error: what was asked for is so. The time of the job's
// text moves, whatever comes of it, because the kernel has put what was written into its cache. Errors: imgsrc.ErrInvalid,
// imgsrc.ErrNotFound.
func (o *Ops) WriteJob(number uint32, r Request) error {
	t := o.tasks.get(number)
	if t == nil {
		return fail(imgsrc.ErrNotFound, "cancelling job %d: it is not there any more", number)
	}
	defer t.touch()
	err := o.refuse(r)
	if err == nil && t.fetch && len(r.Lines) > 0 {
		err = fail(imgsrc.ErrUnsupported, "what is fetched for readers is not cancelled: others may wait for it")
	}
	for _, words := range r.Lines {
		if err == nil && (len(words) != 1 || words[0] != "cancel") {
			err = fail(imgsrc.ErrInvalid, "%s: the only word that a job takes is cancel", quote(strings.Join(words, " ")))
		}
	}
	if err != nil {
		f := &failure{text: oneLine(fmt.Sprintf("cancelling job %d: %s", number, err)), condition: condition(err)}
		o.events.add(event{Type: "cancel-error", Image: t.request.Image, User: &r.UID, Job: number, Error: f.text})
		o.log.Warn("cancelling job", "job", number, "user", r.UID, "error", f.text)
		return f
	}
	if len(r.Lines) > 0 {
		o.tasks.dismiss(t)
		t.cancel(fail(syscall.ECANCELED, "cancelled by user %d, who wrote to jobs/%d", r.UID, number))
	}
	return nil
}

// Job returns a job as a line of JSON, and when that text last changed; ok is false if there is no such job. With fresh,
// a text that is older than a quarter of a second is made anew; without, the last one is returned, so that whoever asks
// for the size first and then for the text gets what fits. The bytes are never changed afterwards.
func (o *Ops) Job(number uint32, fresh bool) (text []byte, changed time.Time, ok bool) {
	t := o.tasks.get(number)
	if t == nil {
		return nil, time.Time{}, false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	s := &t.shown
	if s.text == nil || fresh && !s.frozen && (s.state != t.state || time.Since(s.at) >= shownEvery) {
		t.show()
	}
	return s.text, s.changed, true
}

// touch moves the time of a job's text.
func (t *task) touch() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.shown.changed = later(t.shown.changed)
}

// A shownTask is a job as it was last shown.
type shownTask struct {
	text    []byte
	state   taskState
	at      time.Time // when the text was made
	changed time.Time // when it came to differ from the one before
	frozen  bool      // it is the last one
}

// show makes the text. mu is held.
func (t *task) show() {
	s := &t.shown
	s.state, s.at = t.state, time.Now()
	text, err := json.Marshal(t.json(s.at))
	if err != nil {
		panic(err) // strings and numbers: there is nothing that cannot be written
	}
	size := max(len(s.text), (len(text)/sizeStep+1)*sizeStep)
	text = append(text, bytes.Repeat([]byte{' '}, size-len(text)-1)...)
	text = append(text, '\n')
	if string(text) != string(s.text) {
		s.text, s.changed = text, later(s.changed)
	}
}

// freeze makes the text of a job that has ended, and lets go of everything that is only needed to make another. mu is held.
func (t *task) freeze() {
	t.show()
	t.shown.frozen = true
	t.order, t.blobs, t.hint, t.request.Lines = nil, nil, nil, nil
}

// jobJSON is a file in jobs/. Times are RFC 3339; durations are seconds.
type jobJSON struct {
	Number    uint32     `json:"number"`
	Operation string     `json:"operation"`
	State     taskState  `json:"state"`
	Image     string     `json:"image,omitempty"`
	Reference string     `json:"reference,omitempty"`
	User      *uint32    `json:"user,omitempty"` // uid
	PID       uint32     `json:"pid,omitempty"`
	Queued    time.Time  `json:"queued"`
	Started   *time.Time `json:"started,omitempty"`
	Ended     *time.Time `json:"ended,omitempty"`
	Duration  float64    `json:"duration"` // since it was started
	Bytes     int64      `json:"bytes"`    // read, of the blobs that are not skipped
	Total     *int64     `json:"total"`    // how many there are to read; null while that is unknown
	Sent      int64      `json:"sent"`     // to the destination, as it stores them
	Rate      int64      `json:"rate"`     // bytes a second, since it was started
	Retries   int        `json:"retries,omitempty"`
	Waiting   string     `json:"waiting,omitempty"` // why it does not go on
	Error     string     `json:"error,omitempty"`
	Blobs     []blobJSON `json:"blobs,omitempty"`
}

type blobJSON struct {
	Digest digest.Digest `json:"digest"`
	Size   *int64        `json:"size"` // null if it is unknown
	Done   int64         `json:"done"`
	State  string        `json:"state"`
}

// seconds is a duration as JSON has it, to the microsecond.
func seconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1e6 }

// json describes the job at the moment now. mu is held.
func (t *task) json(now time.Time) jobJSON {
	j := jobJSON{
		Number: t.number, Operation: t.kind, State: t.state, Image: cmp.Or(t.request.Image, t.arrived), Reference: redactWord(t.reference),
		PID: t.request.PID, Queued: t.queued.UTC(), Sent: t.sent.Load(), Retries: t.retries, Waiting: t.waiting, Error: t.err,
	}
	if !t.fetch {
		j.User = &t.request.UID
	}
	total, known := int64(0), t.complete
	for _, b := range t.order {
		state := b.state.Load()
		line := blobJSON{Digest: b.digest, Done: b.done.Load(), State: *state}
		if state == blobRunning && t.state.isOver() {
			line.State = string(t.state) // what ended it in the middle
		}
		if b.size >= 0 {
			line.Size = &b.size
			if state != blobParts { // of which some may have come twice
				line.Done = min(line.Done, b.size)
			}
		}
		j.Blobs = append(j.Blobs, line)
		if state == blobSkipped {
			continue
		}
		j.Bytes += line.Done
		left := b.size
		if state == blobDone { // perhaps by parts of it, with the store's own for the others
			left = line.Done
		}
		known = known && b.size >= 0 && left <= math.MaxInt64-total && state != blobParts
		total += left
	}
	if known {
		j.Total = &total
	}
	if t.started.IsZero() {
		return j
	}
	started := t.started.UTC()
	j.Started = &started
	end := now
	if !t.ended.IsZero() {
		end = t.ended
		ended := end.UTC()
		j.Ended = &ended
	}
	j.Duration = seconds(end.Sub(t.started))
	if j.Duration > 0 {
		j.Rate = int64(float64(j.Bytes) / j.Duration)
	}
	return j
}
