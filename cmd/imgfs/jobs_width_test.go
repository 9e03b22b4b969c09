package main

import (
	"strings"
	"testing"
)

// A line of the bars in terminals of any width: what fits, the most important first. ### is the bar.
func TestJobWidths(t *testing.T) {
	total := int64(160_000_000)
	j := &job{Number: 12, Operation: "push", State: "running", Reference: "docker://registry.example.com:5000/team/project/web:1.2.3", Bytes: 26_000_000, Total: &total, Rate: 10_000_000}
	for _, test := range []struct {
		columns int
		point   string
		want    string
	}{
		{160, "", "12 push docker://registry.example.com:5000/team/project/web:1.2.3 ### 24.8 MiB / 152.6 MiB  9.5 MiB/s  14s left"},
		{120, "", "12 push …istry.example.com:5000/team/project/web:1.2.3 ### 24.8 MiB / 152.6 MiB  9.5 MiB/s  14s left"},
		{120, "/home/user/images ", "/home/user/images 12 push …5000/team/project/web:1.2.3 ### 24.8 MiB / 152.6 MiB  9.5 MiB/s  14s left"},
		{80, "", "12 push …am/project/web:1.2.3 ### 24.8 MiB / 152.6 MiB  9.5 MiB/s"},
		{80, "/srv/a/rather/long/mountpoint ", "…untpoint 12 push …/web:1.2.3 ### 24.8 MiB / 152.6 MiB  9.5 MiB/s"},
		{80, "/mnt ", "/mnt 12 push …oject/web:1.2.3 ### 24.8 MiB / 152.6 MiB  9.5 MiB/s"},
		{60, "", "12 push …t/web:1.2.3 ### 24.8 MiB / 152.6 MiB  9.5 MiB/s"},
		{50, "", "12 push …b:1.2.3 24.8 MiB / 152.6 MiB  9.5 MiB/s"},
		{40, "", "12 push ….2.3 ### 24.8 MiB / 152.6 MiB"},
		{30, "", "12 push 24.8 MiB / 152.6 MiB"},
		{20, "", "12 pu… 24.8 MiB"},
		{10, "", "12… ###"},
	} {
		text := j.beside(test.point)
		title := text.title(titleWidth(test.columns))
		left := test.columns - columnsOf(title)
		progress := text.progress(left)
		line := title + progress
		if bar := left - columnsOf(progress); bar > 0 {
			line = title + " ### " + progress
			if bar < leastBar+2 {
				t.Errorf("%d columns: %d for the bar", test.columns, bar)
			}
		}
		if got := strings.Join(strings.Fields(line), " "); got != strings.Join(strings.Fields(test.want), " ") {
			t.Errorf("%d columns:\n%s\nwant\n%s", test.columns, got, test.want)
		}
	}
	for columns := range 200 {
		if is, next := titleWidth(columns), titleWidth(columns+1); next < is || is > columns {
			t.Errorf("%d columns: a title of %d, then %d", columns, is, next)
		}
	}
}

func TestJobProgress(t *testing.T) {
	for _, test := range []struct{ fields, want string }{
		{`"state":"queued","bytes":0,"total":null`, "queued"},
		{`"state":"running","bytes":0,"total":null`, "0 B"},
		{`"state":"running","bytes":1048576,"total":null,"rate":2048`, "1.0 MiB  2.0 KiB/s"},
		{`"state":"running","bytes":1048576,"total":3145728,"rate":1048576`, "1.0 MiB / 3.0 MiB  1.0 MiB/s  3s left"},
		{`"state":"running","bytes":1048576,"total":3145728,"rate":20000`, "1.0 MiB / 3.0 MiB  19.5 KiB/s  1m45s left"},
		{`"state":"running","bytes":1,"total":3145728,"rate":1`, "1 B / 3.0 MiB  1 B/s"},
		{`"state":"running","bytes":0,"total":3145728,"rate":0`, "0 B / 3.0 MiB"},
		{`"state":"running","bytes":1048576,"total":1048576,"rate":1048576`, "1.0 MiB  1.0 MiB/s"},
	} {
		f := newFakeJobs(t)
		f.set(1, "%s", test.fields)
		jobs, err := (&jobReader{only: f.dir, all: true}).read(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		beside := jobs[0].beside("")
		if got := beside.progress(100); got != test.want {
			t.Errorf("%s: %q, want %q", test.fields, got, test.want)
		}
	}
}
