package ops

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/imgfs/imgfs/imgsrc"
)

// held is a push that takes a minute, and says how often it has begun.
func held(o *Ops, result error) (begun *atomic.Int64) {
	begun = new(atomic.Int64)
	o.copy = func(ctx context.Context, _ pushJob) error {
		begun.Add(1)
		select {
		case <-time.After(time.Minute):
			return result
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return begun
}

func TestRejoin(t *testing.T) {
	boom := fail(imgsrc.ErrDenied, "boom")
	for _, test := range []struct {
		name  string
		leave time.Duration // when the first writer leaves
		back  time.Duration // how long it is away
		begun int64         // in the end
		took  time.Duration // by the second Do
	}{
		{"at once", 10 * time.Second, 0, 1, 50 * time.Second},
		{"within the grace", 10 * time.Second, 1900 * time.Millisecond, 1, 48100 * time.Millisecond},
		{"too late", 10 * time.Second, 2100 * time.Millisecond, 2, time.Minute},
		{"finished in between", 59 * time.Second, 1500 * time.Millisecond, 1, 0},
		{"finished, and too late", 59 * time.Second, 3 * time.Second, 2, time.Minute},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				img := smallImage(t)
				o, _ := newOps(t, Options{}, img)
				begun := held(o, boom)
				ctx, cancel := context.WithTimeout(t.Context(), test.leave)
				defer cancel()
				start := time.Now()
				if err := o.Do(ctx, pushTo(img, "localhost:1/web")); !errors.Is(err, context.DeadlineExceeded) {
					t.Fatalf("first: %v", err)
				}
				if took := time.Since(start); took != test.leave {
					t.Errorf("first Do returned after %s", took)
				}
				time.Sleep(test.back)
				start = time.Now()
				if err := o.Do(t.Context(), pushTo(img, "localhost:1/web")); !errors.Is(err, imgsrc.ErrDenied) {
					t.Errorf("second: %v", err)
				}
				if took := time.Since(start); took != test.took || begun.Load() != test.begun {
					t.Errorf("second Do took %s, the push began %d times", took, begun.Load())
				}
				// The result has been delivered: the next is a new push.
				if err := o.Do(t.Context(), pushTo(img, "localhost:1/web")); !errors.Is(err, imgsrc.ErrDenied) || begun.Load() != test.begun+1 {
					t.Errorf("third: %v, the push began %d times", err, begun.Load())
				}
			})
		})
	}
}

func TestRejoinAgainAndAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		img := smallImage(t)
		o, _ := newOps(t, Options{}, img)
		begun := held(o, nil)
		for range 25 { // 1 s of waiting, 1 s away: as long as it takes
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			if err := o.Do(ctx, pushTo(img, "localhost:1/web")); err == nil {
				t.Fatal("done too early")
			}
			cancel()
			time.Sleep(time.Second)
		}
		if err := o.Do(t.Context(), pushTo(img, "localhost:1/web")); err != nil || begun.Load() != 1 {
			t.Errorf("%v, the push began %d times", err, begun.Load())
		}
	})
}

func TestAbandoned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		img := smallImage(t)
		o, _ := newOps(t, Options{}, img)
		held(o, nil)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_ = o.Do(ctx, pushTo(img, "localhost:1/web"))
		time.Sleep(grace - time.Millisecond)
		synctest.Wait()
		if text, _ := o.Events(); len(text) > 0 {
			t.Errorf("too early: %s", text)
		}
		time.Sleep(2 * time.Millisecond)
		synctest.Wait()
		text, _ := o.Events()
		if e := lastEvent(t, text); e.Type != "push-error" || !strings.Contains(e.Error, "its writer left") {
			t.Errorf("event %s", text)
		}
	})
}

func TestJoin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		img := smallImage(t)
		o, _ := newOps(t, Options{}, img)
		begun := held(o, nil)
		errs := make(chan error, 3)
		for range 3 {
			go func() { errs <- o.Do(t.Context(), pushTo(img, "localhost:1/web")) }()
		}
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second) // one of four leaves
		defer cancel()
		if err := o.Do(ctx, pushTo(img, "localhost:1/web")); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		for range 3 {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
		if begun.Load() != 1 {
			t.Errorf("the push began %d times", begun.Load())
		}
		keyless := pushTo(img, "localhost:1/web")
		keyless.Key = ""
		for range 3 {
			go func() { errs <- o.Do(t.Context(), keyless) }()
		}
		synctest.Wait()
		if begun.Load() != 4 {
			t.Errorf("without a key the push began %d times", begun.Load()-1)
		}
		for range 3 {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
	})
}

func TestSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		img := smallImage(t)
		o, _ := newOps(t, Options{}, img)
		begun := held(o, nil)
		errs := make(chan error, 10)
		for i := range 10 {
			go func() { errs <- o.Do(t.Context(), pushTo(img, fmt.Sprintf("localhost:1/web:%d", i))) }()
		}
		synctest.Wait()
		if begun.Load() != 4 {
			t.Errorf("%d pushes run", begun.Load())
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second) // one that waits can be cancelled
		defer cancel()
		_ = o.Do(ctx, pushTo(img, "localhost:1/waits"))
		time.Sleep(grace + time.Millisecond)
		synctest.Wait()
		if text, _ := o.Events(); !strings.Contains(lastEvent(t, text).Reference, "waits") {
			t.Errorf("events %s", text)
		}
		for range 10 {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
		if begun.Load() != 10 {
			t.Errorf("%d pushes ran", begun.Load())
		}
	})
}

func TestNoWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		img := smallImage(t)
		o, _ := newOps(t, Options{}, img)
		begun := held(o, fail(imgsrc.ErrDenied, "boom"))
		r := pushTo(img, "localhost:1/web:1", "wait=false")
		r.Lines = append(r.Lines, []string{"localhost:1/web:2", "wait=false"})
		start := time.Now()
		if err := o.Do(t.Context(), r); err != nil || time.Since(start) > 0 {
			t.Fatalf("%v after %s", err, time.Since(start))
		}
		time.Sleep(61 * time.Second)
		synctest.Wait()
		if text, _ := o.LastError(img.desc.ID); !strings.Contains(text, "boom") || begun.Load() != 2 {
			t.Errorf("%d pushes, last error %q", begun.Load(), text)
		}
		if text, _ := o.Events(); strings.Count(string(text), "push-error") != 2 {
			t.Errorf("events %s", text)
		}
		r.Lines[1][1] = "wait=maybe"
		if err := o.Do(t.Context(), r); !errors.Is(err, imgsrc.ErrInvalid) || begun.Load() != 2 {
			t.Errorf("%v, %d pushes", err, begun.Load())
		}
	})
}

// TestFirstFailureStops has the second of three lines fail.
func TestFirstFailureStops(t *testing.T) {
	img := smallImage(t)
	o, _ := newOps(t, Options{}, img)
	var ran []string
	o.copy = func(_ context.Context, p pushJob) error {
		ran = append(ran, p.line.dest.String())
		if len(ran) == 2 {
			return fail(nil, "boom")
		}
		return nil
	}
	r := pushTo(img, "localhost:1/a")
	r.Lines = [][]string{{"localhost:1/a"}, {"localhost:1/b"}, {"localhost:1/c"}}
	if err := o.Do(t.Context(), r); err == nil || len(ran) != 2 {
		t.Errorf("%v, ran %v", err, ran)
	}
}

func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		img := smallImage(t)
		o, _ := newOps(t, Options{}, img)
		held(o, nil)
		if err := o.Do(t.Context(), pushTo(img, "localhost:1/background", "wait=false")); err != nil {
			t.Fatal(err)
		}
		errs := make(chan error)
		go func() { errs <- o.Do(t.Context(), pushTo(img, "localhost:1/web")) }()
		synctest.Wait()
		if err := o.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if err := <-errs; !errors.Is(err, syscall.ECANCELED) {
			t.Error(err)
		}
		if text, _ := o.Events(); strings.Count(string(text), "going away") != 2 {
			t.Errorf("events %s", text)
		}
		if err := o.Do(t.Context(), pushTo(img, "localhost:1/web")); !errors.Is(err, syscall.ECANCELED) {
			t.Errorf("after Close: %v", err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		img := smallImage(t)
		o, _ := newOps(t, Options{}, img)
		o.copy = func(context.Context, pushJob) error { time.Sleep(time.Hour); return nil } // deaf
		go func() { _ = o.Do(t.Context(), pushTo(img, "localhost:1/web")) }()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := o.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Close beside a deaf push: %v", err)
		}
	})
}

func TestPanic(t *testing.T) {
	img := smallImage(t)
	o, log := newOps(t, Options{}, img)
	o.copy = func(context.Context, pushJob) error { panic("oh no") }
	if err := o.Do(t.Context(), pushTo(img, "localhost:1/web")); err == nil || !strings.Contains(log.String(), "oh no") {
		t.Errorf("%v, log %s", err, log)
	}
	if o.turns.free != o.opt.Pushes {
		t.Error("the turn is still taken")
	}
}

// TestCommit: what a job would change after its writer was told that it was interrupted is not changed, unless that comes back.
func TestCommit(t *testing.T) {
	for name, test := range map[string]struct {
		leave, back time.Duration // of the writer; back 0: never
		commits     bool
		want        error
	}{
		"stays":                     {time.Hour, 0, true, nil},
		"leaves":                    {time.Second, 0, false, context.DeadlineExceeded},
		"comes back":                {time.Second, 2500 * time.Millisecond, true, nil},
		"comes back too late":       {time.Second, time.Minute, true, nil}, // to a new one
		"leaves while it is change": {2100 * time.Millisecond, 0, true, nil},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				js := newJobs(slog.New(slog.DiscardHandler))
				committed := 0
				run := func(ctx context.Context) error {
					time.Sleep(2 * time.Second) // for a lock
					if err := imgsrc.Commit(ctx); err != nil {
						return err
					}
					committed++
					time.Sleep(200 * time.Millisecond)
					return nil
				}
				ctx, cancel := context.WithTimeout(t.Context(), test.leave)
				defer cancel()
				err := js.do(ctx, "key", run)
				if test.back > 0 {
					time.Sleep(test.back - test.leave)
					err = js.do(t.Context(), "key", run)
				}
				time.Sleep(10 * time.Second)
				if !errors.Is(err, test.want) || (committed == 1) != test.commits {
					t.Errorf("%v, want %v; %d commits", err, test.want, committed)
				}
			})
		})
	}
}

// TestGivesUp: who waits no longer, and will not come again, gets what is recorded of the work, which has failed then.
func TestGivesUp(t *testing.T) {
	late := fail(syscall.ETIMEDOUT, "given up after a second")
	for name, takes := range map[string]time.Duration{"that ends with it": 0, "that hangs": time.Hour} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				js := newJobs(slog.New(slog.DiscardHandler))
				ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, late)
				defer cancel()
				began := time.Now()
				err := js.do(ctx, "", func(ctx context.Context) error {
					<-ctx.Done()
					time.Sleep(takes)
					return fmt.Errorf("waiting for a lock: %w", context.Cause(ctx))
				})
				if took := time.Since(began); took > time.Second+commitTime {
					t.Errorf("after %s", took)
				}
				want := "waiting for a lock: given up after a second"
				if takes > 0 {
					want = context.DeadlineExceeded.Error()
				}
				if err == nil || err.Error() != want {
					t.Errorf("%v, want %s", err, want)
				}
				time.Sleep(takes)
			})
		})
	}
}

// TestAfterCancel: a line that is written once more when its job was cancelled is another job, also as long as the first has
// not ended.
func TestAfterCancel(t *testing.T) {
	for _, words := range [][]string{{"localhost:1/a:1", "wait=false"}, {"localhost:1/a:1"}} {
		synctest.Test(t, func(t *testing.T) {
			img := smallImage(t)
			o, _ := newOps(t, Options{}, img)
			var begun atomic.Int64
			o.copy = func(ctx context.Context, _ pushJob) error {
				if begun.Add(1) > 1 {
					return nil
				}
				<-ctx.Done()
				time.Sleep(time.Minute) // as unpacking a layer, which is not broken off in the middle of a file
				return context.Cause(ctx)
			}
			if err := o.Do(t.Context(), pushTo(img, "localhost:1/a:1", "wait=false")); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if err := o.WriteJob(1, Request{Lines: [][]string{{"cancel"}}}); err != nil {
				t.Fatal(err)
			}
			if err := o.Do(t.Context(), pushTo(img, words...)); err != nil {
				t.Errorf("%q after the first was cancelled: %v", words, err)
			}
			time.Sleep(2 * time.Minute)
			for i, want := range []taskState{taskCancelled, taskDone} {
				if got := o.tasks.get(uint32(i + 1)); got == nil || got.state != want {
					t.Errorf("%q: job %d is %v, want %s", words, i+1, got, want)
				}
			}
		})
	}
}
