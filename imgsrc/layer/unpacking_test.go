package layer

import (
	"fmt"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
)

// A naive is a file system that layers are unpacked to, each into a directory of its own, in the most direct way.
type naive struct {
	children map[string]*naive // of a directory; nil otherwise
	file     *imgsrc.File      // nil: an implicit directory
	target   string            // of a hard link out of its layer
	lost     bool
}

// naiveUnpack is a layer by itself.
func naiveUnpack(e entries) *naive {
	root := &naive{children: map[string]*naive{}}
	for i := range e {
		f := e[i]
		if f.Mode == 0 {
			f.Mode = 0o644
		}
		clean := strings.TrimPrefix(path.Clean("/"+f.Name), "/")
		if clean == "" {
			if f.Type == '5' {
				root.file = &f
			}
			continue
		}
		at := root
		parts := strings.Split(clean, "/")
		if slices.ContainsFunc(parts, func(s string) bool { return len(s) > 255 }) {
			continue
		}
		for _, p := range parts[:len(parts)-1] {
			if at.children[p] == nil || at.children[p].children == nil {
				at.children[p] = &naive{children: map[string]*naive{}}
			}
			at = at.children[p]
		}
		last := parts[len(parts)-1]
		switch {
		case f.Type == '5' && at.children[last] != nil && at.children[last].children != nil:
			at.children[last].file = &f
		case f.Type == '5':
			at.children[last] = &naive{children: map[string]*naive{}, file: &f}
		case f.Type == '1':
			if to := root.find(f.Link); to != nil && to.children == nil {
				at.children[last] = to // the very same file
			} else {
				at.children[last] = &naive{file: &f, target: f.Link}
			}
		default:
			at.children[last] = &naive{file: &f}
		}
	}
	return root
}

func (n *naive) find(p string) *naive {
	clean := strings.TrimPrefix(path.Clean("/"+p), "/")
	if clean == "" {
		return nil
	}
	for part := range strings.SplitSeq(clean, "/") {
		if n.children == nil || n.children[part] == nil {
			return nil
		}
		n = n.children[part]
	}
	return n
}

// naiveApply puts an unpacked layer over what the ones below it show, as overlayfs does.
func naiveApply(lower, upper *naive, shown *naive) *naive {
	out := &naive{children: map[string]*naive{}, file: upper.file}
	if _, opaque := upper.children[opaqueMark]; !opaque && lower != nil && lower.children != nil {
		for name, c := range lower.children {
			_, gone := upper.children[markPrefix+name]
			if odd := name == "." || name == ".." || strings.HasPrefix(name, ".wh."); gone && !odd {
				continue
			}
			out.children[name] = c
		}
	}
	for name, c := range upper.children {
		if strings.HasPrefix(name, markPrefix) {
			continue
		}
		switch {
		case c.children != nil:
			out.children[name] = naiveApply(out.children[name], c, shown)
		case c.target != "":
			if to := shown.find(c.target); to != nil && to.children == nil && !to.lost {
				out.children[name] = to
			} else {
				out.children[name] = &naive{lost: true}
			}
		case c.file.Type == '3' && c.file.Major == 0 && c.file.Minor == 0:
			delete(out.children, name)
		default:
			out.children[name] = c
		}
	}
	return out
}

func (n *naive) show() string {
	count := map[*naive]int{}
	first := map[*naive]string{}
	var visit func(at string, n *naive, do func(at string, n *naive))
	visit = func(at string, n *naive, do func(at string, n *naive)) {
		// In the order in which trees are numbered: a directory's entries before those of its subdirectories.
		names := slices.Sorted(mapKeys(n.children))
		for _, name := range names {
			do(at+"/"+name, n.children[name])
		}
		for _, name := range names {
			if c := n.children[name]; c.children != nil {
				visit(at+"/"+name, c, do)
			}
		}
	}
	visit("", n, func(at string, n *naive) {
		count[n]++
		if _, ok := first[n]; !ok {
			first[n] = at
		}
	})
	var b strings.Builder
	var list func(at string, n *naive)
	list = func(at string, n *naive) {
		for _, name := range slices.Sorted(mapKeys(n.children)) {
			c, here := n.children[name], at+"/"+name
			var s string
			switch {
			case c.lost:
				s = "lost"
			case c.children != nil && c.file == nil:
				s = "dir 755 implicit"
			case c.children != nil:
				s = fmt.Sprintf("dir %o", c.file.Mode)
			case c.file.Type == '2':
				s = "-> " + c.file.Link
			case c.file.Type == '3':
				s = fmt.Sprintf("%o %x", unix.S_IFCHR|c.file.Mode, rdevOf(c.file.Major, c.file.Minor))
			default:
				s = string(rune(c.file.Where))
			}
			if c.children == nil && !c.lost && count[c] > 1 {
				s += fmt.Sprintf(" links %d", count[c])
				if first[c] != here {
					s += " of " + first[c]
				}
			}
			fmt.Fprintf(&b, "%s %s\n", here, s)
			if c.children != nil {
				list(here, c)
			}
		}
	}
	list("", n)
	return b.String()
}

func mapKeys(m map[string]*naive) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// makeLayers makes layers out of numbers, of few names, so that everything meets everything.
func makeLayers(next func(n int) int) []entries {
	names := []string{"a", "b", ".wh.a", ".wh.b", ".wh..wh..opq", ".wh.", "..", ".wh..wh.x", "a.b"}
	name := func() string {
		var parts []string
		for range 1 + next(3) {
			parts = append(parts, names[next(len(names))])
		}
		return strings.Join(parts, "/")
	}
	var layers []entries
	body := 'A'
	for range 1 + next(4) {
		var l entries
		for range next(9) {
			f := imgsrc.File{Name: name(), Type: []byte("00122355")[next(8)], Mode: []uint32{0o644, 0o700}[next(2)]}
			switch f.Type {
			case '0':
				f.Where = uint64(body)
				body = 'A' + (body-'A'+1)%26
			case '1', '2':
				f.Link = name()
			case '3':
				f.Minor = uint32(next(2))
			}
			l = append(l, f)
		}
		layers = append(layers, l)
	}
	return layers
}

func checkMerge(t *testing.T, layers []entries) {
	t.Helper()
	shown := &naive{children: map[string]*naive{}}
	for _, l := range layers {
		shown = naiveApply(shown, naiveUnpack(l), shown)
	}
	want, got := shown.show(), show(t, merged(t, layers...))
	if got != want {
		text := ""
		for i, l := range layers {
			for _, f := range l {
				text += fmt.Sprintf("%d: %q type %c mode %o link %q where %d dev %d\n", i, f.Name, f.Type, f.Mode, f.Link, f.Where, f.Minor)
			}
		}
		t.Errorf("layers:\n%sgot:\n%s\nwant:\n%s", text, got, want)
	}
}

// The merge is what unpacking the layers one by one gives.
func TestMergeIsUnpacking(t *testing.T) {
	for seed := range uint64(20000) {
		r := rand.New(rand.NewPCG(7, seed))
		if checkMerge(t, makeLayers(r.IntN)); t.Failed() {
			t.Fatalf("with seed %d", seed)
		}
	}
}

func FuzzMerge(f *testing.F) {
	f.Add([]byte("\x02\x04\x01\x02\x03\x04\x05\x06\x07\x00\x01\x02\x03"))
	f.Fuzz(func(t *testing.T, b []byte) {
		checkMerge(t, makeLayers(func(n int) int {
			if len(b) == 0 {
				return 0
			}
			v := int(b[0]) % n
			b = b[1:]
			return v
		}))
	})
}
