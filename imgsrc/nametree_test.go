package imgsrc

import (
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func pairs(list [][2]string) iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		for _, p := range list {
			if !yield(p[0], p[1]) {
				return
			}
		}
	}
}

// show writes a directory as "name/" and "name=id".
func show(t testing.TB, tree *NameTree, path string) []string {
	t.Helper()
	children, ok := tree.Dir(path)
	if !ok {
		t.Fatalf("no directory %q", path)
	}
	list := []string{}
	for _, c := range children {
		if c.Dir {
			list = append(list, c.Name+"/"+c.ID)
		} else {
			list = append(list, c.Name+"="+c.ID)
		}
	}
	return list
}

func TestNameTree(t *testing.T) {
	long := strings.Repeat("l", 300)
	tag := strings.Repeat("t", 128)
	repo := strings.Repeat("r", 200)
	tree := NewNameTree(pairs([][2]string{
		{"h.io/a/b:c", "1"},
		{"h.io/a", "2"},
		{"h.io/a:v1", "3"},
		{"localhost", "4"},
		{"localhost:", "5"},
		{"localhost/web:1", "6"},
		{"latest", "7"},
		{"x/y:z", "8"},
		{"latest", "not the first"},
		{"localhost", "nor this"},
		{long, "9"},
		{"h.io/" + repo + ":" + tag, "10"},
		{"", "none"},
		{"a\x00", "none"},
		{"..", "11"},
	}), Made{
		Dirs:  map[string]bool{"h.io/made/empty": true, "localhost": true},
		Links: map[string]string{"h.io/a:v1": "not the name's", "h.io/made/temp": "12"},
	})
	for path, want := range map[string][]string{
		"":          {"%2E%2E=11", "h.io/", "latest=7", "localhost/", "localhost:=5", "localhost::=4", "x%2Fy:z=8"},
		"h.io":      {"a/", "a:=2", "a:v1=3", "made/"},
		"h.io/made": {"empty/", "temp=12"},
		"h.io/a":    {"b:c=1"},

		"h.io/made/empty": {},
		"localhost":       {"web:1=6"},
	} {
		if got := show(t, tree, path); !slices.Equal(got, want) {
			t.Errorf("Dir(%q) = %q, want %q", path, got, want)
		}
	}
	for _, path := range []string{"h.io/a:", "h.io/b", "latest", "/", "h.io/", "/h.io", "."} {
		if c, ok := tree.Dir(path); ok {
			t.Errorf("Dir(%q) = %v", path, c)
		}
	}
	for path, want := range map[string]NameChild{
		"":                         {Dir: true},
		"h.io":                     {Name: "h.io", Dir: true},
		"h.io/a":                   {Name: "a", Dir: true},
		"h.io/a:":                  {Name: "a:", ID: "2"},
		"h.io/a/b:c":               {Name: "b:c", ID: "1"},
		"latest":                   {Name: "latest", ID: "7"},
		long:                       {Name: long, ID: "9"},
		"h.io/" + repo + ":" + tag: {Name: repo + ":" + tag, ID: "10"},
	} {
		if got, ok := tree.Lookup(path); !ok || got != want {
			t.Errorf("Lookup(%q) = %v, %v", path, got, ok)
		}
	}
	for _, path := range []string{"h.io/b", "h.io/a/b", "latest/x", "h.io/", "x/y:z", "nothing"} {
		if got, ok := tree.Lookup(path); ok {
			t.Errorf("Lookup(%q) = %v", path, got)
		}
	}
}

// TestNameTreeDisplacedTooLong: the colon can make a name too long to be listed.
func TestNameTreeDisplacedTooLong(t *testing.T) {
	// A repository's last part of 250 bytes would be a directory of a longer one; the host keeps the whole below 255.
	repo := strings.Repeat("r", 249)
	tree := NewNameTree(pairs([][2]string{{"h.io/" + repo, "1"}, {"h.io/" + repo + ":x", "2"}}), Made{})
	if got := show(t, tree, "h.io"); !slices.Equal(got, []string{repo + "=1", repo + ":x=2"}) {
		t.Errorf("Dir = %q", got)
	}
	settled, long := settle([]NameChild{{Name: strings.Repeat("d", 255), ID: "1"}, {Name: strings.Repeat("d", 255), Dir: true}})
	if len(settled) != 1 || !settled[0].Dir || len(long) != 1 || long[0].Name != strings.Repeat("d", 255)+":" || long[0].ID != "1" {
		t.Errorf("settle = %v, %v", settled, long)
	}
}

func TestNameTreeEmpty(t *testing.T) {
	tree := NewNameTree(pairs(nil), Made{})
	if c, ok := tree.Dir(""); !ok || len(c) != 0 {
		t.Errorf("Dir = %v, %v", c, ok)
	}
}

// TestNameTreeProperties: whatever the names and their order, each is found once, listings are sorted and without
// doubles, and every listed path leads where the listing says.
func TestNameTreeProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		names := map[string]string{}
		for i := range rapid.IntRange(0, 30).Draw(t, "count") {
			names[drawName(t, "name")] = fmt.Sprint(i)
		}
		tree := NewNameTree(maps.All(names), Made{})
		again := NewNameTree(maps.All(names), Made{}) // another order
		want := 0
		for name := range names {
			if _, ok := pathOf(name); ok {
				want++
			}
		}
		links := map[string]bool{}
		var walk func(path string)
		walk = func(path string) {
			children, ok := tree.Dir(path)
			if !ok {
				t.Fatalf("%q is listed as a directory and is none", path)
			}
			if others, _ := again.Dir(path); !slices.Equal(children, others) {
				t.Fatalf("Dir(%q) depends on the order: %v, %v", path, children, others)
			}
			for i, c := range children {
				checkElem(t, c.Name)
				if i > 0 && children[i-1].Name >= c.Name {
					t.Fatalf("Dir(%q): %q after %q", path, c.Name, children[i-1].Name)
				}
				if got, ok := tree.Lookup(joinPath(path, c.Name)); !ok || got != c {
					t.Fatalf("Lookup(%q) = %v, %v, listed as %v", joinPath(path, c.Name), got, ok, c)
				}
				if c.Dir {
					walk(joinPath(path, c.Name))
				} else {
					links[c.ID] = true
				}
			}
		}
		walk("")
		if len(links)+len(tree.long) != want {
			t.Fatalf("%d links listed and %d not, for %d names", len(links), len(tree.long), want)
		}
	})
}

func tenThousand() [][2]string {
	var list [][2]string
	for i := range 10_000 {
		name := fmt.Sprintf("registry.example.org:5000/team-%d/project/app-%d:v1.%d", i%20, i%500, i)
		list = append(list, [2]string{name, strings.Repeat("a", 64)})
	}
	return list
}

func BenchmarkNewNameTree(b *testing.B) {
	list := tenThousand()
	b.ReportAllocs()
	for b.Loop() {
		NewNameTree(pairs(list), Made{})
	}
}

func BenchmarkNameTreeLookup(b *testing.B) {
	list := tenThousand()
	tree := NewNameTree(pairs(list), Made{})
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if _, ok := tree.Lookup(list[i%len(list)][0]); !ok {
			b.Fatal("not found")
		}
	}
}
