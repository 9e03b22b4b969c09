package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/sys/unix"
)

// A jobPrinter shows jobs as they change. What it cannot write is nobody's to read any more.
type jobPrinter interface {
	print(jobs []job)
	close()
}

// isTerminal says whether w is a terminal.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// jobLines prints JSON, an object a line: the job's own file, and the mountpoint before it.
type jobLines struct{ w io.Writer }

func (p *jobLines) print(jobs []job) {
	for _, j := range jobs {
		point, err := json.Marshal(j.mountpoint)
		if err != nil {
			continue
		}
		// In one write: whoever reads a pipe gets whole lines.
		_, _ = fmt.Fprintf(p.w, "{\"mountpoint\":%s,%s\n", point, strings.TrimRight(strings.TrimPrefix(string(j.text), "{"), " \n"))
	}
}

func (p *jobLines) close() {}

// jobTable prints a table, once.
type jobTable struct {
	w      io.Writer
	mounts bool // say which job is of which mount
}

func (p *jobTable) print(jobs []job) {
	if len(jobs) == 0 {
		return
	}
	w := tabwriter.NewWriter(p.w, 0, 0, 2, ' ', 0)
	defer w.Flush()
	head, point := "", ""
	if p.mounts {
		head = "MOUNTPOINT\t"
	}
	fmt.Fprintln(w, head+"JOB\tOPERATION\tSTATE\tIMAGE\tREFERENCE\tBYTES\tRATE\tTIME")
	for i := range jobs {
		j := &jobs[i]
		if p.mounts {
			point = printable(j.mountpoint) + "\t"
		}
		fmt.Fprintf(w, "%s%d\t%s\t%s\t%.12s\t%s\t%s\t%s\t%s\n", point, j.Number, j.Operation, j.doing(), dash(j.Image), dash(printable(j.Reference)),
			dash(j.amount()), dash(rate(j.Rate)), j.elapsed())
	}
}

func (p *jobTable) close() {}

func (j *job) elapsed() string {
	d := time.Duration(j.Duration * float64(time.Second))
	if d < 10*time.Second {
		return d.Round(100 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}

// amount is how much has been read, of how much where that is known.
func (j *job) amount() string {
	if j.State == "queued" {
		return ""
	}
	if j.Total == nil || *j.Total == j.Bytes {
		return amount(j.Bytes)
	}
	return amount(j.Bytes) + " / " + amount(*j.Total)
}

func rate(n int64) string {
	if n == 0 {
		return ""
	}
	return amount(n) + "/s"
}

// amount is a number of bytes for people.
func amount(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("% .1f", decor.SizeB1024(n))
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// printable is s without what a terminal would obey.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}
