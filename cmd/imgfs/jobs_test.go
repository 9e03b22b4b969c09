package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgfs/imgfs/mount"
)

// fakeJobs is a directory that looks like a mount to who reads its jobs.
type fakeJobs struct {
	t   *testing.T
	dir string
}

func newFakeJobs(t *testing.T) *fakeJobs {
	f := &fakeJobs{t, t.TempDir()}
	f.make()
	return f
}

func (f *fakeJobs) make() {
	f.t.Helper()
	if err := os.Mkdir(filepath.Join(f.dir, "jobs"), 0o755); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fakeJobs) remove() {
	f.t.Helper()
	if err := os.RemoveAll(filepath.Join(f.dir, "jobs")); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fakeJobs) set(number int, format string, args ...any) {
	f.t.Helper()
	text := fmt.Sprintf(`{"number":%d,"operation":"push",`+format+"}\n", append([]any{number}, args...)...)
	if err := os.WriteFile(filepath.Join(f.dir, "jobs", fmt.Sprint(number)), []byte(text), 0o644); err != nil {
		f.t.Fatal(err)
	}
}

func states(jobs []job) string {
	var all []string
	for _, j := range jobs {
		all = append(all, fmt.Sprint(j.Number, " ", j.State))
	}
	return strings.Join(all, ", ")
}

func TestReadJobs(t *testing.T) {
	for _, all := range []bool{false, true} {
		f := newFakeJobs(t)
		r := &jobReader{only: f.dir, all: all}
		expect := func(want string) {
			t.Helper()
			jobs, err := r.read(t.Context())
			if got := states(jobs); err != nil || got != want {
				t.Errorf("%q, %v; want %q", got, err, want)
			}
		}
		expect("")
		f.set(2, `"state":"done"`)
		f.set(9, `"state":"running","bytes":1`)
		f.set(10, `"state":"queued"`)
		r.mounts = nil // as if this were the first look
		if all {
			expect("2 done, 9 running, 10 queued")
		} else {
			expect("9 running, 10 queued")
		}
		expect("")
		f.set(9, `"state":"running","bytes":1,"duration":5`) // time alone is no change
		expect("")
		f.set(9, `"state":"running","bytes":2`)
		expect("9 running")
		f.set(9, `"state":"running","bytes":2,"total":5`)
		expect("9 running")
		f.set(9, `"state":"done","bytes":5,"total":5`)
		f.set(10, `"state":"cancelled"`)
		f.set(11, `"state":"failed"`) // came and went between two looks
		expect("9 done, 10 cancelled, 11 failed")
		expect("")

		// Another mount has come in the place of this one.
		f.remove()
		f.make()
		f.set(2, `"state":"failed"`)
		expect("2 failed")

		f.set(3, `nothing`)
		if _, err := r.read(t.Context()); err == nil || !strings.Contains(err.Error(), "jobs/3") {
			t.Errorf("a file that is no JSON: %v", err)
		}
		f.remove()
		if _, err := r.read(t.Context()); !errors.Is(err, mount.ErrNotMount) || exitCode(err) != exitMountpoint || !strings.Contains(err.Error(), "gone") {
			t.Errorf("no mount: %v", err)
		}
	}
}

// A mount that has answered is not said to be silent because another one was waited for until the time was up.
func TestJobsBesideSilence(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 50 {
		m := mountJobs{answer: make(chan jobsAnswer, 1)}
		if _, err := m.changes(ctx, false); !errors.Is(err, context.Canceled) {
			t.Fatalf("%v from one that is silent", err)
		}
		m.answer <- jobsAnswer{jobs: []job{{Number: 1, State: "running", text: []byte("{}")}}}
		if jobs, err := m.changes(ctx, false); err != nil || len(jobs) != 1 {
			t.Fatalf("%v, %v", jobs, err)
		}
	}
}

func TestPrintJobs(t *testing.T) {
	f := newFakeJobs(t)
	f.set(1, `"state":"running","image":"0123456789abcdef","reference":"docker://a/b:1","bytes":1048576,"total":3145728,"rate":2048,"duration":61.4,"new":[1]`)
	f.set(2, `"state":"failed","reference":"dir:/a\u001b[31m","bytes":5,"duration":1.26,"error":"boom\u0007"`)
	jobs, err := (&jobReader{only: f.dir, all: true}).read(t.Context())
	if err != nil {
		t.Fatal(err)
	}

	var table bytes.Buffer
	(&jobTable{w: &table}).print(jobs)
	want := `JOB  OPERATION  STATE    IMAGE         REFERENCE       BYTES              RATE       TIME
1    push       running  0123456789ab  docker://a/b:1  1.0 MiB / 3.0 MiB  2.0 KiB/s  1m1s
2    push       failed   -             dir:/a?[31m     5 B                -          1.3s
`
	if table.String() != want {
		t.Errorf("%s\nwant\n%s", &table, want)
	}
	var none bytes.Buffer
	(&jobTable{w: &none}).print(nil)
	if none.Len() > 0 {
		t.Errorf("of nothing: %q", &none)
	}

	var lines bytes.Buffer
	(&jobLines{w: &lines}).print(jobs)
	for i, line := range strings.SplitAfter(strings.TrimSuffix(lines.String(), "\n"), "\n") {
		var m map[string]any
		if err := json.Unmarshal([]byte(line), &m); err != nil || m["mountpoint"] != f.dir || m["number"] != float64(i+1) {
			t.Errorf("%q: %v", line, err)
		}
		if i == 0 && m["new"] == nil {
			t.Errorf("%q: a field that this command does not know is lost", line)
		}
	}

	var bars bytes.Buffer // no terminal: only what is left of them is written
	b := newJobBars(&bars, false)
	b.print(jobs[:1])
	jobs[0].State = "done"
	jobs[0].Bytes = *jobs[0].Total
	b.print(jobs)
	b.close()
	if out := bars.String(); !strings.Contains(out, "1 push docker://a/b:1: done, 3.0 MiB in 1m1s\n") || !strings.Contains(out, "2 failed: boom?\n") {
		t.Errorf("%q", out)
	}
}
