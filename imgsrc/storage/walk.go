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
	e := &walker{ctx: ctx, w: w, emit: emit, links: map[[2]uint64]string{}}
	if err := e.dir("", w.parent); err != nil {
		return fmt.Errorf("walking %s: %w", w.dir, err)
	}
	return nil
}

// A walker lists directories as the entries of a tar.
type walker struct {
	ctx   context.Context
	w     *walkedFiles
	emit  func(*imgsrc.File) error
	links map[[2]uint64]string // the first name of each file that has several
}

// dir lists a directory of the layer; below is the same one in the layer underneath, empty if there is none.
func (e *walker) dir(rel, below string) error {
	if err := e.ctx.Err(); err != nil {
		return err
	}
	names, err := readNames(filepath.Join(e.w.dir, rel))
	if err != nil {
		return err
	}
	if below != "" {
		gone, err := readNames(below)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		for _, name := range gone {
			if _, there := slices.BinarySearch(names, name); !there {
				if err := e.whiteout(rel, name); err != nil {
					return err
				}
			}
		}
	}
	for _, name := range names {
		under := ""
		if below != "" {
			under = filepath.Join(below, name)
		}
		if err := e.entry(rel, name, under); err != nil {
			return err
		}
	}
	return nil
}

// readNames returns the names in a directory, sorted.
func readNames(dir string) ([]string, error) {
	f, err := os.OpenFile(dir, unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	slices.Sort(names)
	return names, err
}

func (e *walker) whiteout(rel, name string) error {
	return e.emit(&imgsrc.File{Name: filepath.Join(rel, ".wh."+name), Type: '0'})
}

func (e *walker) entry(rel, name, below string) error {
	path := filepath.Join(rel, name)
	host := filepath.Join(e.w.dir, path)
	var st unix.Stat_t
	if err := unix.Lstat(host, &st); err != nil {
		return &os.PathError{Op: "stat", Path: host, Err: err}
	}
	if !e.w.vfs && st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0 {
		return e.whiteout(rel, name)
	}
	f := &imgsrc.File{
		Name: path, Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid, Sec: st.Mtim.Sec, Nsec: uint32(st.Mtim.Nsec),
	}
	var err error
	if f.Xattrs, err = readXattrs(host); err != nil {
		return err
	}
	if f.Type = typeOf(st.Mode); f.Type == 0 {
		return nil // a socket
	}
	if f.Type != '5' {
		key := [2]uint64{st.Dev, st.Ino}
		if first, ok := e.links[key]; ok && st.Nlink > 1 {
			return e.emit(&imgsrc.File{Name: path, Type: '1', Link: first})
		}
		if below != "" && sameAs(below, &st) {
			return nil
		}
		if st.Nlink > 1 {
			e.links[key] = path
		}
	}
	switch f.Type {
	case '0':
		f.Size, f.Stored = st.Size, st.Size
	case '2':
		if f.Link, err = os.Readlink(host); err != nil {
			return err
		}
	case '3', '4':
		f.Major, f.Minor = unix.Major(st.Rdev), unix.Minor(st.Rdev)
	case '5':
		return e.subdir(f, below, &st)
	}
	return e.emit(f)
}

func (e *walker) subdir(f *imgsrc.File, below string, st *unix.Stat_t) error {
	opaque := slices.ContainsFunc(f.Xattrs, func(x imgsrc.Xattr) bool {
		return (x.Name == "trusted.overlay.opaque" || x.Name == "user.overlay.opaque") && x.Value == "y"
	})
	f.Xattrs = slices.DeleteFunc(f.Xattrs, func(x imgsrc.Xattr) bool {
		return strings.HasPrefix(x.Name, "trusted.overlay.") || strings.HasPrefix(x.Name, "user.overlay.")
	})
	var was unix.Stat_t
	isDir := below != "" && unix.Lstat(below, &was) == nil && was.Mode&unix.S_IFMT == unix.S_IFDIR
	if !isDir {
		below = ""
	}
	if !isDir || was.Mode != st.Mode || was.Uid != st.Uid || was.Gid != st.Gid || was.Mtim != st.Mtim {
		if err := e.emit(f); err != nil {
			return err
		}
	}
	if opaque {
		if err := e.emit(&imgsrc.File{Name: filepath.Join(f.Name, ".wh..wh..opq"), Type: '0'}); err != nil {
			return err
		}
	}
	return e.dir(f.Name, below)
}

// sameAs says whether a file of the layer below is the same one, as far as stat tells: vfs copies what it does not
// change.
func sameAs(below string, st *unix.Stat_t) bool {
	var was unix.Stat_t
	return unix.Lstat(below, &was) == nil && was.Mode == st.Mode && was.Uid == st.Uid && was.Gid == st.Gid &&
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

// readXattrs returns the extended attributes of a file. A file system without any has none.
func readXattrs(path string) ([]imgsrc.Xattr, error) {
	list := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, list)
	if err == unix.ENOTSUP || n == 0 && err == nil {
		return nil, nil
	}
	if err != nil {
		return nil, &os.PathError{Op: "llistxattr", Path: path, Err: err}
	}
	var all []imgsrc.Xattr
	value := make([]byte, 64<<10)
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00") {
		k, err := unix.Lgetxattr(path, name, value)
		if err == unix.ENODATA {
			continue
		}
		if err != nil {
			return nil, &os.PathError{Op: "lgetxattr", Path: path, Err: err}
		}
		all = append(all, imgsrc.Xattr{Name: name, Value: string(value[:k])})
	}
	slices.SortFunc(all, func(a, b imgsrc.Xattr) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}
