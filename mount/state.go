package mount

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// State is what a serving process says about itself to other processes of the same user, in the file PID.json of the
// directory that stateDir names.
type State struct {
	Mountpoint string    `json:"mountpoint"` // as Point.Path
	Sources    []string  `json:"sources"`
	PID        int       `json:"pid"`
	Started    uint64    `json:"started"` // when the process started, in ticks since boot: tells it from a later one with its id
	Mounted    time.Time `json:"mounted"`
	Device     string    `json:"device"`  // the mount's, "0:52"
	Created    bool      `json:"created"` // the mountpoint is removed when the mount ends

	// Dead is set by List where the process is gone and its mount is still there.
	Dead bool `json:"-"`
}

// List returns the mounts of this user in this mount namespace, sorted by mountpoint, and removes the state files of
// those that are gone.
func List() ([]State, error) {
	dir, err := stateDir()
	if err != nil {
		return nil, err
	}
	all, err := readStates(dir)
	if err != nil {
		return nil, err
	}
	var mounted []State
	for _, st := range all {
		e, err := mountAt(st.Mountpoint)
		if err != nil {
			return nil, err
		}
		there := e != nil && e.ours() && pick(all, st.Mountpoint, e).is(&st)
		switch {
		case there:
			mounted = append(mounted, st)
		case st.Dead:
			if err := os.Remove(st.file(dir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, fmt.Errorf("removing the state of a mount that is gone: %w", err)
			}
		}
	}
	slices.SortFunc(mounted, func(a, b State) int { return strings.Compare(a.Mountpoint, b.Mountpoint) })
	return mounted, nil
}

// stateOf returns the state of the mount e at path, nil if its process left none.
func stateOf(path string, e *entry) (*State, error) {
	dir, err := stateDir()
	if err != nil {
		return nil, err
	}
	all, err := readStates(dir)
	if err != nil {
		return nil, err
	}
	return pick(all, path, e), nil
}

// pick returns the state among all that is the one of the mount e at path, nil if there is none. The kernel gives the
// number of a device that is gone to the next one, so a dead process may have left a state that looks the same: a living
// one goes before it.
func pick(all []State, path string, e *entry) *State {
	var found *State
	for i := range all {
		st := &all[i]
		if st.Mountpoint == path && st.Device == e.device && (found == nil || found.Dead) {
			found = st
		}
	}
	return found
}

// is says whether both are of the same process.
func (st *State) is(other *State) bool { return st != nil && st.PID == other.PID }

// dropDead removes the state files that dead processes left for the mountpoint path. The caller holds the lock.
func dropDead(dir, path string) error {
	all, err := readStates(dir)
	if err != nil {
		return err
	}
	for _, st := range all {
		if st.Mountpoint != path || !st.Dead {
			continue
		}
		if err := os.Remove(st.file(dir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("removing the state of a dead mount: %w", err)
		}
	}
	return nil
}

// readStates returns what the state files say, with Dead set where the process is gone, mounted or not. A file that
// cannot be read is none: its process may be removing it.
func readStates(dir string) ([]State, error) {
	names, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		return nil, fmt.Errorf("listing %s: %w", dir, err)
	}
	var all []State
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		var st State
		if json.Unmarshal(b, &st) != nil || filepath.Base(name) != filepath.Base(st.file(dir)) {
			continue
		}
		st.Dead = !running(st.PID, st.Started)
		all = append(all, st)
	}
	return all, nil
}

func (st *State) file(dir string) string { return filepath.Join(dir, strconv.Itoa(st.PID)+".json") }

// write puts the state file in place as a whole.
func (st *State) write(dir string) error {
	b, err := json.Marshal(st)
	if err != nil {
		return fmt.Errorf("encoding the mount's state: %w", err)
	}
	temporary := st.file(dir) + ".new"
	if err := os.WriteFile(temporary, append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("writing the mount's state: %w", err)
	}
	if err := os.Rename(temporary, st.file(dir)); err != nil {
		return fmt.Errorf("writing the mount's state: %w", err)
	}
	return nil
}

// forget removes what a mount leaves beside itself: the directory, if it was made for the mount and nobody put
// anything into it, and the state file. The caller holds the lock, and the mount is gone.
func (st *State) forget(dir string) error {
	var errs []error
	if st.Created {
		err := unix.Rmdir(st.Mountpoint)
		switch err {
		case nil, unix.ENOENT, unix.ENOTEMPTY, unix.EBUSY:
		default:
			errs = append(errs, fmt.Errorf("removing the mountpoint: %w", err))
		}
	}
	if err := os.Remove(st.file(dir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, fmt.Errorf("removing the mount's state: %w", err))
	}
	return errors.Join(errs...)
}

// stateDir returns the directory of this user's state files, and makes it if it is missing. Root's is the same from a
// login shell, under sudo and under mount(8), where XDG_RUNTIME_DIR is not.
func stateDir() (string, error) {
	var bases []string
	uid := os.Geteuid()
	if uid == 0 {
		bases = append(bases, "/run")
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		bases = append(bases, dir)
	}
	bases = append(bases, fmt.Sprintf("/run/user/%d", uid))
	var errs []error
	for _, base := range bases {
		dir := filepath.Join(base, "imgfs")
		err := own(dir, uid)
		if err == nil {
			return dir, nil
		}
		errs = append(errs, err)
	}
	// Anybody may make this one first, so it must be this user's.
	dir := filepath.Join(os.TempDir(), fmt.Sprintf("imgfs-%d", uid))
	if err := own(dir, uid); err != nil {
		return "", fmt.Errorf("making a directory for the state of mounts: %w", errors.Join(append(errs, err)...))
	}
	return dir, nil
}

func own(dir string, uid int) error {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return &fs.PathError{Op: "lstat", Path: dir, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != uid || st.Mode&0o022 != 0 {
		return fmt.Errorf("%s: not a directory that only this user can write", dir)
	}
	return nil
}

// lockState takes the lock under which mounts, state files and mountpoints change. It waits until ctx ends.
func lockState(ctx context.Context, dir string) (unlock func(), err error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("locking the state of mounts: %w", err)
	}
	for {
		err := unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { d.Close() }, nil
		}
		if err != unix.EWOULDBLOCK && err != unix.EINTR {
			d.Close()
			return nil, fmt.Errorf("locking %s: %w", dir, err)
		}
		select {
		case <-ctx.Done():
			d.Close()
			return nil, fmt.Errorf("waiting for another mount: %w", context.Cause(ctx))
		case <-time.After(pollInterval):
		}
	}
}

// pollInterval is how often is looked again at what the system does not report.
const pollInterval = 10 * time.Millisecond

// running says whether the process pid that started at that time is still there. One that has ended and was not waited
// for by its parent (in a container without an init that may be forever) is gone, and so is one that was killed and cannot
// end yet.
func running(pid int, started uint64) bool {
	state, at, err := processStat(pid)
	return err == nil && state != 'Z' && state != 'X' && at == started && !killed(pid)
}

// processStat returns a process's state letter and when it started, in ticks since boot: the fields 3 and 22 of
// /proc/PID/stat (proc_pid_stat(5)). The second field, a name in parentheses, may hold anything.
func processStat(pid int) (state byte, started uint64, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, err
	}
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(fields) < 20 {
		return 0, 0, fmt.Errorf("/proc/%d/stat: too short", pid)
	}
	started, err = strconv.ParseUint(string(fields[19]), 10, 64)
	return fields[0][0], started, err
}
