package layer

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/imgfs/imgfs/imgsrc"
)

// maxChanges is how many bytes a list of changes may have. The paths of deep directories take many times the layer's own.
const maxChanges = 256 << 20

// Changes lists what a layer does to the ones below it (base first), a line a path, in the order of a walk: "A /path"
// for what was not there, "C /path" for what was, and "D /path" for what is there no more. Bytes that would break a
// line, and backslashes, are written as in /proc/mounts: \012.
//
// It follows `podman image diff` for a layer in an overlay store: a whiteout is a D also if there is nothing for it to
// delete, an opaque directory is a D followed by what it has now, a directory is a C if its mode, owner or time is
// another, or if something was added or deleted somewhere below it, and a file is a C even if it is the same. It
// differs where podman does not look (a directory of which only the owner is another), looks at what no layer says
// (the length of a directory on the disk), or gives up (a file that has become a directory).
//
// Errors: imgsrc.ErrDamaged for a list of more than maxChanges bytes; Merge's; ctx's.
func Changes(ctx context.Context, below []*Index, layer *Index) ([]byte, error) {
	lower, err := Merge(ctx, below)
	if err != nil {
		return nil, err
	}
	c := &changes{ctx: ctx, x: layer, lower: lower}
	if err := c.list(&changedDir{there: true, recorded: true}); err != nil {
		return nil, fmt.Errorf("listing the changes of layer %s: %w", layer.digest, err)
	}
	slices.SortFunc(c.lines, func(a, b changeLine) int { return walkOrder(a.path, b.path) })
	out := make([]byte, 0, c.size)
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
	ctx   context.Context
	x     *Index
	lower *Tree
	lines []changeLine
	size  int // of the text, in bytes
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

func (c *changes) list(d *changedDir) error {
	if err := c.ctx.Err(); err != nil {
		return err
	}
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
		if err := c.entry(d, n); err != nil {
			return err
		}
	}
	return nil
}

func (c *changes) entry(d *changedDir, n named) error {
	path := d.path + "/" + n.name
	if n.hides {
		return c.write('D', path, d)
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
	var err error
	switch {
	case !there:
		err = c.write('A', path, d)
	case wasDir && in.isDir():
		sub.below, sub.there = was, true
		switch {
		case isOpaque(c.x, n.ent):
			err = c.write('D', path, d)
		case c.same(in, was):
			sub.recorded = false
		default:
			err = c.write('C', path, nil)
		}
	default:
		err = c.write('C', path, nil)
	}
	if err == nil && in.isDir() {
		err = c.list(sub)
	}
	return err
}

// same says whether a directory is as it was.
func (c *changes) same(in *inode, was uint32) bool {
	a, err := c.lower.Attr(was)
	return err == nil && in.mode&implicit == 0 && !a.Implicit &&
		a.Mode == in.mode && a.UID == in.uid && a.GID == in.gid && a.Sec == in.sec && a.Nsec == in.nsec
}

// write notes a change, and that of the directories from in upwards of which none is noted yet.
func (c *changes) write(kind byte, path string, in *changedDir) error {
	for ; in != nil; in = in.in {
		if !in.recorded {
			in.recorded = true
			if err := c.line(changeLine{'C', in.path}); err != nil {
				return err
			}
		}
	}
	return c.line(changeLine{kind, path})
}

func (c *changes) line(l changeLine) error {
	if c.size += l.len(); c.size > maxChanges {
		return fmt.Errorf("%w: they take more than %d bytes", imgsrc.ErrDamaged, maxChanges)
	}
	c.lines = append(c.lines, l)
	return nil
}

// isEscaped says whether a byte is written as four.
func isEscaped(b byte) bool { return b < ' ' || b == 0x7f || b == '\\' }

// len is how many bytes append appends.
func (l changeLine) len() int {
	n := len("A ") + len(l.path) + len("\n")
	for i := range len(l.path) {
		if isEscaped(l.path[i]) {
			n += 3
		}
	}
	return n
}

func (l changeLine) append(out []byte) []byte {
	out = append(out, l.kind, ' ')
	for i := range len(l.path) {
		if b := l.path[i]; isEscaped(b) {
			out = fmt.Appendf(out, "\\%03o", b)
		} else {
			out = append(out, b)
		}
	}
	return append(out, '\n')
}
