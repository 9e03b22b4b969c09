package ops

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/imgfs/imgfs/imgsrc"
)

// A pathResolver makes an absolute path, free of symbolic links and outside this mount, of one that somebody typed.
type pathResolver func(path string) (string, error)

// file resolves the path of a file that is to be read whole. What is there must be one: a pipe would never end, nor would it
// let go of whoever opens it.
func (resolve pathResolver) file(path string) (string, error) {
	path, err := resolve(path)
	if err != nil {
		return "", err
	}
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return "", fail(imgsrc.ErrInvalid, "%s is not a file", quote(path))
	}
	return path, nil
}

// existing is file for what has to be there: the library takes a missing file of credentials for an empty one.
func (resolve pathResolver) existing(path string) (string, error) {
	at, err := resolve.file(path)
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(at); errors.Is(err, fs.ErrNotExist) {
		return "", fail(syscall.ENOENT, "there is no file %s", quote(at))
	}
	return at, nil
}

// place is file for what may be a directory as well.
func (resolve pathResolver) place(path string) (string, error) {
	at, err := resolve(path)
	if err != nil {
		return "", err
	}
	if info, err := os.Stat(at); err == nil && !info.IsDir() && !info.Mode().IsRegular() {
		return "", fail(imgsrc.ErrInvalid, "%s is neither a file nor a directory", quote(path))
	}
	return at, nil
}

// resolver returns the resolver for what the writer of a request typed: relative paths are the writer's.
func (o *Ops) resolver(r Request) pathResolver {
	return func(path string) (string, error) {
		if path == "" {
			return "", fail(imgsrc.ErrInvalid, "a path is missing: write one")
		}
		if strings.ContainsRune(path, 0) {
			return "", fail(imgsrc.ErrInvalid, "%s is not a path", quote(path))
		}
		if !filepath.IsAbs(path) {
			dir, err := writerDir(r.PID, r.UID)
			if err != nil {
				return "", fail(imgsrc.ErrInvalid, "%s is a relative path, and the writer's directory is not known (%s): write an absolute path", quote(path), err)
			}
			path = filepath.Join(dir, path)
		}
		return follow(path, o.opt.PathInside)
	}
}

// writerDir returns the working directory of the process pid, if its paths mean here what they mean there: it belongs to
// uid and sees the same mounts.
func writerDir(pid, uid uint32) (string, error) {
	if pid == 0 {
		return "", errors.New("it runs in another pid namespace")
	}
	proc := fmt.Sprintf("/proc/%d", pid)
	info, err := os.Stat(proc)
	if err != nil {
		return "", errors.New("it is gone")
	}
	if st, ok := info.Sys().(*syscall.Stat_t); !ok || st.Uid != uid {
		return "", errors.New("it belongs to another user")
	}
	theirs, err := os.Readlink(proc + "/ns/mnt")
	if err != nil {
		return "", errors.New("its mount namespace cannot be seen")
	}
	if ours, err := os.Readlink("/proc/self/ns/mnt"); err != nil || ours != theirs {
		return "", errors.New("it runs in another mount namespace")
	}
	dir, err := os.Readlink(proc + "/cwd")
	if err != nil {
		return "", errors.New("it cannot be seen")
	}
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		return "", errors.New("it was removed")
	}
	return dir, nil
}

// follow resolves the symbolic links of an absolute path whose end need not exist. It asks inside about each step before
// it looks at it, because looking at a path in this mount would be a request that waits for the one that is being served.
func follow(path string, inside func(string) bool) (string, error) {
	at, rest := "/", strings.Split(filepath.Clean(path), "/")
	for links := 0; len(rest) > 0; {
		name := rest[0]
		rest = rest[1:]
		if name == "" || name == "." {
			continue
		}
		next := filepath.Join(at, name) // which takes ".." as what it means once the links before it are resolved
		if inside(next) {
			return "", fail(imgsrc.ErrInvalid, "%s lies in this mount: name a path outside it", quote(path))
		}
		target, err := os.Readlink(next)
		if err != nil { // no link, or not there
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.EINVAL) {
				at = next
				continue
			}
			return "", notPath(path, err)
		}
		if links++; links > 40 {
			return "", notPath(path, syscall.ELOOP)
		}
		rest = append(strings.Split(target, "/"), rest...)
		if filepath.IsAbs(target) {
			at = "/"
		}
	}
	return at, nil
}

// notPath says of a path that leads nowhere that nothing is there, and of what can be none that it is none.
func notPath(path string, err error) error {
	for _, errno := range []syscall.Errno{syscall.ELOOP, syscall.ENAMETOOLONG} {
		if errors.Is(err, errno) {
			return fail(imgsrc.ErrInvalid, "%s is not a path: %s", quote(path), errno)
		}
	}
	if errors.Is(err, syscall.ENOTDIR) {
		return fail(syscall.ENOENT, "there is no %s: what it is in is not a directory", quote(path))
	}
	return err
}
