package layer

import (
	"context"
	"fmt"
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
