// Package cachefile holds what processes that share a directory of cached files have to agree on. A file is made under
// the name of its part file, by the one process that holds its exclusive lock (flock), and is renamed when it is whole;
// whoever is killed leaves a part file whose lock is free. Readers hold a shared lock, so that evicting passes them over.
//
// The package knows nothing of what is in the files.
package cachefile

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"time"

	"golang.org/x/sys/unix"
)

// ErrBusy says that another process holds the lock, or has just replaced the file.
var ErrBusy = errors.New("another process holds the lock")

// pollTime is how often to look whether another process has ended with a part file.
const pollTime = 20 * time.Millisecond

// Flock is flock(2), repeated when a signal interrupts it.
func Flock(f *os.File, how int) error {
	for {
		if err := unix.Flock(int(f.Fd()), how); err != unix.EINTR {
			return err
		}
	}
}

// TryLock opens a file, as flags say, with an exclusive lock. Errors: ErrBusy; the system's.
func TryLock(dir *os.Root, name string, flags int) (*os.File, error) {
	f, err := dir.OpenFile(name, flags|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, err
	}
	err = Flock(f, unix.LOCK_EX|unix.LOCK_NB)
	if err == nil && !Is(dir, name, f) {
		err = unix.EWOULDBLOCK
	}
	if err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrBusy
		}
		return nil, err
	}
	return f, nil
}

// Lock opens or makes a file with an exclusive lock, waiting for the process that has the lock: that one renames or removes its file, and the next look
// makes a new one. The directory right above the file is made if somebody has removed it. Errors: ErrBusy if that
// process has not changed the file's size for the time of stall; the context's; the system's.
func Lock(ctx context.Context, dir *os.Root, name string, stall time.Duration) (*os.File, error) {
	_ = dir.Mkdir(path.Dir(name), 0o700) // if it cannot be made, opening the file says so
	lastSize, lastChange := int64(-1), time.Now()
	for {
		f, err := TryLock(dir, name, os.O_RDWR|os.O_CREATE)
		if err == nil || !errors.Is(err, ErrBusy) {
			return f, err
		}
		if fi, err := dir.Stat(name); err == nil && fi.Size() != lastSize {
			lastSize, lastChange = fi.Size(), time.Now()
		}
		if time.Since(lastChange) > stall {
			return nil, fmt.Errorf("waiting for %s: %w", name, err)
		}
		select {
		case <-time.After(pollTime):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Is says whether f is what name names.
func Is(dir *os.Root, name string, f *os.File) bool {
	named, err1 := dir.Lstat(name)
	opened, err2 := f.Stat()
	return err1 == nil && err2 == nil && os.SameFile(named, opened)
}

// Remove removes name if it is still f. That it cannot is logged only: the file is in nobody's way.
func Remove(dir *os.Root, name string, f *os.File, log *slog.Logger) {
	if !Is(dir, name, f) {
		return
	}
	if err := dir.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Debug("removing cache file", "path", name, "error", err)
	}
}

// Unnamed makes a file that has no name any more, where temporary files go.
func Unnamed(prefix string) (*os.File, error) {
	f, err := os.CreateTemp("", prefix)
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Room returns how many bytes may be written to f before asking again, at least least. Error: ENOSPC if its file system
// has hardly more left than is kept free: a twentieth of it, at most 1 GiB.
func Room(f *os.File, least int64) (int64, error) {
	free, err := Free(f)
	if err != nil {
		return 0, err
	}
	if free < least {
		return 0, &os.PathError{Op: "write", Path: f.Name(), Err: unix.ENOSPC}
	}
	return max(least, min(free, 64<<20)), nil
}

// Free returns how many bytes f's file system has left beside what is kept free, of which Room speaks; negative if others have taken
// of that.
func Free(f *os.File) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return 0, &os.PathError{Op: "statfs", Path: f.Name(), Err: err}
	}
	size := int64(st.Bsize)
	return int64(st.Bavail)*size - min(1<<30, int64(st.Blocks)*size/20), nil
}

// An Identity changes when somebody writes to a file.
type Identity struct {
	dev, ino     uint64
	Size         int64 // bytes
	mtime, ctime unix.Timespec
}

// Identify returns f's identity now.
func Identify(f *os.File) (Identity, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return Identity{}, &os.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	return Identity{uint64(st.Dev), st.Ino, st.Size, st.Mtim, st.Ctim}, nil
}
