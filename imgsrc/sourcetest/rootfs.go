package sourcetest

import (
	"archive/tar"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/layer"
)

// A file is one of a root file system: an entry of a tar, or a directory that only the names of others speak of.
type file struct {
	*tarEntry        // nil: no tar has an entry for it
	outer     string // a hard link to a file that is not in its layer
}

func (f *file) isDir() bool {
	return f.tarEntry == nil && f.outer == "" || f.tarEntry != nil && f.Typeflag == tar.TypeDir
}

// A tree is a root file system by the files' paths. That of the root is empty.
type tree map[string]*file

// remove takes away all below a path, and what stands there itself.
func (t tree) remove(name string, itself bool) {
	below := name + "/"
	if name == "" {
		below = ""
	}
	for p := range t {
		if p != "" && p != name && strings.HasPrefix(p, below) || itself && p == name {
			delete(t, p)
		}
	}
}

// makeParents makes the directories above a path.
func (t tree) makeParents(name string) {
	for i, c := range name {
		if parent := name[:i]; c == '/' && (t[parent] == nil || !t[parent].isDir()) {
			t.put(parent, &file{})
		}
	}
}

// put puts a file in the place of what is there: the contents of a directory stay if it is one again.
func (t tree) put(name string, f *file) {
	if old := t[name]; old != nil && !(old.isDir() && f.isDir()) {
		t.remove(name, true)
	}
	t[name] = f
}

func clean(name string) string { return path.Clean("/" + name)[1:] }

// unpack is one layer by itself, with what it hides in those below: names, and the contents of directories.
func unpack(entries []tarEntry) (own tree, gone, emptied []string) {
	own = tree{"": {}}
	entries = withoutStargz(entries)
	for i := range entries {
		e := &entries[i]
		name := clean(e.Name)
		own.makeParents(name)
		dir, base := path.Split(name)
		hidden, isMark := strings.CutPrefix(base, ".wh.")
		switch {
		case base == ".wh..wh..opq":
			emptied = append(emptied, strings.TrimSuffix(dir, "/"))
		case isMark:
			gone = append(gone, dir+hidden)
		case name == "" && i > 0: // only the first entry is for the root
		case e.Typeflag == tar.TypeLink && own[clean(e.Linkname)] != nil:
			own.put(name, own[clean(e.Linkname)])
		case e.Typeflag == tar.TypeLink:
			own.put(name, &file{outer: clean(e.Linkname)})
		default:
			own.put(name, &file{tarEntry: e})
		}
	}
	return own, gone, emptied
}

// merge is what overlayfs shows of layers.
func merge(layers []Layer) tree {
	all := tree{"": {}}
	for _, l := range layers {
		own, gone, emptied := unpack(l.entries)
		below := maps.Clone(all)
		for _, name := range gone {
			all.remove(name, true)
		}
		for _, name := range emptied {
			all.remove(name, false)
		}
		for _, name := range slices.Sorted(maps.Keys(own)) {
			f := own[name]
			if f.outer != "" {
				f = below[f.outer]
			}
			if name != "" || f.tarEntry != nil {
				all.put(name, f)
			}
		}
	}
	return all
}

// describe says what is to be known of each file, in a line.
func (t tree) describe() map[string]string {
	names := map[*file][]string{}
	for name, f := range t {
		names[f] = append(names[f], name)
	}
	all := map[string]string{}
	for name, f := range t {
		if f.tarEntry == nil {
			all[name] = describeFile(known{mode: unix.S_IFDIR | 0o755, implicit: true})
			continue
		}
		k := known{
			mode: typeOf(f.Typeflag) | uint32(f.Mode)&0o7777, uid: uint32(f.Uid), gid: uint32(f.Gid), sec: f.ModTime.Unix(), nsec: uint32(f.ModTime.Nanosecond()),
			xattrs: xattrsOf(f.Header), rdev: uint32(unix.Mkdev(uint32(f.Devmajor), uint32(f.Devminor))), link: f.Linkname, body: f.body,
		}
		if !f.isDir() {
			slices.Sort(names[f])
			k.names = names[f]
		}
		all[name] = describeFile(k)
	}
	return all
}

func typeOf(flag byte) uint32 {
	return map[byte]uint32{
		tar.TypeReg: unix.S_IFREG, tar.TypeSymlink: unix.S_IFLNK, tar.TypeDir: unix.S_IFDIR, tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK,
		tar.TypeFifo: unix.S_IFIFO,
	}[flag]
}

func xattrsOf(h *tar.Header) map[string]string {
	all := map[string]string{}
	for key, value := range h.PAXRecords {
		if name, ok := strings.CutPrefix(key, "SCHILY.xattr."); ok {
			all[name] = value
		}
	}
	return all
}

// known is what describeFile has a line made of.
type known struct {
	mode, uid, gid, rdev, nsec uint32
	sec                        int64
	implicit                   bool
	link                       string
	xattrs                     map[string]string
	body                       []byte
	names                      []string // all of its names
}

func describeFile(k known) string {
	if k.implicit {
		return fmt.Sprintf("%o implicit", k.mode)
	}
	s := fmt.Sprintf("%o %d:%d %d.%09d %q", k.mode, k.uid, k.gid, k.sec, k.nsec, k.xattrs)
	switch k.mode & unix.S_IFMT {
	case unix.S_IFREG:
		s += fmt.Sprintf(" %d bytes %s", len(k.body), digest.FromBytes(k.body))
	case unix.S_IFLNK:
		s += fmt.Sprintf(" -> %q", k.link)
	case unix.S_IFCHR, unix.S_IFBLK:
		s += fmt.Sprintf(" device %x", k.rdev)
	}
	return s + fmt.Sprintf(" names %q", k.names)
}

// describeTree says of each file what tree.describe does.
func (s *suite) describeTree(t *layer.Tree, all []imgsrc.Files) map[string]string {
	s.Helper()
	names := map[uint32][]string{}
	for n := range t.Len() {
		names[t.Inode(n)] = append(names[t.Inode(n)], t.Path(n))
	}
	lines := map[string]string{}
	for n := range t.Len() {
		a, err := t.Attr(n)
		if err != nil {
			s.Error(err)
			continue
		}
		k := known{mode: a.Mode, uid: a.UID, gid: a.GID, rdev: a.Rdev, sec: a.Sec, nsec: a.Nsec, implicit: a.Implicit, xattrs: map[string]string{}}
		k.link, _ = t.Readlink(n)
		for _, x := range t.Xattrs(n) {
			k.xattrs[x.Name] = x.Value
		}
		if p, ok := t.Place(n); ok {
			k.body, err = s.readFile(all[p.Layer], p.Body, p.Size, p.Extents)
			if err != nil {
				s.Errorf("reading %q: %v", t.Path(n), err)
			}
		}
		if a.Mode&unix.S_IFMT != unix.S_IFDIR {
			k.names = names[t.Inode(n)]
			slices.Sort(k.names)
			if int(a.Nlink) != len(k.names) {
				s.Errorf("%q has %d links and the names %q", t.Path(n), a.Nlink, k.names)
			}
		}
		lines[t.Path(n)] = describeFile(k)
	}
	return lines
}

// readFile reads a file, and fills its holes.
func (s *suite) readFile(files imgsrc.Files, b imgsrc.Body, size int64, extents []imgsrc.Extent) ([]byte, error) {
	stored := make([]byte, b.Size)
	if n, err := files.ReadBody(s.Context(), b, stored, 0); err != nil && err != io.EOF || int64(n) != b.Size {
		return nil, err
	}
	if extents == nil {
		return stored, nil
	}
	all := make([]byte, size)
	for _, x := range extents {
		copy(all[x.Off:x.Off+x.Len], stored)
		stored = stored[x.Len:]
	}
	return all, nil
}
