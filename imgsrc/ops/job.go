package ops

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"github.com/imgfs/imgfs/imgsrc"
)

// grace is how long a job waits for a writer that has left to come back.
const grace = 2 * time.Second

// Why a job's context ended.
var (
	errAbandoned = fail(context.Canceled, "cancelled, because its writer left")
	errClosed    = fail(syscall.ECANCELED, "cancelled, because the mount is going away")
)

// jobs are the requests that are being carried out, and those whose result nobody has got yet.
type jobs struct {
	log    *slog.Logger
	ctx    context.Context // parent of every job's
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup

	mu     sync.Mutex // guards what follows and the fields of the jobs
	closed bool
	byKey  map[string]*job
}

type job struct {
	cancel  context.CancelCauseFunc
	waiters int
	leave   *time.Timer   // runs out when nobody came back; nil while somebody waits
	back    chan struct{} // closed when somebody waits again; nil if nobody wants to know
	commits bool          // it makes its change, after which it is done: see mayCommit
	done    chan struct{} // closed with mu held, after err is set
	err     error
}

func newJobs(log *slog.Logger) *jobs {
	ctx, cancel := context.WithCancelCause(context.Background())
	return &jobs{log: log, ctx: ctx, cancel: cancel, byKey: map[string]*job{}}
}

// do runs run as the job of this key, or joins the one that there is, and waits for it until ctx ends.
func (js *jobs) do(ctx context.Context, key string, run func(context.Context) error) error {
	js.mu.Lock()
	if js.closed {
		js.mu.Unlock()
		return errClosed
	}
	j := js.byKey[key]
	if j == nil {
		j = js.start(key, run)
	}
	j.waiters++
	if j.leave != nil {
		j.leave.Stop()
		j.leave = nil
	}
	if j.back != nil {
		close(j.back)
		j.back = nil
	}
	js.mu.Unlock()

	select {
	case <-j.done:
	case <-ctx.Done():
	}

	js.mu.Lock()
	defer js.mu.Unlock()
	js.committed(j)
	j.waiters--           // with mu held since it was seen that the job does not make its change: it will not any more
	if isClosed(j.done) { // also when ctx ended at the same moment: this caller is the one that gets the result
		js.forget(key, j)
		return j.err
	}
	if j.waiters > 0 {
		return ctx.Err()
	}
	if cause := context.Cause(ctx); errors.Is(cause, syscall.ETIMEDOUT) {
		js.forget(key, j)
		j.cancel(cause)
		if js.soon(j); isClosed(j.done) {
			return j.err
		}
		return ctx.Err()
	}
	js.expire(key, j)
	return ctx.Err()
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// start begins a job. mu is held.
func (js *jobs) start(key string, run func(context.Context) error) *job {
	ctx, cancel := context.WithCancelCause(js.ctx)
	j := &job{cancel: cancel, done: make(chan struct{})}
	ctx = imgsrc.WithCommit(ctx, func() error { return js.mayCommit(ctx, j) })
	if key != "" {
		js.byKey[key] = j
	}
	js.wg.Go(func() {
		err := js.guard(ctx, run)
		js.mu.Lock()
		defer js.mu.Unlock()
		j.err = err
		close(j.done)
		if j.waiters > 0 {
			js.forget(key, j)
		}
		cancel(nil)
	})
	return j
}

// mayCommit is what a source asks before it changes something. A writer that has left was told that it was interrupted:
// unless it comes back nothing may happen any more.
func (js *jobs) mayCommit(ctx context.Context, j *job) error {
	for {
		js.mu.Lock()
		if j.waiters > 0 || ctx.Err() != nil {
			j.commits = ctx.Err() == nil
			js.mu.Unlock()
			return context.Cause(ctx)
		}
		if j.back == nil {
			j.back = make(chan struct{})
		}
		back := j.back
		js.mu.Unlock()
		select {
		case <-back:
		case <-ctx.Done():
		}
	}
}

// commitTime is how long a writer that is interrupted while its change is made, or gives up, waits for what comes of it.
const commitTime = 500 * time.Millisecond

// committed returns when a job is done that makes its change, or it takes too long. mu is held, but for that time.
func (js *jobs) committed(j *job) {
	if j.commits {
		js.soon(j)
	}
}

// soon returns when a job is done that has little left to do, or it takes too long. mu is held, but for that time.
func (js *jobs) soon(j *job) {
	js.mu.Unlock()
	defer js.mu.Lock()
	timer := time.NewTimer(commitTime)
	defer timer.Stop()
	select {
	case <-j.done:
	case <-timer.C:
	}
}

// background runs run, which ends when the jobs' context does; nobody waits for it.
func (js *jobs) background(run func() error) {
	js.wg.Go(func() { _ = js.guard(js.ctx, func(context.Context) error { return run() }) })
}

// guard runs run, and turns a panic into an error: the goroutine is this package's own, and nobody above it would catch
// what must not end the whole mount.
func (js *jobs) guard(ctx context.Context, run func(context.Context) error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			js.log.Error("running job", "panic", oneLine(fmt.Sprint(p)), "stack", string(debug.Stack()))
			err = fail(nil, "internal error; the log has more")
		}
	}()
	return run(ctx)
}

// endPanic is deferred where a job's work may panic: what guard catches must not stay a job that runs for ever.
func (t *task) endPanic() { _ = t.end(fail(nil, "internal error; the log has more")) }

// expire gives a job that nobody waits for two seconds. mu is held.
func (js *jobs) expire(key string, j *job) {
	var timer *time.Timer
	timer = time.AfterFunc(grace, func() {
		js.mu.Lock()
		defer js.mu.Unlock()
		if j.leave != timer {
			return // somebody came back while this was waiting for the lock
		}
		js.forget(key, j)
		j.cancel(errAbandoned)
	})
	j.leave = timer
}

// forget makes the next request with this key a new job. mu is held.
func (js *jobs) forget(key string, j *job) {
	if js.byKey[key] == j {
		delete(js.byKey, key)
	}
}

func (js *jobs) close(ctx context.Context) error {
	js.mu.Lock()
	js.closed = true
	js.mu.Unlock()
	js.cancel(errClosed)
	gone := make(chan struct{})
	go func() {
		js.wg.Wait()
		close(gone)
	}()
	select {
	case <-gone:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
