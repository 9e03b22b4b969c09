package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/imgfs/imgfs/mount"
)

// A jobReader reads what has changed in the jobs of one mount, or of all, since it last looked. It reads files of the
// mounts and nothing else.
type jobReader struct {
	only   string // the mountpoint; empty: all of this user's
	all    bool   // what had ended before the first look, too
	mounts map[string]*mountJobs
}

// mountJobs are the jobs of one mount as they were last seen.
type mountJobs struct {
	seen   map[uint32]job
	answer chan jobsAnswer // what is still being waited for; nil if nothing is
}

type jobsAnswer struct {
	jobs []job
	err  error
}

// read returns the jobs that are new or have changed. The first time those that have ended are left out, unless all is
// set. Its error is about mounts whose jobs could not be read; those of the others are returned.
func (r *jobReader) read(ctx context.Context) ([]job, error) {
	points, err := r.points()
	if err != nil {
		return nil, err
	}
	if r.mounts == nil {
		r.mounts = map[string]*mountJobs{}
	}
	for point := range r.mounts {
		if !slices.Contains(points, point) {
			delete(r.mounts, point)
		}
	}
	for _, point := range points { // all of them at once
		m := r.mounts[point]
		if m == nil {
			m = &mountJobs{}
			r.mounts[point] = m
		}
		m.ask(point)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, answerTime, errors.New("the mount does not answer"))
	defer cancel()
	var changed []job
	var errs []error
	for _, point := range points {
		jobs, err := r.mounts[point].changes(ctx, r.all)
		changed = append(changed, jobs...)
		if r.only == "" && (errors.Is(err, mount.ErrNotMount) || errors.Is(err, mount.ErrDead)) {
			continue // it has ended since it was listed
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("reading the jobs of %s: %w", point, err))
		}
	}
	return changed, errors.Join(errs...)
}

func (r *jobReader) points() ([]string, error) {
	if r.only != "" {
		return []string{r.only}, nil
	}
	mounts, err := mount.List()
	if err != nil {
		return nil, fmt.Errorf("listing mounts: %w", err)
	}
	var points []string
	for _, m := range mounts {
		if !m.Dead {
			points = append(points, m.Mountpoint)
		}
	}
	return points, nil
}

// ask has a mount's jobs read. Whoever reads from a process that hangs may never come back, and is asked no second time.
func (m *mountJobs) ask(point string) {
	if m.answer != nil {
		return
	}
	ended := map[uint32]bool{}
	for number, j := range m.seen {
		ended[number] = j.over()
	}
	answer := make(chan jobsAnswer, 1)
	m.answer = answer
	go func() {
		jobs, err := readJobs(point, ended)
		answer <- jobsAnswer{jobs, err}
	}()
}

// changes waits for what was asked for, and returns what of it is new.
func (m *mountJobs) changes(ctx context.Context, all bool) ([]job, error) {
	var a jobsAnswer
	select {
	case a = <-m.answer:
	case <-ctx.Done():
		select {
		case a = <-m.answer: // while another mount was waited for
		default:
			return nil, context.Cause(ctx)
		}
	}
	m.answer = nil
	if a.err != nil {
		return nil, a.err
	}
	first := m.seen == nil
	if first {
		m.seen = map[uint32]job{}
	}
	var changed []job
	there := map[uint32]bool{}
	for _, j := range a.jobs {
		there[j.Number] = true
		if j.text == nil {
			continue // it had ended when it was last seen
		}
		was, known := m.seen[j.Number]
		m.seen[j.Number] = j
		if known && !j.changed(&was) || first && j.over() && !all {
			continue
		}
		changed = append(changed, j)
	}
	for number := range m.seen {
		if !there[number] {
			delete(m.seen, number)
		}
	}
	return changed, nil
}

// readJobs reads a mount's jobs in the order of their numbers; of those in ended only the number. Numbers begin anew in a
// mount that takes the place of another: if the highest is not there any more, nothing of ended holds. Errors:
// mount.ErrNotMount, mount.ErrDead.
func readJobs(point string, ended map[uint32]bool) ([]job, error) {
	dir := filepath.Join(point, "jobs")
	entries, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return nil, fmt.Errorf("the mount is gone: %w", mount.ErrNotMount)
	case err != nil:
		return nil, gone(err)
	}
	var jobs []job
	highest, was := uint32(0), uint32(0)
	for _, e := range entries {
		number, err := strconv.ParseUint(e.Name(), 10, 32)
		if err != nil {
			continue
		}
		jobs = append(jobs, job{Number: uint32(number), mountpoint: point})
		highest = max(highest, uint32(number))
	}
	for number := range ended {
		was = max(was, number)
	}
	slices.SortFunc(jobs, func(a, b job) int { return cmp.Compare(a.Number, b.Number) })
	kept := jobs[:0]
	for _, j := range jobs {
		if ended[j.Number] && highest >= was {
			kept = append(kept, j)
			continue
		}
		switch err := j.read(filepath.Join(dir, strconv.FormatUint(uint64(j.Number), 10))); {
		case errors.Is(err, fs.ErrNotExist):
			continue // the mount has dropped it just now
		case err != nil:
			return nil, gone(err)
		}
		kept = append(kept, j)
	}
	return kept, nil
}

// gone returns mount.ErrDead if that is what an error of a read means.
func gone(err error) error {
	if errors.Is(err, syscall.ENOTCONN) || errors.Is(err, syscall.ECONNABORTED) {
		return mount.ErrDead
	}
	return err
}

// read reads a job's file. A text that is no JSON is read again: it was changed while it was read.
func (j *job) read(path string) error {
	for try := 0; ; try++ {
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		number := j.Number
		if err = json.Unmarshal(text, j); err == nil {
			j.Number, j.text = number, text
			return nil
		}
		if try == 2 {
			return fmt.Errorf("%s: %w", path, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
