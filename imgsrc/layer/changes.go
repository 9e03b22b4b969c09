package layer

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// Changes lists what a layer does to the ones below it (base first), a line a path, in the order of a walk: "A /path"
// for what was not there, "C /path" for what was, and "D /path" for what is there no more. Bytes that would break a
// line, and backslashes, are written as in /proc/mounts: \012.
//
// It follows `podman image diff` for a layer in an overlay store: a whiteout is a D also if there is nothing for it to
// delete, an opaque directory is a D followed by what it has now, a directory is a C if its mode, owner or time is
// another, or if something was added or deleted somewhere below it, and a file is a C even if it is the same. It
// differs where podman does not look (a directory of which only the owner is another), looks at what no layer says
// (the length of a directory on the disk), or gives up (a file that has become a directory).
func Changes(ctx context.Context, below []*Index, layer *Index) ([]byte, error) {
	lower, err := Merge(ctx, below)
	if err != nil {
		return nil, err
	}
	c := &changes{x: layer, lower: lower}
	c.list(&changedDir{there: true, recorded: true})
	slices.SortFunc(c.lines, func(a, b changeLine) int { return walkOrder(a.path, b.path) })
	var out []byte
	for _, l := range c.lines {
		out = l.append(out)
	}
	return out, nil
}

// walkOrder compares paths as a walk meets them: a directory's entries come right after it.
func walkOrder(a, b string) int {
	for i := range min(len(a), len(b)) {
		switch x, y := a[i], b[i]; {
		case x == y:
		case x == '/':
			return -1
		case y == '/':
			return 1
		default:
			return int(x) - int(y)
		}
	}
	return len(a) - len(b)
}

type changeLine struct {
	kind byte
	path string
}

type changes struct {
	x     *Index
	lower *Tree
	lines []changeLine
}

// A changedDir is a directory of the layer.
type changedDir struct {
	ent      uint32
	below    uint32 // the same directory below, if it is there
	there    bool
	path     string
	recorded bool        // it has a line
	in       *changedDir // nil: this is the root
}

func (c *changes) list(d *changedDir) {
	in := c.x.inodeOf(d.ent)
	var names []named
	for e := in.first; e < in.first+in.count; e++ {
		n := named{name: c.x.name(e), part: part{ent: e}}
		if isMark(n.name) {
			if n.name, n.hides = hiddenBy(n.name); !n.hides {
				continue
			}
		} else {
			n.hides = c.x.isWhiteout(c.x.inodeOf(e))
		}
		names = append(names, n)
	}
	slices.SortFunc(names, func(a, b named) int {
		if a.name != b.name || a.hides == b.hides {
			return strings.Compare(a.name, b.name)
		}
		if b.hides {
			return -1
		}
		return 1
	})
	for i, n := range names {
		if i > 0 && names[i-1].name == n.name {
			continue // the layer hides what it replaces
		}
		c.entry(d, n)
	}
}

func (c *changes) entry(d *changedDir, n named) {
	path := d.path + "/" + n.name
	if n.hides {
		c.write('D', path, d)
		return
	}
	in := c.x.inodeOf(n.ent)
	sub := &changedDir{ent: n.ent, path: path, recorded: true, in: d}
	was, there := uint32(0), false
	if d.there {
		was, there = c.lower.Child(d.below, n.name)
	}
	wasDir := false
	if there {
		_, _, wasDir = c.lower.Dir(was)
	}
	switch {
	case !there:
		c.write('A', path, d)
	case wasDir && in.isDir():
		sub.below, sub.there = was, true
		switch {
		case isOpaque(c.x, n.ent):
			c.write('D', path, d)
		case c.same(in, was):
			sub.recorded = false
		default:
			c.write('C', path, nil)
		}
	default:
		c.write('C', path, nil)
	}
	if in.isDir() {
		c.list(sub)
	}
}

// same says whether a directory is as it was.
func (c *changes) same(in *inode, was uint32) bool {
	a, err := c.lower.Attr(was)
	return err == nil && in.mode&implicit == 0 && !a.Implicit &&
		a.Mode == in.mode && a.UID == in.uid && a.GID == in.gid && a.Sec == in.sec && a.Nsec == in.nsec
}

// write notes a change, and that of the directories from in upwards of which none is noted yet.
func (c *changes) write(kind byte, path string, in *changedDir) {
	for ; in != nil; in = in.in {
		if !in.recorded {
			in.recorded = true
			c.lines = append(c.lines, changeLine{'C', in.path})
		}
	}
	c.lines = append(c.lines, changeLine{kind, path})
}

func (l changeLine) append(out []byte) []byte {
	out = append(out, l.kind, ' ')
	for i := range len(l.path) {
		if b := l.path[i]; b < ' ' || b == 0x7f || b == '\\' {
			out = fmt.Appendf(out, "\\%03o", b)
		} else {
			out = append(out, b)
		}
	}
	return append(out, '\n')
}
