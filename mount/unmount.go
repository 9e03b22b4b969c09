package mount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// busyTime is how long a mount must be in use to be called busy.
	busyTime = 500 * time.Millisecond
	// endTime is how long Unmount waits for the process. It gives operations that are under way three seconds, and each store that
	// others have locked five, before it goes: together that can be more than ten.
	endTime = 30 * time.Second
	// lazyEndTime is the same where files may still be open: then the process lives for as long as they are.
	lazyEndTime = time.Second
)

// Unmount ends the mount at mountpoint and waits until the process that served it is gone, with all that it leaves. A
// mount whose process was killed is removed. With lazy the mount leaves the directory tree at once and its process ends
// when the last open file is closed. Errors: ErrNotMount, ErrForeign, ErrBusy (not with lazy), ErrDenied, ErrServing if
// the process goes on.
func Unmount(ctx context.Context, mountpoint string, lazy bool) error {
	path, err := resolve(mountpoint)
	if err != nil {
		return err
	}
	e, err := ourMountAt(path)
	if err != nil {
		return err
	}
	st, dead, err := isDead(path, e)
	if err != nil {
		return err
	}
	if dead {
		err := clearDead(ctx, path)
		if errors.Is(err, errReplaced) { // that one is meant now
			return Unmount(ctx, mountpoint, lazy)
		}
		return err
	}
	switch err := detachPatiently(ctx, path, lazy); {
	case err == nil:
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%w: %s; leave it, or try --lazy", ErrBusy, usersText(path))
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT): // somebody else was faster
		return ErrNotMount
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w: %w", ErrDenied, err)
	default:
		return err
	}
	if st == nil {
		return nil // another user's: only that user's processes know it
	}
	return waitEnd(ctx, st, lazy)
}

// detachPatiently is detach for a mount that may only seem to be in use: until it has called execve(2), a process that is
// being started holds all the files that its parent had open when it was forked.
func detachPatiently(ctx context.Context, path string, lazy bool) error {
	ctx, cancel := context.WithTimeout(ctx, busyTime)
	defer cancel()
	for {
		err := detach(path, lazy)
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pollInterval):
		}
	}
}

// isDead says whether the process that served the mount e at path is gone, and returns its state, nil if it left none.
// What a state file says of a dead process is not enough: the mount may be another user's, with the same device number. Where
// the kernel keeps what is left of a killed process, the connection is aborted, so that all who wait for it go on.
func isDead(path string, e *entry) (st *State, dead bool, err error) {
	st, err = stateOf(path, e)
	if err != nil || st != nil && !st.Dead {
		return st, false, err // a living process is believed without asking the mount: it may hang
	}
	if st != nil && lingers(st.PID, st.Started) {
		// Who may not abort it can take the mount away all the same; asking it would hang.
		if err := abort(e.device); err != nil {
			return st, true, nil //nolint:nilerr // see above
		}
	}
	return st, disconnected(path), nil
}

// errReplaced is what clearDead returns when another mount is where the dead one was.
var errReplaced = errors.New("another mount is there")

// clearDead removes a mount without a process, and what the process left. Before it holds the lock somebody else may
// have done so, and mounted there: then it removes nothing. Error: errReplaced.
func clearDead(ctx context.Context, path string) error {
	dir, err := stateDir()
	if err != nil {
		return err
	}
	unlock, err := lockState(ctx, dir)
	if err != nil {
		return err
	}
	defer unlock()
	e, err := mountAt(path)
	if err != nil || e == nil {
		return err
	}
	if !e.ours() {
		return errReplaced
	}
	if _, dead, err := isDead(path, e); err != nil {
		return err
	} else if !dead {
		return errReplaced
	}
	created, err := removeDead(dir, path)
	if err != nil || !created {
		return err
	}
	if err := unix.Rmdir(path); err != nil && err != unix.ENOTEMPTY && err != unix.ENOENT {
		return fmt.Errorf("removing the mountpoint: %w", err)
	}
	return nil
}

func waitEnd(ctx context.Context, st *State, lazy bool) error {
	limit := endTime
	if lazy {
		limit = lazyEndTime
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for running(st.PID, st.Started) {
		select {
		case <-ctx.Done():
			if lazy {
				return fmt.Errorf("unmounted; process %d ends when no file in it is open and nothing is under way: %w", st.PID, ErrServing)
			}
			return fmt.Errorf("unmounted, but process %d is still there%s: %w", st.PID, elsewhereText(st.Device), ErrServing)
		case <-time.After(pollInterval):
		}
	}
	return nil
}

// maxUsers is how many processes an error names.
const maxUsers = 3

// usersText says who uses files below path, as far as this user may see.
func usersText(path string) string {
	users := users(path)
	switch {
	case len(users) == 0:
		return "files in it are in use"
	case len(users) > maxUsers:
		return fmt.Sprintf("in use by %s and %d more", strings.Join(users[:maxUsers], ", "), len(users)-maxUsers)
	}
	return "in use by " + strings.Join(users, ", ")
}

// users returns the processes with a working directory, a root or an open file at or below path, as "name (pid)". It
// reads links of /proc only, which the kernel answers without the mounted file system.
func users(path string) []string {
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil
	}
	var found []string
	for _, process := range processes {
		links := []string{process + "/cwd", process + "/root"}
		if open, err := filepath.Glob(process + "/fd/*"); err == nil {
			links = append(links, open...)
		}
		uses := slices.ContainsFunc(links, func(link string) bool {
			target, err := os.Readlink(link)
			return err == nil && (target == path || strings.HasPrefix(target, path+"/"))
		})
		if !uses {
			continue
		}
		name, err := os.ReadFile(process + "/comm")
		if err != nil {
			name = []byte("?")
		}
		pid, err := strconv.Atoi(filepath.Base(process))
		if err == nil {
			found = append(found, fmt.Sprintf("%s (%d)", strings.TrimSpace(string(name)), pid))
		}
	}
	return found
}
