package ops

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/layout"
)

// jobOf returns what jobs/ shows of a job.
func jobOf(t *testing.T, o *Ops, number uint32) jobJSON {
	t.Helper()
	text, changed, ok := o.Job(number, true)
	if !ok || changed.IsZero() {
		t.Fatalf("job %d: there is none, or it has no time", number)
	}
	var j jobJSON
	if err := json.Unmarshal(text, &j); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return j
}

func TestTaskStates(t *testing.T) {
	for _, test := range []struct {
		err   error
		state taskState
		errno syscall.Errno
	}{
		{nil, taskDone, 0},
		{fail(imgsrc.ErrDenied, "boom"), taskFailed, 0},
		{errAbandoned, taskCancelled, 0},
		{fail(syscall.ECANCELED, "cancelled"), taskCancelled, syscall.ECANCELED},
	} {
		synctest.Test(t, func(t *testing.T) {
			o, _ := newOps(t, Options{})
			op := operation{kind: "push", doing: "pushing", to: "there", reference: "there", request: Request{Image: "id", UID: 7, PID: 8}}
			ctx, task := o.begin(t.Context(), op)
			time.Sleep(time.Second)
			if j := jobOf(t, o, 1); j.State != taskQueued || j.Started != nil || j.Duration != 0 || j.Total != nil || *j.User != 7 || j.PID != 8 {
				t.Errorf("waiting: %+v", j)
			}
			task.run()
			time.Sleep(2 * time.Second)
			if j := jobOf(t, o, 1); j.State != taskRunning || j.Started == nil || j.Duration != 2 {
				t.Errorf("running: %+v", j)
			}
			err := task.end(test.err)
			j := jobOf(t, o, 1)
			if j.State != test.state || j.Ended == nil || (j.Error != "") != (test.err != nil) || j.Duration != 2 {
				t.Errorf("ended with %v: %+v", test.err, j)
			}
			if test.errno != 0 && !errors.Is(err, test.errno) {
				t.Errorf("error %v", err)
			}
			if ctx.Err() == nil {
				t.Error("the context of a job that has ended goes on")
			}
			text, _ := o.Events()
			if e := lastEvent(t, text); e.Job != 1 || e.Error != j.Error {
				t.Errorf("event %s", text)
			}
			time.Sleep(time.Hour)
			if again := jobOf(t, o, 1); again.Duration != 2 {
				t.Errorf("an hour later: %+v", again)
			}
			_ = task.end(errors.New("again"))
			if again := jobOf(t, o, 1); again.State != test.state {
				t.Errorf("ended twice: %+v", again)
			}
		})
	}
}

func TestTaskBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, _ := newOps(t, Options{})
		_, task := o.begin(t.Context(), operation{kind: "push"})
		task.run()
		const size = 1000
		layer, config, there, unknown := digest.FromString("l"), digest.FromString("c"), digest.FromString("t"), digest.FromString("u")
		b := task.blob(layer, size)
		task.blob(config, 10)
		if j := jobOf(t, o, 1); j.Total != nil {
			t.Errorf("some blobs are known, and a total: %+v", j)
		}
		task.whole()
		task.blob(there, 500)
		time.Sleep(shownEvery)
		if j := jobOf(t, o, 1); j.Total == nil || *j.Total != 1510 {
			t.Errorf("all blobs are known: %+v", j)
		}
		task.blob(there, 500).skipped()
		for range 2 { // the second time it is read once more
			r := b.reader(io.NopCloser(strings.NewReader(strings.Repeat("x", size))))
			if _, err := io.Copy(io.Discard, r); err != nil {
				t.Fatal(err)
			}
		}
		b.finished()
		b.skipped() // a second layer with the same bytes
		task.sends(77)
		time.Sleep(time.Second - shownEvery)
		j := jobOf(t, o, 1)
		if *j.Total != 1010 || j.Bytes != size || j.Sent != 77 || j.Rate != size {
			t.Errorf("%+v", j)
		}
		for i, state := range []string{"done", "waiting", "skipped"} {
			if j.Blobs[i].State != state {
				t.Errorf("blob %d is %s", i, j.Blobs[i].State)
			}
		}
		task.blob(unknown, -1)
		task.retry(errors.New("https://user:secret@host/ hung up"))
		time.Sleep(shownEvery)
		j = jobOf(t, o, 1)
		if j.Total != nil || j.Blobs[3].Size != nil || j.Retries != 1 || !strings.Contains(j.Error, "hung up") || strings.Contains(j.Error, "secret") {
			t.Errorf("%+v", j)
		}
		_ = task.end(nil)
		if j := jobOf(t, o, 1); j.Error != "" || j.Retries != 1 {
			t.Errorf("%+v", j)
		}
	})
}

// TestJobIsKept has a reader ask for the size and then for the text while the job goes on.
func TestJobIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, _ := newOps(t, Options{})
		_, task := o.begin(t.Context(), operation{kind: "push"})
		text, changed, _ := o.Job(1, true)
		task.run() // a new state shows at once to who asks afresh, and to nobody else
		if again, _, _ := o.Job(1, false); string(again) != string(text) {
			t.Errorf("%s", again)
		}
		running, later, _ := o.Job(1, true)
		if !strings.Contains(string(running), `"running"`) || !later.After(changed) {
			t.Errorf("%s", running)
		}
		b := task.blob(digest.FromString("b"), 1000)
		b.add(500)
		if again, _, _ := o.Job(1, true); string(again) != string(running) {
			t.Errorf("too soon: %s", again)
		}
		time.Sleep(time.Minute)
		if again, _, _ := o.Job(1, false); string(again) != string(running) {
			t.Errorf("without asking for it: %s", again)
		}
		if again, last, _ := o.Job(1, true); string(again) == string(running) || !last.After(later) || len(again) != len(running) {
			t.Errorf("%s", again)
		}
		b.add(400)
		b.finished()
		task.sends(700) // in the moment before its end, of which nobody has asked
		_ = task.end(nil)
		ended, before, _ := o.Job(1, false)
		if !strings.Contains(string(ended), `"state":"done"`) || !strings.Contains(string(ended), `"bytes":900,`) || !strings.Contains(string(ended), `"sent":700,`) {
			t.Errorf("it has not its last figures: %s", ended)
		}
		b.add(100)
		task.sends(1)
		time.Sleep(time.Minute)
		if again, _, _ := o.Job(1, true); string(again) != string(ended) {
			t.Errorf("it is not the last: %s", again)
		}
		if err := o.WriteJob(1, Request{Lines: [][]string{{"stop"}}}); !errors.Is(err, imgsrc.ErrInvalid) {
			t.Error(err)
		}
		if _, after, _ := o.Job(1, true); !after.After(before) {
			t.Error("a write did not move the time")
		}
	})
}

func TestJobsThatStay(t *testing.T) {
	o, _ := newOps(t, Options{})
	_, running := o.begin(t.Context(), operation{kind: "push"})
	_, before := o.Jobs()
	for range keptTasks + 10 {
		_, task := o.begin(t.Context(), operation{kind: "push"})
		_ = task.end(nil)
	}
	numbers, changed := o.Jobs()
	if len(numbers) != keptTasks+1 || numbers[0] != 1 || numbers[1] != 12 || numbers[keptTasks] != keptTasks+11 || !changed.After(before) {
		t.Errorf("%v", numbers)
	}
	if _, _, ok := o.Job(2, true); ok {
		t.Error("the oldest is still there")
	}
	_ = running.end(nil)
	if numbers, _ := o.Jobs(); len(numbers) != keptTasks || numbers[0] != 12 {
		t.Errorf("%v", numbers)
	}
}

func TestNilTask(t *testing.T) {
	var none *task
	none.run()
	none.whole()
	none.sends(1)
	none.retry(errors.New("x"))
	b := none.blob(digest.FromString("x"), 1)
	b.begun()
	b.add(1)
	b.finished()
	b.skipped()
	if r := b.reader(io.NopCloser(strings.NewReader("x"))); r == nil {
		t.Error("no reader")
	}
	if boom := errors.New("boom"); none.end(boom) != boom {
		t.Error("another error")
	}
}

func TestCancelJob(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		img := smallImage(t)
		o, _ := newOps(t, Options{Pushes: 1}, img)
		begun := held(o, nil)
		cancel := Request{Lines: [][]string{{"cancel"}}, UID: 5}
		errs := make(chan error, 2)
		for _, dest := range []string{"localhost:1/runs", "localhost:1/waits"} {
			go func() { errs <- o.Do(t.Context(), pushTo(img, dest)) }()
			synctest.Wait()
		}
		for _, number := range []uint32{2, 1} {
			if err := o.WriteJob(number, cancel); err != nil {
				t.Fatal(err)
			}
			err := <-errs
			if !errors.Is(err, syscall.ECANCELED) || !strings.Contains(err.Error(), "by user 5") {
				t.Errorf("job %d: %v", number, err)
			}
			if j := jobOf(t, o, number); j.State != taskCancelled || j.Error != err.Error() {
				t.Errorf("%+v", j)
			}
			if text, _ := o.LastError(img.desc.ID); text != err.Error() {
				t.Errorf("error says %q", text)
			}
		}
		if begun.Load() != 1 {
			t.Errorf("%d pushes have begun", begun.Load())
		}
		if err := o.WriteJob(1, cancel); err != nil {
			t.Errorf("cancelling what has ended: %v", err)
		}
		if err := o.WriteJob(3, cancel); !errors.Is(err, imgsrc.ErrNotFound) {
			t.Errorf("cancelling what never was: %v", err)
		}
		if err := o.Do(t.Context(), pushTo(img, "localhost:1/runs")); err != nil || begun.Load() != 2 {
			t.Errorf("the slot is not free again, or the result was: %v", err)
		}
	})
}

// TestPushedJob looks at the job of a real push, twice: the second time the layers are there.
func TestPushedJob(t *testing.T) {
	for _, blobs := range []bool{true, false} {
		layers := [][]byte{tarOf("a", noise(30_000)), tarOf("b", noise(50_000))}
		img := newImage(t, imgspecv1.MediaTypeImageManifest, blobs, "x", layers...)
		dir := t.TempDir()
		opens := func(ctx context.Context, place string) (imgsrc.Source, error) {
			return layout.Open(ctx, layout.Options{Dir: strings.TrimPrefix(place, "oci:")})
		}
		o, _ := newOps(t, Options{Open: opens}, img)
		for _, name := range []string{"a", "b"} {
			if err := o.Do(t.Context(), pushTo(img, "oci:"+dir+":"+name)); err != nil {
				t.Fatal(err)
			}
		}
		first, second := jobOf(t, o, 1), jobOf(t, o, 2)
		want := int64(len(img.config))
		for i, l := range layers {
			size := int64(len(l))
			if blobs {
				size = int64(len(gzipped(l)))
			}
			want += size
			if b := first.Blobs[1+i]; b.Size == nil || *b.Size != size || b.Done != size || b.State != "done" {
				t.Errorf("layer %d: %+v", i, b)
			}
		}
		if first.State != taskDone || first.Total == nil || *first.Total != want || first.Bytes != want || first.Sent == 0 || first.Rate == 0 {
			t.Errorf("blobs %v, first: %+v, want %d bytes", blobs, first, want)
		}
		if blobs && (second.Blobs[1].State != "skipped" || second.Bytes != int64(len(img.config)) || second.Bytes != *second.Total) {
			t.Errorf("second: %+v", second)
		}
	}
}

func TestPanicEndsTheJob(t *testing.T) {
	img := smallImage(t)
	o, _ := newOps(t, Options{}, img)
	o.copy = func(context.Context, pushJob) error { panic("oh no") }
	_ = o.Do(t.Context(), pushTo(img, "localhost:1/web"))
	if j := jobOf(t, o, 1); j.State != taskFailed {
		t.Errorf("%+v", j)
	}
}

// TestTurns has more jobs than may work at once, one of which gives up.
func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		img := smallImage(t)
		o, _ := newOps(t, Options{Pushes: 2}, img)
		held(o, nil)
		for i := range 6 {
			if err := o.Do(t.Context(), pushTo(img, fmt.Sprintf("localhost:1/%d", i), "wait=false")); err != nil {
				t.Fatal(err)
			}
		}
		if err := o.WriteJob(4, Request{Lines: [][]string{{"cancel"}}}); err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"running running queued cancelled queued queued", "done done running cancelled running queued", "done done done cancelled done running"} {
			synctest.Wait()
			var states []string
			for n := range 6 {
				states = append(states, string(jobOf(t, o, uint32(n+1)).State))
			}
			if got := strings.Join(states, " "); got != want {
				t.Errorf("%s, want %s", got, want)
			}
			time.Sleep(time.Minute)
		}
		synctest.Wait()
		if o.turns.free != 2 {
			t.Errorf("%d turns are free", o.turns.free)
		}
	})
}

func TestFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, _ := newOps(t, Options{})
		_, push := o.begin(t.Context(), operation{kind: "push"})
		_ = push.end(nil)
		for _, test := range []struct {
			err   error
			state taskState
		}{{nil, taskDone}, {errors.New("boom"), taskFailed}, {context.Canceled, taskCancelled}} {
			arrived, ended := o.Fetch("docker://host/a", digest.FromString("b"), 100, false)
			numbers, _ := o.Jobs()
			number := numbers[len(numbers)-1]
			arrived(40)
			if j := jobOf(t, o, number); j.State != taskRunning || j.Bytes != 40 || *j.Total != 100 || j.User != nil || j.Operation != "fetch" || j.Reference != "docker://host/a" {
				t.Errorf("%+v", j)
			}
			if err := o.WriteJob(number, Request{Lines: [][]string{{"cancel"}}}); !errors.Is(err, imgsrc.ErrUnsupported) {
				t.Errorf("cancelling: %v", err)
			}
			ended(test.err)
			if j := jobOf(t, o, number); j.State != test.state || (j.Error != "") != (test.err != nil) {
				t.Errorf("%+v", j)
			}
		}
		arrived, ended := o.Fetch("docker://host/a", digest.FromString("b"), 100, true)
		arrived(40)
		running := jobOf(t, o, 5)
		ended(nil)
		for _, j := range []jobJSON{running, jobOf(t, o, 5)} {
			if j.Bytes != 40 || j.Total != nil || *j.Blobs[0].Size != 100 || j.Blobs[0].Done != 40 || j.Blobs[0].State != "parts" {
				t.Errorf("parts: %+v", j)
			}
		}
		if text, _ := o.Events(); strings.Contains(string(text), `"fetch`) {
			t.Errorf("reading is an event: %s", text)
		}
		for range keptTasks + 1 {
			_, ended := o.Fetch("docker://host/a", digest.FromString("b"), -1, false)
			ended(nil)
		}
		numbers, _ := o.Jobs()
		if len(numbers) != keptTasks+1 || numbers[0] != 1 {
			t.Errorf("%d jobs stay, from %d on", len(numbers), numbers[0])
		}
		if j := jobOf(t, o, numbers[5]); j.Total != nil {
			t.Errorf("of unknown size: %+v", j)
		}
	})
}

// TestLateJob has a source take its time to change names: then that is a job, which can be cancelled.
func TestLateJob(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		img := smallImage(t)
		src := &tagging{fakeSource: &fakeSource{name: "containers-storage:", images: []imgsrc.Listed{{Image: img}}}}
		o, _ := newOpsOn(t, Options{}, &slowTagger{src})
		tag := func() error {
			return o.Do(t.Context(), Request{Control: "tags", Image: img.desc.ID, UID: 7, Lines: [][]string{{"localhost/a:1"}, {"localhost/b:1"}}})
		}
		src.err = errors.New("at once")
		_ = tag()
		time.Sleep(time.Hour)
		if numbers, _ := o.Jobs(); len(numbers) > 0 {
			t.Errorf("what took no time is job %v", numbers)
		}
		src.err = nil
		errs := make(chan error)
		go func() { errs <- tag() }()
		time.Sleep(2 * time.Second)
		if j := jobOf(t, o, 1); j.Operation != "tag" || j.State != taskRunning || j.Duration != 2 || *j.User != 7 || j.Reference != "localhost/a:1 and 1 more" {
			t.Errorf("%+v", j)
		}
		if err := o.WriteJob(1, Request{Lines: [][]string{{"cancel"}}}); err != nil {
			t.Error(err)
		}
		if err := <-errs; !errors.Is(err, syscall.ECANCELED) {
			t.Error(err)
		}
		if j := jobOf(t, o, 1); j.State != taskCancelled {
			t.Errorf("%+v", j)
		}
		if err := tag(); err != nil {
			t.Error(err)
		}
		text, _ := o.Events()
		if e := lastEvent(t, text); e.Type != "tag" || e.Job != 2 || jobOf(t, o, 2).State != taskDone {
			t.Errorf("%+v", e)
		}
	})
}

// TestLateJobEnds ends something while it becomes a job: it is none then, or one whose text has its number.
func TestLateJobEnds(t *testing.T) {
	o, _ := newOps(t, Options{})
	_, before := o.begin(t.Context(), operation{kind: "push"})
	before.key = "key"
	_ = before.end(nil)
	for range 100 {
		_, task := o.beginLate(t.Context(), Request{Control: "tags"})
		task.key = before.key // which is looked for among the others
		before.mu.Lock()
		added, ended := make(chan bool, 1), make(chan struct{})
		go func() { added <- o.tasks.add(task) }()
		for o.tasks.mu.TryLock() {
			o.tasks.mu.Unlock()
			runtime.Gosched()
		}
		go func() { task.over(nil); close(ended) }()
		for !task.isOver() {
			runtime.Gosched()
		}
		before.mu.Unlock()
		<-ended
		if <-added && jobOf(t, o, task.number).Number != task.number {
			t.Fatalf("job %d says that it is another, or none", task.number)
		}
	}
}

// A slowTagger takes a minute, unless it fails.
type slowTagger struct{ *tagging }

func (s *slowTagger) Tag(ctx context.Context, img imgsrc.Desc, add, remove []string) error {
	if s.err == nil {
		select {
		case <-time.After(time.Minute):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return s.tagging.Tag(ctx, img, add, remove)
}

// TestSameLine queues lines that mean the same while the first of them waits or runs, and after.
func TestSameLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		img := smallImage(t)
		o, _ := newOps(t, Options{Pushes: 1}, img)
		begun := held(o, nil)
		auth := filepath.Join(t.TempDir(), "auth.json")
		if err := os.WriteFile(auth, []byte("{}"), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, words := range [][]string{
			{"localhost:1/a:1", "wait=false"},
			{"localhost:1/a:1", "wait=false"},          // joins the one that runs
			{"docker://localhost:1/a:1", "wait=false"}, // another way to say the same
			{"localhost:1/b:1", "wait=false"},
			{"localhost:1/b:1", "wait=false"}, // joins the one that waits
			{"localhost:1/b:1", "format=oci", "wait=false"},
			{"localhost:1/b:1", "authfile=" + auth, "wait=false"},
			{"localhost:1/b:1", "authfile=" + auth, "wait=false"}, // could be another file
		} {
			if err := o.Do(t.Context(), pushTo(img, words...)); err != nil {
				t.Fatal(err)
			}
		}
		if numbers, _ := o.Jobs(); len(numbers) != 5 {
			t.Errorf("jobs %v", numbers)
		}
		time.Sleep(5*time.Minute + time.Second)
		synctest.Wait()
		if n := begun.Load(); n != 5 {
			t.Errorf("%d have begun", n)
		}
		if err := o.Do(t.Context(), pushTo(img, "localhost:1/a:1", "wait=false")); err != nil {
			t.Fatal(err)
		}
		if numbers, _ := o.Jobs(); len(numbers) != 6 {
			t.Errorf("after the first has ended: jobs %v", numbers)
		}
	})
}

// TestWaitForQueued: who waits for a line that was queued waits for that job, and gets its result; it is not done again. The
// job goes on if that writer leaves.
func TestWaitForQueued(t *testing.T) {
	for _, result := range []error{nil, imgsrc.ErrDenied} {
		synctest.Test(t, func(t *testing.T) {
			img := smallImage(t)
			o, _ := newOps(t, Options{}, img)
			begun := held(o, result)
			if err := o.Do(t.Context(), pushTo(img, "localhost:1/a:1", "wait=false")); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			if err := o.Do(ctx, pushTo(img, "localhost:1/a:1")); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("the writer leaves: %v", err)
			}
			time.Sleep(10 * time.Second)
			if err := o.Do(t.Context(), pushTo(img, "localhost:1/a:1")); !errors.Is(err, result) {
				t.Errorf("%v, want %v", err, result)
			}
			if numbers, _ := o.Jobs(); len(numbers) != 1 || begun.Load() != 1 {
				t.Errorf("jobs %v, %d have begun", numbers, begun.Load())
			}
		})
	}
}

func TestJobsAreBounded(t *testing.T) {
	img := smallImage(t)
	o, _ := newOps(t, Options{}, img)
	held(o, nil)
	o.tasks.order = make([]*task, maxTasks)
	for i := range o.tasks.order {
		o.tasks.order[i] = &task{o: o}
	}
	if err := o.Do(t.Context(), pushTo(img, "localhost:1/web", "wait=false")); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("one more: %v", err)
	}
	if text, _ := o.LastError(img.Desc().ID); !strings.Contains(text, "10000 jobs") {
		t.Errorf("error %q", text)
	}
	o.tasks.order = o.tasks.order[1:]
	if err := o.Do(t.Context(), pushTo(img, "localhost:1/web", "wait=false")); err != nil {
		t.Error(err)
	}
}
