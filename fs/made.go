package fs

import (
	"errors"
	"maps"
	"path"
	"strings"
	"syscall"
	"time"

	"github.com/imgfs/imgfs/imgsrc"
)

// What mkdir and ln make that no source stores is kept in memory until the mount ends: directories that names can be put
// into, and links whose names are no references, as ln -f makes one before it renames it.

// maxMade is how many of them there may be.
const maxMade = 10_000

// remake changes what was made in a name space, and brings the tree up to it. Error: ENOSPC, with nothing changed.
func (f *FS) remake(sp *nameSpace, change func(*imgsrc.Made)) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	made := imgsrc.Made{Dirs: maps.Clone(sp.made.Dirs), Links: maps.Clone(sp.made.Links)}
	if made.Dirs == nil {
		made = imgsrc.Made{Dirs: map[string]bool{}, Links: map[string]string{}}
	}
	change(&made)
	if n := len(made.Dirs) + len(made.Links); n > maxMade && n > len(sp.made.Dirs)+len(sp.made.Links) {
		return syscall.ENOSPC
	}
	sp.made = made
	old := f.state.Load()
	s := *old
	s.names[sp.n] = sp.state(old.snap, old.names[sp.n], false, time.Now())
	f.state.Store(&s)
	return nil
}

// lingerTime is how long a directory stays that has lost its last name to rm.
const lingerTime = 2 * time.Second

// lingers is what Made.Dirs says of such a directory; of one that mkdir has made it says true.
const lingers = false

// linger keeps the directories above a name that is about to go, as far as they have no other: rm -r wants to remove them
// itself, and complains if they are gone.
func (f *FS) linger(p place) {
	s := f.state.Load().names[p.sp.n]
	var dirs []string
	for dir := path.Dir(p.path); dir != "."; dir = path.Dir(dir) {
		children, ok := s.tree.Dir(dir)
		if _, made := s.made.Dirs[dir]; !ok || len(children) > 1 || made {
			break
		}
		dirs = append(dirs, dir)
	}
	if len(dirs) == 0 {
		return
	}
	err := f.remake(p.sp, func(m *imgsrc.Made) {
		for _, dir := range dirs {
			m.Dirs[dir] = lingers
		}
	})
	if err != nil {
		return // then rm complains
	}
	time.AfterFunc(lingerTime, func() {
		_ = f.remake(p.sp, func(m *imgsrc.Made) { // there is less of it: no error
			for _, dir := range dirs {
				if stays, ok := m.Dirs[dir]; ok && !stays { // mkdir may have made it anew
					delete(m.Dirs, dir)
				}
			}
		})
	})
}

// isMade says whether the link at a path is one that is only here.
func (s *nameState) isMade(path string) bool { return s.made.Links[path] != "" }

// A place is where a request makes a name, or takes one away.
type place struct {
	sp   *nameSpace
	dir  node   // the directory
	name string // in it
	path string // below images/ or registry/
}

// place returns the place called name in a directory; not ok if no names are there.
func (f *FS) place(dir node, name string) (p place, ok bool) {
	if dir.image() != 0 || name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return place{}, false // no kernel asks for these, and in a path they mean something else
	}
	for _, sp := range f.spaces {
		if dir.view() != sp.dirs {
			continue
		}
		path, ok := sp.dirPath(dir)
		if !ok {
			return place{}, false
		}
		return place{sp: sp, dir: dir, name: name, path: joinName(path, name)}, true
	}
	return place{}, false
}

// remote says whether the names there are those of registries.
func (p place) remote() bool { return p.sp.n == spaceRegistry }

// treeDir is the directory's path below the mountpoint.
func (p place) treeDir() string {
	top := "images"
	if p.remote() {
		top = "registry"
	}
	return joinName(top, strings.TrimSuffix(strings.TrimSuffix(p.path, p.name), "/"))
}

// typed is the name that somebody means who makes a link here. Error: imgsrc.ErrInvalid if no name can be meant.
func (p place) typed() (string, error) {
	name := p.path
	if !p.remote() {
		if unescaped, ok := imgsrc.NameFromPath(strings.Split(p.path, "/")); ok {
			name = unescaped
		}
	}
	if _, d, ok := strings.Cut(name, "@"); ok && strings.Contains(d, ":") {
		return "", imgsrc.Of(imgsrc.ErrInvalid, errors.New("a digest is given by the image, not by linking to it"))
	}
	if len(p.name) == 64 && strings.Trim(p.name, "0123456789abcdef") == "" {
		return "", imgsrc.Of(imgsrc.ErrInvalid, errors.New("an id is no name: say what the link is to be called, NAME:TAG"))
	}
	return name, nil
}

// isTemporary says whether a name that is no reference is one that a program makes to rename it, and not a reference that
// somebody has mistyped.
func (p place) isTemporary() bool {
	return strings.HasPrefix(p.name, ".") || !strings.Contains(p.name, ":")
}

// isCoreutils says whether ln from GNU coreutils has made up a name. In a layout it would do as one.
func (p place) isCoreutils() bool {
	rest, ok := strings.CutPrefix(p.name, "Cu")
	return ok && len(rest) == 6 && strings.IndexFunc(rest, func(r rune) bool {
		return (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z')
	}) < 0
}

// holder returns the image that has a name in this name space, or nil.
func (sp *nameSpace) holder(snap *imgsrc.Snapshot, name string) *imgsrc.Entry {
	if sp.n == spaceRegistry {
		return snap.ByRemoteName(name)
	}
	return snap.ByName(name)
}

// nameAt returns the name whose link is listed at a path and leads to an image.
func (sp *nameSpace) nameAt(snap *imgsrc.Snapshot, path, id string) (string, bool) {
	e := snap.ByID(id)
	if e == nil {
		return "", false
	}
	for {
		for _, name := range sp.of(e) {
			if elems, ok := imgsrc.NamePath(name); ok && strings.Join(elems, "/") == path {
				return name, true
			}
		}
		var displaced bool // by a directory, see imgsrc.NameTree
		if path, displaced = strings.CutSuffix(path, ":"); !displaced {
			return "", false
		}
	}
}
