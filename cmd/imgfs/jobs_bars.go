package main

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
)

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
	text chan jobText // holds what stands beside the bar
}

// A jobText is what stands beside a bar.
type jobText struct{ point, head, reference, bytes, amount, rate, left string }

func newJobBars(w io.Writer, mounts bool) *jobBars {
	out := []mpb.ContainerOption{mpb.WithOutput(w)}
	if f, ok := w.(*os.File); ok && isTerminal(w) {
		out = []mpb.ContainerOption{mpb.WithConsoleWriter(&terminal{f: f})}
	}
	return &jobBars{mounts: mounts, pool: mpb.New(append(out, mpb.WithWidth(widestBar), mpb.WithAutoRefresh())...), bars: map[jobPlace]*jobBar{}}
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
			bar = p.add()
			p.bars[place] = bar
		}
		bar.show(j, p.point(j))
	}
}

func (p *jobBars) add() *jobBar {
	bar := &jobBar{text: make(chan jobText, 1)}
	var last jobText
	title := decor.Any(func(s decor.Statistics) string {
		select {
		case last = <-bar.text:
		default:
		}
		return last.title(titleWidth(s.AvailableWidth))
	}, decor.WCSyncWidthR)
	progress := decor.Any(func(s decor.Statistics) string { return last.progress(s.AvailableWidth) })
	bar.Bar = p.pool.New(0, mpb.BarStyle(), mpb.PrependDecorators(title), mpb.AppendDecorators(progress))
	return bar
}

// show moves the bar; one whose end is not known stays empty.
func (b *jobBar) show(j *job, point string) {
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
	b.text <- j.beside(point)
}

// beside is what stands beside the job's bar.
func (j *job) beside(point string) jobText {
	t := jobText{point: point, head: fmt.Sprintf("%d %s", j.Number, j.Operation), reference: printable(j.Reference)}
	if t.reference == "" {
		t.reference = fmt.Sprintf("%.12s", j.Image)
	}
	if doing := j.doing(); doing != "running" {
		t.bytes, t.amount = doing, doing
		return t
	}
	t.bytes, t.amount, t.rate, t.left = amount(j.Bytes), j.amount(), rate(j.Rate), j.left()
	return t
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
