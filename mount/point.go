package mount

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// A Point is a place where a file system can be mounted.
type Point struct {
	path  string // absolute, without symlinks
	avoid []Dir
}

// Path is the mountpoint as the kernel will know it: absolute, without symlinks.
func (p *Point) Path() string { return p.path }

// Dir is a directory that the serving process itself reads or writes.
type Dir struct {
	Path string // need not exist
	What string // what it is to the user: "the source oci:/srv/layout"
}

// Check looks at a mountpoint before anything expensive is done, and changes nothing. It must be a directory without
// files in it, or missing in a directory that is there, or a mount whose process was killed; and it must neither lie in
// one of the directories in avoid nor they in it: the process would wait for its own answer, and with it everybody who
// comes near. Errors: ErrNotDirectory, ErrNoParent, ErrNoAccess, ErrNoPlace, ErrNotEmpty,
// ErrMounted, ErrForeign, ErrInside, ErrOverlap.
func Check(mountpoint string, avoid ...Dir) (*Point, error) {
	path, err := resolve(mountpoint)
	if err != nil {
		return nil, err
	}
	p := &Point{path: path, avoid: avoid}
	if _, err := p.look(); err != nil {
		return nil, err
	}
	return p, nil
}

// found is what there is at a usable mountpoint.
type found int

const (
	foundDirectory found = iota
	foundNothing
	foundDead // a mount of ours without a process
)

func (p *Point) look() (found, error) {
	f, err := p.lookOnce()
	if errors.Is(err, ErrNotEmpty) {
		// Perhaps it was mounted on between the two looks, and that is what it holds.
		return p.lookOnce()
	}
	return f, err
}

func (p *Point) lookOnce() (found, error) {
	e, err := mountAt(p.path)
	if err != nil {
		return 0, err
	}
	if e != nil {
		return p.lookAtMount(e)
	}
	if err := p.outside(); err != nil {
		return 0, err
	}
	if err := p.overlap(); err != nil {
		return 0, err
	}
	st, err := os.Lstat(p.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := unix.Access(filepath.Dir(p.path), unix.W_OK|unix.X_OK); err != nil {
			return 0, fmt.Errorf("making the directory: %w", notMade(p.path, err))
		}
		return foundNothing, nil
	case errors.Is(err, unix.ENOTDIR):
		return 0, fmt.Errorf("%s: %w", filepath.Dir(p.path), ErrNotDirectory)
	case err != nil:
		return 0, noAccess(err)
	case !st.IsDir():
		return 0, ErrNotDirectory
	}
	return foundDirectory, p.empty()
}

func (p *Point) lookAtMount(e *entry) (found, error) {
	if !e.ours() {
		return 0, fmt.Errorf("a file system of type %s is mounted there: %w", e.fsType, ErrForeign)
	}
	_, dead, err := isDead(p.path, e)
	if err != nil {
		return 0, err
	}
	if !dead {
		return 0, fmt.Errorf("%w; `imgfs umount %s` ends it", ErrMounted, p.path)
	}
	return foundDead, nil
}

func (p *Point) empty() error {
	d, err := os.Open(p.path)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNoAccess, err)
	}
	defer d.Close()
	names, err := d.Readdirnames(1)
	if len(names) > 0 {
		return fmt.Errorf("%w (it holds %q); mount on an empty or a new one", ErrNotEmpty, names[0])
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("looking into the directory: %w", err)
	}
	// Who may not write there may not hide what is there: fusermount3 refuses.
	if os.Geteuid() != 0 {
		if err := unix.Access(p.path, unix.W_OK); err != nil {
			return fmt.Errorf("%w: %w", ErrNoAccess, err)
		}
	}
	return nil
}

// outside fails for a directory of another mount of imgfs, where a directory for names can be made as anywhere: that mount could
// not be ended before this one, and what walks it would walk this one too.
func (p *Point) outside() error {
	var st unix.Stat_t
	err := unix.Lstat(p.path, &st)
	if errors.Is(err, fs.ErrNotExist) {
		err = unix.Lstat(filepath.Dir(p.path), &st)
	}
	if err != nil {
		return nil //nolint:nilerr // who looks at the directory itself says it better
	}
	other, err := oursOn(st.Dev)
	if err != nil || other == "" {
		return err
	}
	return fmt.Errorf("%w, that of %s: mount elsewhere", ErrInside, other)
}

func (p *Point) overlap() error {
	for _, d := range p.avoid {
		dir, err := filepath.Abs(d.Path)
		if err != nil {
			return fmt.Errorf("resolving %s: %w", d.Path, err)
		}
		switch {
		case inside(p.path, dir):
			return fmt.Errorf("%w: it is in %s", ErrOverlap, d.What)
		case inside(dir, p.path):
			return fmt.Errorf("%w: %s is in it", ErrOverlap, d.What)
		}
	}
	return nil
}

// noAccess is the error for a place that cannot be looked at: of the user, or because nothing can be there.
func noAccess(err error) error {
	switch {
	case errors.Is(err, unix.ENAMETOOLONG):
		return fmt.Errorf("%w: %w", ErrNoPlace, unix.ENAMETOOLONG)
	case errors.Is(err, unix.ELOOP):
		return fmt.Errorf("%w: %w", ErrNotDirectory, unix.ELOOP)
	}
	return fmt.Errorf("%w: %w", ErrNoAccess, err)
}

// inside says whether path is dir or lies below it, by name or, where both exist, by identity: that sees through
// symlinks and bind mounts.
func inside(path, dir string) bool {
	if path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/") {
		return true
	}
	want, err := os.Stat(dir)
	if err != nil {
		return false
	}
	for resolved := false; ; path = filepath.Dir(path) {
		if real, err := filepath.EvalSymlinks(path); err == nil && !resolved {
			path, resolved = real, true // of the part that exists
		}
		if st, err := os.Stat(path); err == nil && os.SameFile(st, want) {
			return true
		}
		if path == "/" {
			return false
		}
	}
}

// maxLinks is how many symlinks in a row are followed, as in the kernel.
const maxLinks = 40

// resolve returns path absolute and without symlinks. Its last element may be missing, and is not touched if it is no
// symlink: a dead mount answers even lstat(2) with an error.
func resolve(path string) (string, error) {
	if path == "" {
		return "", fmt.Errorf("the mountpoint is empty: %w", ErrNotDirectory)
	}
	full, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("resolving %s: %w", path, err)
	}
	for range maxLinks {
		dir, err := filepath.EvalSymlinks(filepath.Dir(full))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return "", fmt.Errorf("%s: %w", filepath.Dir(full), ErrNoParent)
		case errors.Is(err, unix.ENOTDIR):
			return "", fmt.Errorf("%s: %w", filepath.Dir(full), ErrNotDirectory)
		case err != nil:
			return "", noAccess(err)
		}
		full = filepath.Join(dir, filepath.Base(full))
		target, err := os.Readlink(full)
		if err != nil { // no symlink, or nothing at all
			return full, nil //nolint:nilerr // that is the answer
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(dir, target)
		}
		full = filepath.Clean(target)
	}
	return "", fmt.Errorf("%w: %w", ErrNotDirectory, unix.ELOOP)
}
