package ops

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
)

// A task is an operation while it is one of the mount's jobs, and for a while after: it has a number, tells how far it has
// come, and can be cancelled. The operation reports through it; a nil task takes the reports and does nothing, so that the
// work can be tested alone. Reports of bytes are additions to a number; none of them waits for somebody who reads.
//
// The states are queued (begin), running (run), and done, failed or cancelled (end).
type task struct {
	operation
	o      *Ops
	number uint32 // 0: it is no job, or not yet; written with tasks.mu and mu held
	queued time.Time
	cancel context.CancelCauseFunc
	turn   *turn         // nil: it has not lined up
	fetch  bool          // it is for whoever reads: see Fetch
	key    string        // no two that wait or run have the same; empty: see background; written with tasks.mu held
	gone   chan struct{} // closed when it is over, after result is set; nil where nobody can wait for that
	result error
	sent   atomic.Int64

	mu       sync.Mutex // guards what follows; taken after tasks.mu
	state    taskState
	started  time.Time
	ended    time.Time
	order    []*blobTask
	blobs    map[digest.Digest]*blobTask
	complete bool // no blob will be added: how much there is to do is known if every blob's size is
	retries  int
	err      string
	waiting  string // why it does not go on; empty: it does

	shown shownTask
}

type taskState string

const (
	taskQueued    taskState = "queued"
	taskRunning   taskState = "running"
	taskDone      taskState = "done"
	taskFailed    taskState = "failed"
	taskCancelled taskState = "cancelled"
)

// isOver says whether a task has ended.
func (s taskState) isOver() bool { return s != taskQueued && s != taskRunning }

// A blobTask is one blob of a task: how much of it has been read.
type blobTask struct {
	digest digest.Digest
	size   int64 // -1: unknown
	done   atomic.Int64
	state  atomic.Pointer[string]
	ever   atomic.Bool // it has been finished, by this attempt or an earlier one
}

// The states of a blob.
var (
	blobWaiting = new("waiting")
	blobRunning = new("running")
	blobDone    = new("done")
	blobSkipped = new("skipped") // it was there already
	blobParts   = new("parts")   // parts of it are asked for, and perhaps never all
)

// begin makes an operation a job, which waits for its turn until run is called. The context that it returns ends when the
// job is cancelled, too; its cause then says by whom. The caller must call end.
func (o *Ops) begin(ctx context.Context, op operation) (context.Context, *task) {
	t := o.newTask(op)
	ctx, t.cancel = context.WithCancelCause(ctx)
	o.tasks.add(t)
	return ctx, t
}

func (o *Ops) newTask(op operation) *task {
	return &task{operation: op, o: o, queued: time.Now(), state: taskQueued, blobs: map[digest.Digest]*blobTask{}, gone: make(chan struct{})}
}

// lateAfter is how long something may take that is no job.
const lateAfter = time.Second

// beginLate makes a request a job that runs, if it takes long, and so can be seen and cancelled then. The caller must call
// over.
func (o *Ops) beginLate(ctx context.Context, r Request) (context.Context, *task) {
	kind := r.Control
	if kind == "tags" || kind == "link" {
		kind = "tag"
	}
	var words []string
	for _, line := range r.Lines[:min(len(r.Lines), 1)] {
		for _, word := range line {
			words = append(words, redactWord(word))
		}
	}
	if more := len(r.Lines) - 1; more > 0 {
		words = append(words, fmt.Sprintf("and %d more", more))
	}
	now := time.Now()
	t := &task{
		operation: operation{kind: kind, reference: strings.Join(words, " "), request: r, start: now}, o: o,
		queued: now, state: taskRunning, started: now, blobs: map[digest.Digest]*blobTask{},
	}
	ctx, t.cancel = context.WithCancelCause(imgsrc.WithWaiting(ctx, t.waitsFor))
	timer := time.AfterFunc(lateAfter, func() { o.tasks.add(t) })
	context.AfterFunc(ctx, func() { timer.Stop() })
	return ctx, t
}

// run says that the job's turn has come: its duration counts from here.
func (t *task) run() {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.start = time.Now()
	t.state, t.started = taskRunning, t.start
}

// end records what came of the job, and returns what done does. Only the first call counts.
func (t *task) end(err error) error {
	if t == nil {
		return err
	}
	t.mu.Lock()
	if t.state.isOver() {
		t.mu.Unlock()
		return err
	}
	t.bytes = t.sent.Load()
	op := t.operation
	op.job = t.number
	t.mu.Unlock()

	err = t.o.done(op, err)
	t.over(err)
	return err
}

// over makes a job one that has ended.
func (t *task) over(err error) {
	state := taskDone
	switch {
	case errors.Is(err, syscall.ECANCELED), errors.Is(err, context.Canceled):
		state = taskCancelled
	case err != nil:
		state = taskFailed
	}
	t.mu.Lock()
	t.state, t.ended, t.waiting = state, time.Now(), ""
	t.err, t.complete = "", t.complete || err == nil
	if err != nil {
		t.err = oneLine(err.Error())
	} else {
		t.unneeded()
	}
	t.freeze()
	t.mu.Unlock()
	if t.gone != nil {
		t.result = err
		close(t.gone)
	}
	t.cancel(nil)
	t.o.tasks.ended(t.fetch)
}

// Fetch makes a job of a blob that a source fetches because somebody reads in it, from a place as it is typed. The source
// calls arrived with how many of its bytes are here, and ended once. The job is nobody's: it has no user, it cannot be
// cancelled, because others may wait for the same blob, and it is no event. size is -1 if it is unknown. With parts only what
// is read is fetched: the bytes are those that have come, and how many there will be is not known.
func (o *Ops) Fetch(place string, d digest.Digest, size int64, parts bool) (arrived func(int64), ended func(error)) {
	t := &task{
		operation: operation{kind: "fetch", reference: place}, o: o, fetch: true, queued: time.Now(), state: taskQueued,
		blobs: map[digest.Digest]*blobTask{}, cancel: func(error) {},
	}
	b := t.blob(d, size)
	b.begun()
	if parts {
		b.state.Store(blobParts)
	} else {
		t.whole()
	}
	t.run()
	o.tasks.add(t)
	return b.done.Store, func(err error) {
		if err == nil && !parts {
			b.finished()
		}
		t.over(err)
	}
}

// work does a job's work when its turn has come, and ends the job.
func (t *task) work(ctx context.Context, do func() error) error {
	if t.turn == nil {
		t.turn = t.o.turns.lineUp()
	}
	defer t.turn.leave()
	defer t.endPanic()
	select {
	case <-t.turn.come:
	case <-ctx.Done():
	}
	if ctx.Err() != nil {
		return t.end(context.Cause(ctx))
	}
	t.run()
	err := do()
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx) // why, and not where it was noticed
	}
	return t.end(err)
}

// background begins a job that nobody waits for, and has run do its work. When background returns the job can be seen and
// has its place in the line. If one with this key waits or runs already, that is the one; an empty key is no other's.
// Error: ENOSPC if too many wait.
func (o *Ops) background(_ context.Context, op operation, key string, run func(context.Context, *task) error) error {
	if o.tasks.full() {
		return o.done(op, fail(syscall.ENOSPC, "%d jobs run or wait already: queue it when some of them have ended", maxTasks))
	}
	t := o.newTask(op)
	t.key = key
	ctx, cancel := context.WithCancelCause(o.jobs.ctx)
	t.cancel = cancel
	if !o.tasks.add(t) {
		cancel(nil)
		return nil
	}
	t.turn = o.turns.lineUp()
	o.jobs.background(func() error {
		defer t.endPanic()
		return run(ctx, t)
	})
	return nil
}

// waitFor has run do the work of a job that its writer waits for, unless a job with this key was queued and has not ended:
// then that is the one, and goes on if the writer leaves.
func (o *Ops) waitFor(ctx context.Context, op operation, key string, run func(context.Context, *task) error) error {
	if t := o.tasks.withKey(key); t != nil {
		select {
		case <-t.gone:
			return t.result
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return run(o.begin(ctx, op))
}

// sameLine is the key of the job of one line, at a place that does not depend on where its writer was; empty if the line
// has something that does. Whether it is waited for makes no difference.
func sameLine(op operation, place string, words []string) string {
	words = slices.DeleteFunc(slices.Clone(words), func(word string) bool { return strings.HasPrefix(word, "wait=") })
	for _, word := range words[1:] {
		if strings.HasPrefix(word, "authfile=") || strings.HasPrefix(word, "sign-") {
			return ""
		}
	}
	return fmt.Sprintf("%s %s %d %q %q", op.request.Control, op.request.Image, op.request.UID, place, words[1:])
}

// whole says that all blobs of the job are known now.
func (t *task) whole() {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.complete = true
}

// retry says that something is tried again, and why.
func (t *task) retry(err error) {
	if t == nil || err == nil {
		return
	}
	text := oneLine(err.Error())
	t.mu.Lock()
	defer t.mu.Unlock()
	t.retries++
	t.err = text
}

// blob returns the task's blob of this digest, which it gets if it has none. size is how many bytes there will be to read,
// -1 if that is unknown.
func (t *task) blob(d digest.Digest, size int64) *blobTask {
	if t == nil {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	b := t.blobs[d]
	if b == nil {
		b = &blobTask{digest: d, size: -1}
		b.state.Store(blobWaiting)
		if !t.state.isOver() { // and this one is left behind, see storage's Receive
			t.blobs[d] = b
			t.order = append(t.order, b)
		}
	}
	if size >= 0 {
		b.size = size
	}
	return b
}

// begun says that the blob is read from its beginning, perhaps once more.
func (b *blobTask) begun() {
	if b == nil {
		return
	}
	b.done.Store(0)
	b.state.Store(blobRunning)
}

// add says that n more bytes of the blob have been read.
func (b *blobTask) add(n int) {
	if b != nil {
		b.done.Add(int64(n))
	}
}

// finished says that the blob is where it was to go.
func (b *blobTask) finished() {
	if b != nil {
		b.state.Store(blobDone)
		b.ever.Store(true)
	}
}

// finished returns how many of the blobs have been where they were to go.
func (t *task) finished() int {
	if t == nil {
		return 0
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	n := 0
	for _, b := range t.order {
		if b.ever.Load() {
			n++
		}
	}
	return n
}

// skipped says that the blob was there already: before any of it was read, or because this task has brought it.
func (b *blobTask) skipped() {
	if b != nil {
		b.state.CompareAndSwap(blobWaiting, blobSkipped)
	}
}

// reader counts what is read of the blob, from its beginning.
func (b *blobTask) reader(r io.ReadCloser) io.ReadCloser {
	if b == nil {
		return r
	}
	b.begun()
	return &blobReader{r, b}
}

type blobReader struct {
	io.ReadCloser
	blob *blobTask
}

func (r *blobReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	r.blob.add(n)
	return n, err
}

// sends says that n more bytes have gone to the destination, as it stores them.
func (t *task) sends(n int64) {
	if t != nil {
		t.sent.Add(n)
	}
}
