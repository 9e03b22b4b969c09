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
// It is what `podman image diff` says of a layer in an overlay store: a whiteout is a D also if there is nothing for it to
// delete, an opaque directory is a D followed by what it has now, a directory is a C if its mode, owner or time is another,
// or if something was added or deleted somewhere below it, and a file is a C even if it is the same.
func Changes(ctx context.Context, below []*Index, layer *Index) ([]byte, error) {
	lower, err := Merge(ctx, below)
	if err != nil {
		return nil, err
	}
	c := &changes{x: layer, lower: lower}
	c.list(&changedDir{there: true, recorded: true})
	return c.out, nil
}

type changes struct {
	x     *Index
	lower *Tree
	out   []byte
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

// write writes a line, and before it those for the directories from in upwards that have none yet.
func (c *changes) write(kind byte, path string, in *changedDir) {
	var dirs []*changedDir
	for ; in != nil; in = in.in {
		if !in.recorded {
			in.recorded = true
			dirs = append(dirs, in)
		}
	}
	for _, d := range slices.Backward(dirs) {
		c.write('C', d.path, nil)
	}
	c.out = append(c.out, kind, ' ')
	for i := range len(path) {
		if b := path[i]; b < ' ' || b == 0x7f || b == '\\' {
			c.out = fmt.Appendf(c.out, "\\%03o", b)
		} else {
			c.out = append(c.out, b)
		}
	}
	c.out = append(c.out, '\n')
}
