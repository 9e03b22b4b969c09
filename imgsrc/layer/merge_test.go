package layer

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
)

// entries is a layer in memory: imgsrc.Files without bodies. Where is the number of the entry, so that a test sees whose
// body a name has.
type entries []imgsrc.File

func (e entries) Key() imgsrc.FilesKey { return imgsrc.FilesKey{} }
func (e entries) Close() error         { return nil }

func (e entries) Root(ctx context.Context) (*imgsrc.File, error) {
	return RootOf(func(emit func(*imgsrc.File) error) error { return e.Entries(ctx, emit) })
}

func (e entries) ReadBody(context.Context, imgsrc.Body, []byte, int64) (int, error) {
	return 0, imgsrc.ErrAbsent
}

func (e entries) Entries(_ context.Context, emit func(*imgsrc.File) error) error {
	for i := range e {
		f := e[i]
		if f.Mode == 0 {
			f.Mode = 0o644
		}
		if err := emit(&f); err != nil {
			return err
		}
	}
	return nil
}

func index(t testing.TB, e entries) *Index {
	t.Helper()
	x, err := BuildIndex(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func merged(t testing.TB, layers ...entries) *Tree {
	t.Helper()
	var all []*Index
	for _, l := range layers {
		all = append(all, index(t, l))
	}
	tree, err := Merge(t.Context(), all)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func reg(name, body string) imgsrc.File {
	w := uint64(0)
	for _, c := range []byte(body) {
		w = w<<8 | uint64(c)
	}
	return imgsrc.File{Name: name, Type: '0', Where: w}
}
func dir(name string, mode uint32) imgsrc.File { return imgsrc.File{Name: name, Type: '5', Mode: mode} }
func hard(name, to string) imgsrc.File         { return imgsrc.File{Name: name, Type: '1', Link: to} }
func sym(name, to string) imgsrc.File          { return imgsrc.File{Name: name, Type: '2', Link: to} }

// show lists a tree, a line a node: the path, and what it is.
func show(t testing.TB, tree *Tree) string {
	t.Helper()
	var b strings.Builder
	var walk func(dir uint32)
	walk = func(dir uint32) {
		first, count, _ := tree.Dir(dir)
		for n := first; n < first+count; n++ {
			if tree.Parent(n) != dir {
				t.Errorf("the parent of %d is %d, not %d", n, tree.Parent(n), dir)
			}
			if got, ok := tree.Child(dir, tree.Name(n)); !ok || got != n {
				t.Errorf("%q is not found under its name", tree.Path(n))
			}
			if n > first && tree.Name(n-1) >= tree.Name(n) {
				t.Errorf("%q after %q", tree.Name(n), tree.Name(n-1))
			}
			fmt.Fprintf(&b, "/%s %s\n", tree.Path(n), describe(t, tree, n))
			if _, _, ok := tree.Dir(n); ok {
				walk(n)
			}
		}
	}
	walk(0)
	return b.String()
}

func describe(t testing.TB, tree *Tree, n uint32) string {
	t.Helper()
	a, err := tree.Attr(n)
	if err != nil {
		return "lost"
	}
	var s string
	switch a.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		s = fmt.Sprintf("dir %o", a.Mode&0o7777)
		if a.Implicit {
			s += " implicit"
		}
		return s
	case unix.S_IFLNK:
		target, _ := tree.Readlink(n)
		s = "-> " + target
	case unix.S_IFREG:
		p, _ := tree.Place(n)
		var body []byte
		for w := p.Body.Where; w > 0; w >>= 8 {
			body = append(body, byte(w))
		}
		slices.Reverse(body)
		s = string(body)
	default:
		s = fmt.Sprintf("%o %x", a.Mode, a.Rdev)
	}
	if in := tree.Inode(n); a.Nlink > 1 {
		s += fmt.Sprintf(" links %d", a.Nlink)
		if in != n {
			s += " of /" + tree.Path(in)
		}
	}
	return s
}

func TestMerge(t *testing.T) {
	for name, test := range map[string]struct {
		layers []entries
		want   string
	}{
		"nothing":      {nil, ""},
		"empty layers": {[]entries{{}, {}}, ""},
		"cleaned names": {
			[]entries{{reg("./a", "1"), reg("/b", "2"), reg("c/../d", "3"), reg("../../e", "4"), dir("./", 0o700), reg("x//y/.", "5")}},
			"/a 1\n/b 2\n/d 3\n/e 4\n/x dir 755 implicit\n/x/y 5\n",
		},
		"the last of two": {
			[]entries{{reg("a", "1"), reg("a", "2"), dir("d", 0o700), dir("d", 0o711)}},
			"/a 2\n/d dir 711\n",
		},
		"file over directory and back": {
			[]entries{{dir("a", 0o755), reg("a/x", "1"), reg("a", "2"), reg("b", "3"), dir("b", 0o755), reg("b/y", "4")},
				{dir("a", 0o700), reg("b", "5")}},
			"/a dir 700\n/b 5\n",
		},
		"in one layer a directory that was a file merges with the one below": {
			[]entries{{dir("a", 0o755), reg("a/x", "1")}, {reg("a", "2"), dir("a", 0o700), reg("a/y", "3")}},
			"/a dir 700\n/a/x 1\n/a/y 3\n",
		},
		"through a symbolic link": {
			[]entries{{sym("lib", "usr/lib"), dir("usr", 0o755), dir("usr/lib", 0o755)}, {reg("lib/x", "1")}},
			"/lib dir 755 implicit\n/lib/x 1\n/usr dir 755\n/usr/lib dir 755\n",
		},
		"through a symbolic link in one layer": {
			[]entries{{sym("lib", "usr/lib"), reg("lib/x", "1")}},
			"/lib dir 755 implicit\n/lib/x 1\n",
		},
		"whiteouts": {
			[]entries{{dir("d", 0o755), reg("d/a", "1"), reg("d/b", "2"), reg("top", "3")},
				{reg("d/.wh.a", ""), reg(".wh.top", ""), reg(".wh.never", "")}},
			"/d dir 755 implicit\n/d/b 2\n",
		},
		"a whiteout is for the layers below, wherever it stands": {
			[]entries{{dir("d", 0o755), reg("d/old", "1"), reg("f", "2")},
				{dir("d", 0o700), reg("d/new", "3"), reg(".wh.d", ""), reg(".wh.f", ""), reg("f", "4")}},
			"/d dir 700\n/d/new 3\n/f 4\n",
		},
		"a whiteout below an opaque directory": {
			[]entries{{dir("d", 0o755), reg("d/old", "1"), dir("d/s", 0o755), reg("d/s/x", "2")},
				{reg("d/new", "3"), reg("d/.wh..wh..opq", ""), dir("d", 0o700)}, {dir("d/s", 0o711)}},
			"/d dir 755 implicit\n/d/new 3\n/d/s dir 711\n",
		},
		"an opaque root": {
			[]entries{{reg("a", "1")}, {reg(".wh..wh..opq", ""), reg("b", "2")}},
			"/b 2\n",
		},
		"odd marks": {
			[]entries{{reg("a", "1")}, {reg(".wh.", ""), reg(".wh..", ""), reg(".wh...", ""), reg(".wh..wh.plnk/1", "x"), reg(".wh..wh.aufs", ""), reg(".wh.a/b", "")}},
			"",
		},
		"a hard-linked whiteout": {
			[]entries{{reg("a", "1"), reg("b", "2")}, {reg(".wh.a", ""), hard(".wh.b", ".wh.a")}},
			"",
		},
		"a character device 0:0": {
			[]entries{{reg("a", "1"), reg("b", "2")}, {{Name: "a", Type: '3'}, {Name: "b", Type: '3', Major: 1, Minor: 3}}},
			"/b 20644 103\n",
		},
		"hard links": {
			[]entries{{reg("b", "1"), hard("a", "b"), hard("d/c", "/b")}, {reg(".wh.b", "")}},
			"/a 1 links 2\n/d dir 755 implicit\n/d/c 1 links 2 of /a\n",
		},
		"a hard link takes its target as it stands": {
			[]entries{{reg("a", "1"), hard("b", "a"), reg("a", "2"), hard("c", "a")}},
			"/a 2 links 2\n/b 1\n/c 2 links 2 of /a\n",
		},
		"a hard link to a lower layer": {
			[]entries{{reg("d/a", "1"), sym("s", "d")}, {hard("b", "d/a"), hard("c", "b")}, {hard("e", "c")}},
			"/b 1 links 4\n/c 1 links 4 of /b\n/d dir 755 implicit\n/d/a 1 links 4 of /b\n/e 1 links 4 of /b\n/s -> d\n",
		},
		"a hard link to what a layer between has hidden": {
			[]entries{{reg("a", "1")}, {reg(".wh.a", "")}, {hard("b", "a")}},
			"/b lost\n",
		},
		"a hard link to nothing, to a directory, and through a symbolic link": {
			[]entries{{dir("d", 0o755), reg("d/f", "1"), sym("s", "d")}, {hard("a", "no"), hard("b", "d"), hard("c", "s/f"), hard("e", "e")}},
			"/a lost\n/b lost\n/c lost\n/d dir 755\n/d/f 1\n/e lost\n/s -> d\n",
		},
		"the topmost directory": {
			[]entries{{dir("d", 0o700)}, {dir("d", 0o711)}, {reg("d/x", "1")}},
			"/d dir 755 implicit\n/d/x 1\n",
		},
		"names are bytes": {
			[]entries{{reg("\xff", "1"), reg("a\nb", "2"), reg(strings.Repeat("n", 255), "3"), reg(strings.Repeat("n", 256), "4")}},
			"/a\nb 2\n/" + strings.Repeat("n", 255) + " 3\n/\xff 1\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			if got := show(t, merged(t, test.layers...)); got != test.want {
				t.Errorf("got:\n%s\nwant:\n%s", got, test.want)
			}
		})
	}
}

// A layer by itself shows its marks, and the files below it that it links to.
func TestOneLayer(t *testing.T) {
	base := index(t, entries{reg("a", "1"), reg("gone", "2")})
	top := index(t, entries{hard("b", "a"), hard("c", "b"), reg(".wh.gone", ""), hard("d", "no"), reg("e/.wh..wh..opq", "")})
	want := "/.wh.gone \n/b 1 links 2\n/c 1 links 2 of /b\n/d lost\n/e dir 755 implicit\n/e/.wh..wh..opq \n"
	tree := NewTree([]*Index{base}, top)
	if got := show(t, tree); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
	b, _ := tree.Child(0, "b")
	if p, ok := tree.Place(b); !ok || p.Layer != 0 || p.Body.Path != "a" {
		t.Errorf("%+v, %v", p, ok)
	}
	if top.LinksOut() == base.LinksOut() {
		t.Error("which layer links out?")
	}
	if got := show(t, NewTree(nil, base)); got != "/a 1\n/gone 2\n" {
		t.Error(got)
	}
}

func TestMergeRoot(t *testing.T) {
	for name, test := range map[string]struct {
		layers []entries
		want   uint32
	}{
		"none says":         {[]entries{{reg("a", "")}, {}}, 0o755},
		"the lower one":     {[]entries{{dir("./", 0o711)}, {reg("a", "")}}, 0o711},
		"the topmost":       {[]entries{{dir("./", 0o711)}, {dir("/", 0o700)}, {}}, 0o700},
		"a file is no root": {[]entries{{reg("./", "")}}, 0o755},
		"not the first":     {[]entries{{reg("a", ""), dir("./", 0o711)}}, 0o755},
		"below opaque":      {[]entries{{dir("./", 0o711)}, {reg(".wh..wh..opq", "")}}, 0o711},
	} {
		a, err := merged(t, test.layers...).Attr(0)
		if err != nil || a.Mode != unix.S_IFDIR|test.want {
			t.Errorf("%s: %o, %v", name, a.Mode, err)
		}
	}
}

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

func TestChanges(t *testing.T) {
	below := []entries{{
		dir("same", 0o755), reg("same/x", "1"), dir("op", 0o755), reg("op/old", "1"), reg("op/keep", "1"), reg("f2d", "1"), dir("d2f", 0o755),
		reg("d2f/q", "1"), dir("gone", 0o755), reg("gone/a", "1"), dir("chg", 0o755), dir("w", 0o755), reg("w/a", "1"),
		dir("deep", 0o755), dir("deep/er", 0o755), dir("deep/er/still", 0o755),
	}}
	top := entries{
		dir("same", 0o755), reg("same/x", "1"), dir("op", 0o755), reg("op/.wh..wh..opq", ""), reg("op/new", "1"), reg("op/keep", "1"),
		dir("newop", 0o755), reg("newop/.wh..wh..opq", ""), reg("newop/n", "1"), reg(".wh.nothere", ""), reg(".wh.gone", ""),
		dir("f2d", 0o755), reg("f2d/k", "1"), reg("d2f", "1"), dir("chg", 0o700), dir("w", 0o755), reg("w/.wh.a", ""),
		reg("zz/y/x", "1"), reg("new\nline\\", "1"), dir("deep", 0o755), dir("deep/er", 0o700), dir("deep/er/still", 0o755), reg("deep/er/still/a", "1"),
	}
	want := `C /chg
C /d2f
C /deep
C /deep/er
C /deep/er/still
A /deep/er/still/a
C /f2d
A /f2d/k
D /gone
A /new\012line\134
A /newop
A /newop/n
D /nothere
D /op
C /op/keep
A /op/new
C /same/x
C /w
D /w/a
A /zz
A /zz/y
A /zz/y/x
`
	var indexes []*Index
	for _, l := range below {
		indexes = append(indexes, index(t, l))
	}
	got, err := Changes(t.Context(), indexes, index(t, top))
	if err != nil || string(got) != want {
		t.Errorf("%v, got:\n%s\nwant:\n%s", err, got, want)
	}
	if got, err := Changes(t.Context(), nil, index(t, below[0][:2])); err != nil || string(got) != "A /same\nA /same/x\n" {
		t.Errorf("the base: %q, %v", got, err)
	}
}

// longPaths is a layer whose paths take many times what it takes itself.
type longPaths struct{ entries }

func (longPaths) Entries(_ context.Context, emit func(*imgsrc.File) error) error {
	at := strings.Repeat(strings.Repeat("d", 254)+"/", 15)
	for i := range maxChanges/len(at) + 1 {
		if err := emit(&imgsrc.File{Name: fmt.Sprint(at, i), Type: '0'}); err != nil {
			return err
		}
	}
	return nil
}

func (longPaths) Key() imgsrc.FilesKey { return imgsrc.FilesKey{Digest: "sha256:1234"} }

// A list of changes is bounded, and who asks is told which layer it is.
func TestChangesTooLong(t *testing.T) {
	x, err := BuildIndex(t.Context(), longPaths{})
	if err != nil {
		t.Fatal(err)
	}
	if list, err := Changes(t.Context(), nil, x); !errors.Is(err, imgsrc.ErrDamaged) || !strings.Contains(err.Error(), "sha256:1234") {
		t.Errorf("%d bytes, %v, want ErrDamaged naming the layer", len(list), err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Changes(ctx, nil, x); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want context.Canceled", err)
	}
}

// What only belongs to eStargz does not show; a file of that name in another tar does.
func TestStargz(t *testing.T) {
	reg := func(name string) imgsrc.File { return imgsrc.File{Name: name, Type: '0'} }
	toc, mark := reg("stargz.index.json"), reg(".prefetch.landmark")
	for name, tt := range map[string]struct {
		entries entries
		want    string
	}{
		"eStargz":                {entries{reg("a"), mark, reg("b"), toc}, "a b"},
		"with ./":                {entries{reg("./a"), reg("./.no.prefetch.landmark"), reg("./stargz.index.json")}, "a"},
		"another file behind":    {entries{reg("a"), mark, toc, reg("b")}, ".prefetch.landmark a b stargz.index.json"},
		"marks alone":            {entries{mark, reg("a")}, ".prefetch.landmark a"},
		"in another directory":   {entries{reg("a"), reg("d/stargz.index.json")}, "a d"},
		"a directory":            {entries{reg("a"), {Name: "stargz.index.json", Type: '5', Mode: 0o755}}, "a stargz.index.json"},
		"twice, once at the end": {entries{toc, reg("a"), toc}, "a stargz.index.json"},
		"nothing else":           {entries{toc}, ""},
	} {
		tree := merged(t, tt.entries)
		var names []string
		for n := uint32(1); n < tree.Len(); n++ {
			if tree.Parent(n) == 0 {
				names = append(names, tree.Name(n))
			}
		}
		slices.Sort(names)
		if got := strings.Join(names, " "); got != tt.want {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
}
