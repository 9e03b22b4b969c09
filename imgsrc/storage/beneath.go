package storage

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
)

// splitDir cuts the directory of a layer's files into the driver's and the rest: "overlay" and "ID/diff", or "vfs" and
// "dir/ID".
func splitDir(dir string) (driver, rel string) {
	above := filepath.Dir(dir)
	return filepath.Dir(above), filepath.Join(filepath.Base(above), filepath.Base(dir))
}

// openDir opens the directory of a layer's files, as a place from which to open them. A link at the driver's directory
// or above was put there by whoever set the store up. What is below comes with the store, which may be somebody else's:
// a link there is not followed, because it could lead anywhere, and no store has one. Errors: [imgsrc.ErrNotFound] if
// the directory is gone, [imgsrc.ErrDamaged] if a link or a file is in its place.
func openDir(dir string) (int, error) {
	const flags = unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC
	driver, rel := splitDir(dir)
	fd, err := unix.Open(driver, flags, 0)
	for name := range strings.SplitSeq(rel, "/") {
		if err != nil {
			break
		}
		above := fd
		fd, err = unix.Openat(above, name, flags|unix.O_NOFOLLOW, 0)
		unix.Close(above)
	}
	switch {
	case err == nil:
		return fd, nil
	case err == unix.ENOENT:
		return -1, fmt.Errorf("the layer has been removed: %w", imgsrc.ErrNotFound)
	case err == unix.ENOTDIR, err == unix.ELOOP:
		return -1, fmt.Errorf("%s is a link or a file, or below one: %w", dir, imgsrc.ErrDamaged)
	}
	return -1, &os.PathError{Op: "open", Path: dir, Err: err}
}

// openIn opens the file name below dir, which is open as root. The name comes from a layer: it leads nowhere else,
// whatever links there are.
func openIn(root int, dir, name string) (int, error) {
	how := unix.OpenHow{
		Flags: unix.O_RDONLY | unix.O_NONBLOCK | unix.O_CLOEXEC, // a pipe in the file's place must not block
		// As for a process whose root the directory is.
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	fd, err := openat2(root, name, &how)
	if isUnknown(err) {
		fd, err = openSlowly(root, name)
	}
	if err != nil {
		return -1, explain(dir, name, err)
	}
	return fd, nil
}

// openat2 repeats what a signal, or a rename at the same time, has stopped.
func openat2(root int, name string, how *unix.OpenHow) (int, error) {
	fd, err := unix.Openat2(root, name, how)
	for err == unix.EINTR || err == unix.EAGAIN {
		fd, err = unix.Openat2(root, name, how)
	}
	return fd, err
}

// isUnknown says whether an error of openat2 means an old kernel, or a filter that does not know the call.
func isUnknown(err error) bool { return errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) }

func openSlowly(dir int, name string) (int, error) {
	root, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", dir))
	if err != nil {
		return -1, err
	}
	defer root.Close()
	f, err := root.OpenFile(name, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	defer f.Close()
	return unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
}

// notUnpacked are the errors that say that what is in a body's place is not what was unpacked there. A link out of the
// layer may be another one, without a number. All others are the system's.
var notUnpacked = []syscall.Errno{syscall.ENOENT, syscall.ENOTDIR, syscall.ELOOP, syscall.EISDIR, syscall.ENXIO, syscall.ENAMETOOLONG}

// explain says what it means that a body's file cannot be opened.
func explain(dir, name string, err error) error {
	err = &os.PathError{Op: "open", Path: filepath.Join(dir, name), Err: err}
	if errno := syscall.Errno(0); errors.As(err, &errno) && !slices.Contains(notUnpacked, errno) {
		return err
	}
	if _, statErr := os.Lstat(dir); errors.Is(statErr, os.ErrNotExist) {
		return fmt.Errorf("the layer has been removed: %w", imgsrc.ErrNotFound)
	}
	return fmt.Errorf("%w: %w", err, imgsrc.ErrDamaged)
}

// subdir opens a directory below root to be listed. There is no link on the way to it, unless it was replaced.
func subdir(root int, rel string) (*os.File, error) {
	if rel == "" {
		rel = "."
	}
	how := unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	}
	fd, err := openat2(root, rel, &how)
	if isUnknown(err) {
		fd, err = subdirSlowly(root, rel)
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: rel, Err: err}
	}
	return os.NewFile(uintptr(fd), rel), nil
}

func subdirSlowly(root int, rel string) (int, error) {
	fd, err := unix.FcntlInt(uintptr(root), unix.F_DUPFD_CLOEXEC, 0)
	for name := range strings.SplitSeq(rel, "/") {
		if err != nil {
			break
		}
		above := fd
		fd, err = unix.Openat(above, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		unix.Close(above)
	}
	return fd, err
}
