package storage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
)

// walkForm is the form of files that were found on the disk. Their bodies have no checksums.
const walkForm = "walk"

// walkedFiles are the files of a layer whose tar cannot be put together again, as they lie on the disk.
type walkedFiles struct {
	unpacked
	parent string // with vfs, the directory of the layer below; empty at the base
	vfs    bool
}

var _ imgsrc.Files = (*walkedFiles)(nil)

// walk opens a layer's files by their directory alone.
func (s *Source) walk(l *layer, dir string) imgsrc.Files {
	w := &walkedFiles{unpacked: unpacked{s: s, dir: dir}, vfs: s.driver == "vfs"}
	if w.vfs && l.Parent != "" {
		for i := range s.stores {
			if d := s.diffDir(i, l.Parent); exists(d) {
				w.parent = d
				break
			}
		}
	}
	return w
}

// Key is for this process: the directory says nothing about what it was made from.
func (w *walkedFiles) Key() imgsrc.FilesKey {
	return imgsrc.FilesKey{Form: walkForm, Digest: digest.FromString(w.dir), Transient: true}
}

// Root implements [imgsrc.Files]: the store makes that directory itself.
func (w *walkedFiles) Root(context.Context) (*imgsrc.File, error) { return nil, nil }

func (w *walkedFiles) Entries(ctx context.Context, emit func(*imgsrc.File) error) error {
	list := w.entries
	if w.s.opener != nil && w.s.isOwn(w.dir) {
		list = w.kept
	}
	if err := list(ctx, emit); err != nil {
		return fmt.Errorf("walking %s: %w", w.dir, err)
	}
	return nil
}

func (w *walkedFiles) entries(ctx context.Context, emit func(*imgsrc.File) error) error {
	root, err := w.openRoot()
	if err != nil {
		return err
	}
	e := &walker{ctx: ctx, vfs: w.vfs, emit: emit, root: root, below: -1, links: map[[2]uint64]string{}}
	e.names, e.value = make([]byte, maxXattr), make([]byte, maxXattr)
	if w.parent != "" {
		switch e.below, err = openDir(w.parent); {
		case err == nil:
			defer unix.Close(e.below)
		case !errors.Is(err, imgsrc.ErrNotFound):
			return err
		}
	}
	return e.dir("", e.below >= 0)
}

// A walker lists directories as the entries of a tar. It has one directory of the layer open at a time, and the same one
// of the layer underneath, however deep they lie.
type walker struct {
	ctx   context.Context
	vfs   bool
	emit  func(*imgsrc.File) error
	root  int                  // the layer's directory
	below int                  // with vfs, that of the layer underneath; negative if there is none
	links map[[2]uint64]string // the first name of each file that has several

	names, value []byte // room for extended attributes
}

// A found is a directory that was met in another one.
type found struct {
	*imgsrc.File
	as     unix.Stat_t
	opaque bool
	was    *unix.Stat_t // the same one in the layer underneath; nil if there is none
}

// dir lists a directory of the layer, and then those in it; below says whether the layer underneath has it as well.
func (e *walker) dir(rel string, below bool) error {
	if err := e.ctx.Err(); err != nil {
		return err
	}
	dirs, err := e.list(rel, below)
	if err != nil {
		return err
	}
	for _, d := range dirs {
		if err := e.subdir(d); err != nil {
			return err
		}
	}
	return nil
}

// list emits what is in a directory, but for the directories: it returns them.
func (e *walker) list(rel string, below bool) ([]found, error) {
	d, err := openListed(e.root, rel)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	under := &listed{}
	if below {
		under, err = openListed(e.below, rel)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		defer under.Close()
	}
	for _, name := range under.names {
		if _, there := slices.BinarySearch(d.names, name); !there {
			if err := e.whiteout(rel, name); err != nil {
				return nil, err
			}
		}
	}
	var dirs []found
	for _, name := range d.names {
		f, err := e.entry(d, under, filepath.Join(rel, name), name)
		if err != nil {
			return nil, err
		}
		if f != nil {
			dirs = append(dirs, *f)
		}
	}
	return dirs, nil
}

// A listed is an open directory. The zero value is one that is not there.
type listed struct {
	f     *os.File
	names []string // sorted
}

func openListed(root int, rel string) (*listed, error) {
	f, err := subdir(root, rel)
	if err != nil {
		return &listed{}, err
	}
	names, err := f.Readdirnames(-1)
	if err != nil {
		f.Close()
		return &listed{}, err
	}
	slices.Sort(names)
	return &listed{f: f, names: names}, nil
}

func (l *listed) Close() {
	if l.f != nil {
		l.f.Close()
	}
}

// stat looks at an entry of the directory, and follows no link.
func (l *listed) stat(name string) (unix.Stat_t, error) {
	var st unix.Stat_t
	if l.f == nil {
		return st, unix.ENOENT
	}
	err := unix.Fstatat(int(l.f.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW)
	return st, err
}

func (e *walker) whiteout(rel, name string) error {
	return e.emit(&imgsrc.File{Name: filepath.Join(rel, ".wh."+name), Type: '0'})
}

// entry emits an entry of the directory d, whose counterpart in the layer below is under. A directory it returns.
func (e *walker) entry(d, under *listed, path, name string) (*found, error) {
	st, err := d.stat(name)
	if err != nil {
		return nil, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if err := d.checkOwner(name, &st); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if !e.vfs && st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0 {
		return nil, e.whiteout(filepath.Dir(path), name)
	}
	f := &imgsrc.File{
		Name: path, Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid, Sec: st.Mtim.Sec, Nsec: uint32(st.Mtim.Nsec),
	}
	if f.Type = typeOf(st.Mode); f.Type == 0 {
		return nil, nil // a socket
	}
	if f.Xattrs, err = e.xattrs(d, name); err != nil {
		return nil, fmt.Errorf("reading the extended attributes of %s: %w", path, err)
	}
	was, err := under.stat(name)
	there := err == nil
	if f.Type == '5' {
		return newFound(f, st, was, there), nil
	}
	key := [2]uint64{st.Dev, st.Ino}
	if first, ok := e.links[key]; ok && st.Nlink > 1 {
		return nil, e.emit(&imgsrc.File{Name: path, Type: '1', Link: first})
	}
	if there && sameAs(&was, &st) {
		return nil, nil
	}
	if st.Nlink > 1 {
		e.links[key] = path
	}
	switch f.Type {
	case '0':
		f.Size, f.Stored = st.Size, st.Size
	case '2':
		if f.Link, err = d.readlink(name); err != nil {
			return nil, &os.PathError{Op: "readlink", Path: path, Err: err}
		}
	case '3', '4':
		f.Major, f.Minor = unix.Major(st.Rdev), unix.Minor(st.Rdev)
	}
	return nil, e.emit(f)
}

// newFound takes the marks of overlayfs off a directory.
func newFound(f *imgsrc.File, st, was unix.Stat_t, there bool) *found {
	d := &found{File: f, as: st}
	if there && was.Mode&unix.S_IFMT == unix.S_IFDIR {
		d.was = &was
	}
	d.opaque = slices.ContainsFunc(f.Xattrs, func(x imgsrc.Xattr) bool {
		return (x.Name == "trusted.overlay.opaque" || x.Name == "user.overlay.opaque") && x.Value == "y"
	})
	f.Xattrs = slices.DeleteFunc(f.Xattrs, func(x imgsrc.Xattr) bool {
		return strings.HasPrefix(x.Name, "trusted.overlay.") || strings.HasPrefix(x.Name, "user.overlay.")
	})
	return d
}

// subdir emits a directory, unless the layer below has the same one, and what is in it.
func (e *walker) subdir(d found) error {
	if was := d.was; was == nil || was.Mode != d.as.Mode || was.Uid != d.as.Uid || was.Gid != d.as.Gid || was.Mtim != d.as.Mtim {
		if err := e.emit(d.File); err != nil {
			return err
		}
	}
	if d.opaque {
		if err := e.emit(&imgsrc.File{Name: filepath.Join(d.Name, ".wh..wh..opq"), Type: '0'}); err != nil {
			return err
		}
	}
	return e.dir(d.Name, d.was != nil)
}

// sameAs says whether a file of the layer below is the same one, as far as stat tells: vfs copies what it does not
// change.
func sameAs(was, st *unix.Stat_t) bool {
	return was.Mode == st.Mode && was.Uid == st.Uid && was.Gid == st.Gid &&
		was.Size == st.Size && was.Mtim == st.Mtim && was.Rdev == st.Rdev
}

func typeOf(mode uint32) byte {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return '0'
	case unix.S_IFLNK:
		return '2'
	case unix.S_IFCHR:
		return '3'
	case unix.S_IFBLK:
		return '4'
	case unix.S_IFDIR:
		return '5'
	case unix.S_IFIFO:
		return '6'
	}
	return 0
}

// readlink returns where a symlink in the directory leads.
func (l *listed) readlink(name string) (string, error) {
	target := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(l.f.Fd()), name, target)
	return string(target[:max(n, 0)]), err
}

// maxXattr is how many bytes the names of a file's extended attributes may have together, and the value of each.
const maxXattr = 64 << 10

// xattrs returns the extended attributes of an entry of a directory. A file system without any has none.
func (e *walker) xattrs(l *listed, name string) ([]imgsrc.Xattr, error) {
	path := fmt.Sprintf("/proc/self/fd/%d/%s", l.f.Fd(), name) // these calls take paths only
	n, err := unix.Llistxattr(path, e.names)
	if err == unix.ENOTSUP || n == 0 && err == nil {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []imgsrc.Xattr
	for name := range strings.SplitSeq(strings.TrimSuffix(string(e.names[:n]), "\x00"), "\x00") {
		k, err := unix.Lgetxattr(path, name, e.value)
		if err == unix.ENODATA {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		all = append(all, imgsrc.Xattr{Name: name, Value: string(e.value[:k])})
	}
	slices.SortFunc(all, func(a, b imgsrc.Xattr) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}
