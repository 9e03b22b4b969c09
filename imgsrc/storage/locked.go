package storage

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	cs "go.podman.io/storage"
	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
)

// The library waits for the store's locks in the kernel, which nothing can interrupt. So whoever may have to wait does it in a
// goroutine of its own, which is left behind when it is not wanted any more; what it then comes to do it does not do.

const (
	// lockedLook is how often it is looked whether a lock is waited for.
	lockedLook = 500 * time.Millisecond
	// lockedTime is how long an image that is received waits for one. Other programs unpack a layer under it.
	lockedTime = 2 * time.Minute
)

// A locked is a lock of the store that this process waits for.
type locked struct {
	by    string // who has it
	since time.Time
}

func (l *locked) String() string { return "the store is locked by " + l.by }

// lockedBy returns the lock that is waited for; nil if there is none. was is what it returned before.
func (s *Source) lockedBy(was *locked) *locked {
	text, err := os.ReadFile("/proc/locks")
	if err != nil {
		return nil
	}
	pids := []string{strconv.Itoa(os.Getpid())}
	if s.writer != nil {
		pids = append(pids, strconv.Itoa(s.writer.pid()))
	}
	pid := blocker(string(text), pids, s.lockFiles())
	if pid == "" {
		return nil
	}
	l := &locked{by: "another program", since: time.Now()}
	if comm, err := os.ReadFile("/proc/" + pid + "/comm"); err == nil {
		l.by = fmt.Sprintf("%s (process %s)", bytes.TrimSpace(comm), pid)
	}
	if was != nil {
		l.since = was.since
	}
	return l
}

// pid is that of the child; 0 if none runs.
func (k *keeper) pid() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.child == nil {
		return 0
	}
	return k.child.PID()
}

// blocker finds the process in /proc/locks (proc_locks(5)) whose lock one of pids waits for, on a file with one of the inodes.
func blocker(text string, pids []string, inodes map[string]bool) string {
	holder := ""
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		waits := len(f) > 1 && f[1] == "->"
		if waits {
			f = append(f[:1], f[2:]...)
		}
		if len(f) < 6 || f[1] != "POSIX" {
			continue
		}
		if !waits {
			holder = f[4]
			continue
		}
		inode := f[5][strings.LastIndex(f[5], ":")+1:]
		for _, pid := range pids {
			if f[4] == pid && inodes[inode] {
				return holder
			}
		}
	}
	return ""
}

// lockFiles are the inodes of the store's lock files.
func (s *Source) lockFiles() map[string]bool {
	inodes := map[string]bool{}
	for _, root := range []string{s.real.GraphRoot, s.real.RunRoot, s.real.ImageStore} {
		if root == "" {
			continue
		}
		for _, pattern := range []string{"*.lock", "*/*.lock"} {
			names, _ := filepath.Glob(filepath.Join(root, pattern)) // the pattern is a good one
			for _, name := range names {
				var st unix.Stat_t
				if unix.Stat(name, &st) == nil {
					inodes[strconv.FormatUint(st.Ino, 10)] = true
				}
			}
		}
	}
	return inodes
}

// awaitLocks waits for whoever has the images or the layers of the store locked, as the next step will have to.
func awaitLocks(store cs.Store) {
	const none = "none" // is an image or a layer of this name
	_, _ = store.Image(none)
	_, _ = store.Layer(none)
}

type commitsKey struct{}

// mayCreate says whether an image may be listed now that is received in ctx, and that from then on its end is waited for.
func mayCreate(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	if state, ok := ctx.Value(commitsKey{}).(*atomic.Int32); ok && !state.CompareAndSwap(writeWaits, writeMade) && state.Load() == writeGivenUp {
		return context.Canceled
	}
	return nil
}

// unlocked does work that may have to wait for the store's locks. It returns when ctx ends while that waits, or when it has
// waited for too long, and leaves the waiting behind. Error: imgsrc.ErrLocked, with ETIMEDOUT.
func (s *Source) unlocked(ctx context.Context, work func(context.Context) error) error {
	type outcome struct {
		err      error
		panicked any // for the caller's goroutine, which knows what to do about it
	}
	var state atomic.Int32
	inner, giveUp := context.WithCancelCause(context.WithValue(ctx, commitsKey{}, &state))
	defer giveUp(nil)
	ended := make(chan outcome, 1)
	go func() {
		var out outcome
		defer func() {
			out.panicked = recover()
			ended <- out
		}()
		out.err = work(inner)
	}()
	var waits *locked
	told := ""
	tell := func(why string) {
		if why != told {
			told = why
			imgsrc.Waiting(ctx, why)
		}
	}
	defer tell("")
	tick := time.NewTicker(lockedLook)
	defer tick.Stop()
	done := ctx.Done()
	for {
		select {
		case out := <-ended:
			if out.panicked != nil {
				panic(out.panicked)
			}
			return out.err
		case <-done:
			done = nil
			tick.Reset(lockedLook / 10)
		case <-tick.C:
		}
		was := waits
		if waits = s.lockedBy(was); waits == nil {
			tell("")
			continue
		}
		if was != nil { // and no passing one
			tell(waits.String())
		}
		switch {
		case ctx.Err() != nil && state.CompareAndSwap(writeWaits, writeGivenUp):
			return context.Cause(ctx)
		case time.Since(waits.since) > s.lockedTime && state.CompareAndSwap(writeWaits, writeGivenUp):
			err := imgsrc.Of(imgsrc.ErrLocked, fmt.Errorf("%s, for more than %s: %w", waits, s.lockedTime, syscall.ETIMEDOUT))
			giveUp(err)
			return err
		}
	}
}

// tellLocked tells in ctx what work that is under way waits for, until it is stopped.
func (s *Source) tellLocked(ctx context.Context) (stop func()) {
	ended, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(lockedLook)
		defer tick.Stop()
		for told := ""; ; {
			select {
			case <-tick.C:
			case <-ended:
				if told != "" {
					imgsrc.Waiting(ctx, "")
				}
				return
			}
			why := ""
			if l := s.lockedBy(nil); l != nil {
				why = l.String()
			}
			if why != told {
				told = why
				imgsrc.Waiting(ctx, why)
			}
		}
	}()
	return func() {
		close(ended)
		<-stopped
	}
}
