package imgsrc

import (
	"cmp"
	"iter"
	"slices"
	"strings"
)

// A NameTree is the directory tree below images/ that some names make: a link for each name, directories above it. It is
// immutable and does not depend on the order in which the names came.
//
// A link and a directory may want the same place ("h.io/a" and "h.io/a/b:c"). The directory gets it, and the link is
// listed with ":" appended, which no reference ends in.
type NameTree struct {
	dirs map[string][]NameChild // by path; children sorted by name
	long map[string]string      // the ids of links whose last element is longer than 255 bytes, by path
}

// NameChild is one entry of a directory of a NameTree.
type NameChild struct {
	Name string
	Dir  bool
	ID   string // of the image that the link leads to; empty for a directory
}

// Made is what somebody has put into a NameTree that no name accounts for.
type Made struct {
	Dirs  map[string]bool   // paths of directories
	Links map[string]string // the ids of images, by path; a name's own link goes before
}

// NewNameTree makes the tree of the names that it is given, each with the id of its image, and of what was made. Names
// that can be no file name (empty, or with NUL) are left out. Of two equal names the first counts.
func NewNameTree(names iter.Seq2[string, string], made Made) *NameTree {
	t := &NameTree{dirs: map[string][]NameChild{"": nil}, long: map[string]string{}}
	for path := range made.Dirs {
		t.makeDir(path)
	}
	for name, id := range names {
		path, ok := pathOf(name)
		if !ok {
			continue
		}
		dir, base := splitPath(path)
		t.makeDir(dir)
		if len(base) > maxName {
			t.addLong(path, id)
			continue
		}
		t.dirs[dir] = append(t.dirs[dir], NameChild{Name: base, ID: id})
	}
	for path, id := range made.Links {
		dir, base := splitPath(path)
		t.makeDir(dir)
		t.dirs[dir] = append(t.dirs[dir], NameChild{Name: base, ID: id})
	}
	for dir, children := range t.dirs {
		settled, long := settle(children)
		t.dirs[dir] = slices.Clip(settled)
		for _, c := range long {
			t.addLong(joinPath(dir, c.Name), c.ID)
		}
	}
	return t
}

func (t *NameTree) addLong(path, id string) {
	if _, ok := t.long[path]; !ok {
		t.long[path] = id
	}
}

// makeDir adds the directory and those above it, unless they are there.
func (t *NameTree) makeDir(path string) {
	if _, ok := t.dirs[path]; ok {
		return
	}
	dir, base := splitPath(path)
	t.makeDir(dir)
	t.dirs[dir] = append(t.dirs[dir], NameChild{Name: base, Dir: true})
	t.dirs[path] = nil
}

// settle sorts a directory's children and gives each a name of its own. It works in place. A link whose name becomes
// too long to be listed is returned in long.
func settle(children []NameChild) (settled, long []NameChild) {
	// A directory comes before a link of its name; links of one name stay as they came.
	slices.SortStableFunc(children, func(a, b NameChild) int {
		switch c := cmp.Compare(a.Name, b.Name); {
		case c != 0:
			return c
		case a.Dir == b.Dir:
			return 0
		case a.Dir:
			return -1
		}
		return 1
	})
	settled = children[:0]
	var displaced []NameChild
	for _, c := range children {
		last := len(settled) - 1
		switch {
		case last < 0 || settled[last].Name != c.Name:
			settled = append(settled, c)
		case settled[last].Dir && (len(displaced) == 0 || displaced[len(displaced)-1].Name != c.Name):
			displaced = append(displaced, c)
		}
	}
	taken := len(settled)
	for _, c := range displaced {
		// "a:" may be a name in a layout. Two displaced links never get one name: no directory's name ends in a colon.
		for c.Name += ":"; ; c.Name += ":" {
			if _, ok := find(settled[:taken], c.Name); !ok {
				break
			}
		}
		if len(c.Name) > maxName {
			long = append(long, c)
			continue
		}
		settled = append(settled, c)
	}
	if len(displaced) > 0 {
		slices.SortFunc(settled, func(a, b NameChild) int { return cmp.Compare(a.Name, b.Name) })
	}
	return settled, long
}

func find(children []NameChild, name string) (NameChild, bool) {
	i, ok := slices.BinarySearchFunc(children, name, func(c NameChild, name string) int { return cmp.Compare(c.Name, name) })
	if !ok {
		return NameChild{}, false
	}
	return children[i], true
}

// Dir returns the children of the directory at path, sorted by name; "" is images/ itself. Links that are too long to
// be listed are not among them. The caller must not change the slice. Not ok if there is no directory at path.
func (t *NameTree) Dir(path string) (children []NameChild, ok bool) {
	children, ok = t.dirs[path]
	return children, ok
}

// Lookup returns what stands at path, listed or not; "" is images/ itself, a directory without a name.
func (t *NameTree) Lookup(path string) (NameChild, bool) {
	dir, base := splitPath(path)
	if _, ok := t.dirs[path]; ok {
		return NameChild{Name: base, Dir: true}, true
	}
	if c, ok := find(t.dirs[dir], base); ok {
		return c, true
	}
	id, ok := t.long[path]
	return NameChild{Name: base, ID: id}, ok
}

func splitPath(path string) (dir, base string) {
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		return path[:i], path[i+1:]
	}
	return "", path
}

func joinPath(dir, base string) string {
	if dir == "" {
		return base
	}
	return dir + "/" + base
}
