package images

import (
	"archive/tar"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"time"
)

// Epoch is the time of everything that is given no other: 2024-01-02 03:04:05 UTC.
var Epoch = time.Date(2024, 1, 2, 3, 4, 5, 0, time.UTC)

// An Entry is one member of a layer's tar. Names go into the tar as they are.
type Entry struct {
	tar.Header
	// Data is a regular file's content, unless Path is set.
	Data []byte
	// Path is a file of this machine whose content is taken: Header.Size bytes.
	Path string
	// Extents are where the data of a sparse file lies; Data holds it without the holes. Nil: not sparse.
	Extents []Extent
}

// An Extent is a run of data in a sparse file, in bytes.
type Extent struct{ Offset, Length int64 }

func entry(typ byte, name string, mode int64) Entry {
	return Entry{Header: tar.Header{Typeflag: typ, Name: name, Mode: mode, ModTime: Epoch}}
}

// File is a regular file, mode 0644.
func File(name, data string) Entry {
	e := entry(tar.TypeReg, name, 0o644)
	e.Data, e.Size = []byte(data), int64(len(data))
	return e
}

// Dir is a directory, mode 0755.
func Dir(name string) Entry { return entry(tar.TypeDir, name+"/", 0o755) }

// Symlink is a symbolic link to target.
func Symlink(name, target string) Entry {
	e := entry(tar.TypeSymlink, name, 0o777)
	e.Linkname = target
	return e
}

// Link is a hard link to the entry named target.
func Link(name, target string) Entry {
	e := entry(tar.TypeLink, name, 0o644)
	e.Linkname = target
	return e
}

// Device is a node of type tar.TypeChar, tar.TypeBlock or tar.TypeFifo, mode 0600.
func Device(name string, typ byte, major, minor int64) Entry {
	e := entry(typ, name, 0o600)
	e.Devmajor, e.Devminor = major, minor
	return e
}

// Whiteout removes name from the layers below.
func Whiteout(name string) Entry { return File(path.Join(path.Dir(name), ".wh."+path.Base(name)), "") }

// Opaque removes from the layers below all that is in the directory dir.
func Opaque(dir string) Entry { return File(path.Join(dir, ".wh..wh..opq"), "") }

// Sparse is a regular file of size bytes that has data, in order, at extents and holes elsewhere.
func Sparse(name string, size int64, data string, extents ...Extent) Entry {
	e := File(name, data)
	e.Size, e.Extents = size, extents
	return e
}

// WithMode returns e with other permission bits, set-user-id and the like included.
func (e Entry) WithMode(mode int64) Entry { e.Mode = mode; return e }

// WithOwner returns e with another owner.
func (e Entry) WithOwner(uid, gid int) Entry { e.Uid, e.Gid = uid, gid; return e }

// WithTime returns e with another modification time; nanoseconds are kept.
func (e Entry) WithTime(t time.Time) Entry { e.ModTime, e.Format = t, tar.FormatPAX; return e }

// WithXattr returns e with one more extended attribute.
func (e Entry) WithXattr(key, value string) Entry {
	records := map[string]string{"SCHILY.xattr." + key: value}
	for k, v := range e.PAXRecords {
		records[k] = v
	}
	e.PAXRecords = records
	return e
}

// Tree returns the files, directories and symbolic links below root, a directory of this machine, as entries below
// prefix, in lexical order, without what cannot be read, until their content reaches limit bytes (0: no limit). Modes are kept; owners and
// times are not.
func Tree(prefix, root string, limit int64) ([]Entry, error) {
	var entries []Entry
	var total int64
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			if p == root {
				return err
			}
			return nil // a directory that this user may not list
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		e, ok := fromHost(path.Join(prefix, filepath.ToSlash(rel)), p, d)
		if !ok || e.Name == "./" {
			return nil
		}
		if total += e.Size; limit > 0 && total > limit {
			return filepath.SkipAll
		}
		entries = append(entries, e)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("collecting the files of %s: %w", root, err)
	}
	return entries, nil
}

// HostFile is the file at p, a path of this machine (symbolic links are followed), as an entry called name.
func HostFile(name, p string) (Entry, error) {
	info, err := os.Stat(p)
	if err != nil {
		return Entry{}, fmt.Errorf("taking a file: %w", err)
	}
	e := entry(tar.TypeReg, name, int64(info.Mode().Perm()))
	e.Path, e.Size = p, info.Size()
	return e, nil
}

func fromHost(name, p string, d fs.DirEntry) (Entry, bool) {
	info, err := d.Info()
	if err != nil {
		return Entry{}, false
	}
	switch d.Type() {
	case fs.ModeDir:
		return Dir(name).WithMode(int64(info.Mode().Perm())), true
	case fs.ModeSymlink:
		target, err := os.Readlink(p)
		return Symlink(name, target), err == nil
	case 0:
		f, err := os.Open(p)
		if err != nil {
			return Entry{}, false
		}
		_ = f.Close()
		e := entry(tar.TypeReg, name, int64(info.Mode().Perm()))
		e.Path, e.Size = p, info.Size()
		return e, true
	}
	return Entry{}, false
}
