package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A bencher runs measurements below one directory and takes away what they mounted.
type bencher struct {
	ctx  context.Context
	dir  string
	runs int
	undo []func() error
}

func (b *bencher) close() error {
	var errs []error
	for _, f := range slices.Backward(b.undo) {
		errs = append(errs, f())
	}
	return errors.Join(append(errs, os.RemoveAll(b.dir))...)
}

// A side is one of the two things that are compared: prepare is not timed, run is. Without prepare, run is run once before the
// first time, so that all is cached that can be.
type side struct{ prepare, run func() error }

// compare times two sides alternately and prints a row of the table: the least and the median time of each, and the ratio of the
// first to the second.
func (b *bencher) compare(what string, ours, theirs side) error {
	var times [2][]time.Duration
	for range b.runs {
		for i, s := range []side{ours, theirs} {
			took, err := s.time(what, len(times[i]) == 0)
			if err != nil {
				return err
			}
			times[i] = append(times[i], took)
		}
	}
	a, o := summary(times[0]), summary(times[1])
	fmt.Printf("| %s | %s | %s | %.2f | %.2f |\n", what, a, o, ratio(a.least, o.least), ratio(a.median, o.median))
	return nil
}

// alone times something that the kernel has no counterpart for.
func (b *bencher) alone(what string, s side) error {
	var times []time.Duration
	for range b.runs {
		took, err := s.time(what, len(times) == 0)
		if err != nil {
			return err
		}
		times = append(times, took)
	}
	fmt.Printf("| %s | %s | | | |\n", what, summary(times))
	return nil
}

func (s side) time(what string, first bool) (time.Duration, error) {
	prepare := s.prepare
	if prepare == nil && first {
		prepare = s.run
	}
	if prepare != nil {
		if err := prepare(); err != nil {
			return 0, fmt.Errorf("preparing %q: %w", what, err)
		}
	}
	began := time.Now()
	if err := s.run(); err != nil {
		return 0, fmt.Errorf("measuring %q: %w", what, err)
	}
	return time.Since(began), nil
}

func (b *bencher) header(title, ours, theirs string) {
	fmt.Printf("\n%s: least / median of %d runs\n\n| | %s | %s | ratio of least | of median |\n|---|---|---|---|---|\n", title, b.runs, ours, theirs)
}

type span struct{ least, median time.Duration }

func summary(times []time.Duration) span {
	slices.Sort(times)
	return span{times[0], times[len(times)/2]}
}

func (s span) String() string { return seconds(s.least) + " / " + seconds(s.median) }

func seconds(d time.Duration) string { return fmt.Sprintf("%.4f s", d.Seconds()) }

func ratio(a, b time.Duration) float64 { return float64(a) / float64(max(b, 1)) }

// sh is a side's step: a line for the shell. Reading is always another process's work, never that of the one that serves.
func (b *bencher) sh(format string, args ...any) func() error {
	line := fmt.Sprintf(format, args...)
	return func() error { return b.command("sh", "-c", line) }
}

func (b *bencher) command(name string, args ...string) error {
	cmd := exec.CommandContext(b.ctx, name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return nil
}

// dropCaches makes the kernel forget pages, names and attributes.
func dropCaches() error {
	syscall.Sync()
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
}

// overlay mounts dir, read-only, as the upper one of two lower directories.
func (b *bencher) overlay(dir, empty, at string) error {
	if err := errors.Join(os.MkdirAll(empty, 0o755), os.MkdirAll(at, 0o755)); err != nil {
		return err
	}
	if err := unix.Mount("overlay", at, "overlay", unix.MS_RDONLY, "lowerdir="+dir+":"+empty); err != nil {
		return fmt.Errorf("mounting an overlay of %s: %w", dir, err)
	}
	b.undo = append(b.undo, func() error { return unix.Unmount(at, unix.MNT_DETACH) })
	return nil
}
