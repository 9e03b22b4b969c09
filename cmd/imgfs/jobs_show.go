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

	"github.com/vbauerster/mpb/v8"
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
		fmt.Fprintf(w, "%s%d\t%s\t%s\t%.12s\t%s\t%s\t%s\t%s\n", point, j.Number, j.Operation, j.State, dash(j.Image), dash(printable(j.Reference)),
			dash(j.amount()), dash(rate(j.Rate)), j.elapsed())
	}
}

func (p *jobTable) close() {}

// jobBars shows a bar for each running job, and leaves a line above them for each that has ended.
type jobBars struct {
	mounts bool
	pool   *mpb.Progress
	bars   map[jobPlace]*jobBar
}

type jobPlace struct {
	mountpoint string
	number     uint32
}

type jobBar struct {
	*mpb.Bar
	text chan string // holds what stands behind the bar
}

func newJobBars(w io.Writer, mounts bool) *jobBars {
	return &jobBars{mounts: mounts, pool: mpb.New(mpb.WithOutput(w), mpb.WithWidth(30), mpb.WithAutoRefresh()), bars: map[jobPlace]*jobBar{}}
}

func (p *jobBars) print(jobs []job) {
	for i := range jobs {
		j := &jobs[i]
		place := jobPlace{j.mountpoint, j.Number}
		bar := p.bars[place]
		if j.over() {
			if bar != nil {
				bar.Abort(true)
				bar.Wait()
				delete(p.bars, place)
			}
			_, _ = fmt.Fprintln(p.pool, p.outcome(j))
			continue
		}
		if bar == nil {
			bar = p.add(p.title(j))
			p.bars[place] = bar
		}
		bar.show(j)
	}
}

func (p *jobBars) add(title string) *jobBar {
	bar := &jobBar{text: make(chan string, 1)}
	last := ""
	bar.Bar = p.pool.New(0, mpb.BarStyle(), mpb.PrependDecorators(decor.Name(title+" ", decor.WCSyncSpaceR)),
		mpb.AppendDecorators(decor.Any(func(decor.Statistics) string {
			select {
			case last = <-bar.text:
			default:
			}
			return " " + last
		})))
	return bar
}

// show moves the bar; one whose end is not known stays empty.
func (b *jobBar) show(j *job) {
	if j.Total != nil {
		b.SetTotal(max(*j.Total, 1)+1, false) // which it never reaches: what ends a job is its state
		b.SetCurrent(j.Bytes)
	} else {
		b.SetCurrent(0) // it was known of another registry, which did not have it after all
	}
	select {
	case <-b.text:
	default:
	}
	b.text <- j.progress()
}

// progress stands behind the bar.
func (j *job) progress() string {
	if j.State != "running" {
		return j.State
	}
	text := j.amount()
	for _, more := range []string{rate(j.Rate), j.left()} {
		if more != "" {
			text += "  " + more
		}
	}
	return text
}

// left is how long the job will go on at the rate that it had so far; empty if that cannot be known.
func (j *job) left() string {
	if j.Total == nil || j.Rate <= 0 || *j.Total <= j.Bytes {
		return ""
	}
	seconds := (*j.Total - j.Bytes) / j.Rate
	if seconds > maxLeft {
		return ""
	}
	return (time.Duration(seconds+1) * time.Second).String() + " left"
}

// maxLeft is the longest time, in seconds, that is worth foretelling.
const maxLeft = 100 * 3600

func (p *jobBars) title(j *job) string {
	title := fmt.Sprintf("%d %s %.12s", j.Number, j.Operation, j.Image)
	if j.Reference != "" {
		title = fmt.Sprintf("%d %s %s", j.Number, j.Operation, printable(j.Reference))
	}
	return p.point(j) + title
}

func (p *jobBars) point(j *job) string {
	if p.mounts {
		return printable(j.mountpoint) + " "
	}
	return ""
}

func (p *jobBars) close() {
	for _, bar := range p.bars {
		bar.Abort(false)
	}
	p.pool.Wait()
}

// outcome is what came of a job.
func (p *jobBars) outcome(j *job) string {
	if j.Error != "" { // which says what the job was
		return fmt.Sprintf("%s%d %s: %s", p.point(j), j.Number, j.State, printable(j.Error))
	}
	return fmt.Sprintf("%s: %s, %s in %s", p.title(j), j.State, j.amount(), j.elapsed())
}

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
