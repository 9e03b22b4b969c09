package layout

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgfs/imgfs/imgsrc"
)

func TestOpenErrors(t *testing.T) {
	remove := func(path string) func(*testLayout) {
		return func(l *testLayout) { os.RemoveAll(filepath.Join(l.dir, path)) }
	}
	write := func(path, text string) func(*testLayout) {
		return func(l *testLayout) { l.file(path, text) }
	}
	for name, test := range map[string]struct {
		damage func(*testLayout)
		ref    string
		want   error
		text   string
	}{
		"nothing there":           {damage: remove("."), want: imgsrc.ErrNoSource, text: "not a directory"},
		"no oci-layout":           {damage: remove("oci-layout"), want: imgsrc.ErrNoSource, text: "no file oci-layout"},
		"oci-layout is not JSON":  {damage: write("oci-layout", "hello"), want: imgsrc.ErrDamaged, text: "oci-layout is not JSON"},
		"oci-layout is a list":    {damage: write("oci-layout", "[]"), want: imgsrc.ErrDamaged, text: "array"},
		"version 2":               {damage: write("oci-layout", `{"imageLayoutVersion":"2.0.0"}`), want: imgsrc.ErrNoSource, text: `"2.0.0"`},
		"no version":              {damage: write("oci-layout", `{}`), want: imgsrc.ErrNoSource, text: `""`},
		"no index.json":           {damage: remove("index.json"), want: imgsrc.ErrDamaged, text: "index.json is missing"},
		"index.json is not JSON":  {damage: write("index.json", `{"manifests": [}`), want: imgsrc.ErrDamaged, text: "at byte 16"},
		"index.json is cut short": {damage: write("index.json", `{"manifests": [`), want: imgsrc.ErrDamaged, text: "at byte 15"},
		"index.json is empty":     {damage: write("index.json", ``), want: imgsrc.ErrDamaged, text: "index.json"},
		"index.json is a list":    {damage: write("index.json", `[]`), want: imgsrc.ErrDamaged, text: "not an object"},
		"manifests is an object":  {damage: write("index.json", `{"manifests":{}}`), want: imgsrc.ErrDamaged, text: `"manifests"`},
		"two values":              {damage: write("index.json", `{"manifests":[]}{}`), want: imgsrc.ErrDamaged, text: "at byte 17"},
		"index.json is huge":      {damage: sparse("index.json", 100<<20), want: imgsrc.ErrDamaged, text: "104857600 bytes"},
		"index.json is a directory": {
			damage: func(l *testLayout) { remove("index.json")(l); os.Mkdir(filepath.Join(l.dir, "index.json"), 0o755) },
			want:   imgsrc.ErrDamaged, text: "not a regular file",
		},
		"index.json leads out": {
			damage: func(l *testLayout) {
				remove("index.json")(l)
				os.Symlink("/etc/passwd", filepath.Join(l.dir, "index.json"))
			},
			want: imgsrc.ErrDamaged, text: "out of the directory",
		},
		"no image of that name": {
			damage: func(l *testLayout) { l.name(l.image("a"), "web-1.0") },
			ref:    "web-2.0", want: imgsrc.ErrNoSource, text: `"web-2.0" there (there are "web-1.0")`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // one that is cut short is looked at for a second
			l := newLayout(t)
			test.damage(l)
			s, err := Open(t.Context(), Options{Dir: l.dir, Ref: test.ref, Log: discard})
			if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.text) || !strings.Contains(err.Error(), l.dir) {
				t.Errorf("%v, %v, want %v with %q and the directory", s, err, test.want, test.text)
			} else if strings.Contains(err.Error(), "\n") {
				t.Errorf("more than a line: %v", err)
			}
		})
	}
}

// sparse makes a file that is large and takes no room.
func sparse(path string, size int64) func(*testLayout) {
	return func(l *testLayout) {
		path := filepath.Join(l.dir, path)
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			l.Fatal(err)
		}
		if err := os.Truncate(path, size); err != nil {
			l.Fatal(err)
		}
	}
}

func TestIs(t *testing.T) {
	l := newLayout(t)
	if !Is(l.dir) {
		t.Error("a layout is not recognised")
	}
	if Is(t.TempDir()) || Is(filepath.Join(l.dir, "oci-layout")) || Is(filepath.Join(l.dir, "missing")) {
		t.Error("something else is taken for a layout")
	}
}

func TestName(t *testing.T) {
	l := newLayout(t)
	l.name(l.image("a"), "a/b:c")
	t.Chdir(filepath.Dir(l.dir))
	s, err := Open(t.Context(), Options{Dir: filepath.Base(l.dir), Ref: "a/b:c", Log: discard})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if want := "oci:" + l.dir + ":a/b:c"; s.Name() != want {
		t.Errorf("%s, want %s", s.Name(), want)
	}
}

// A layout without images is one.
func TestEmpty(t *testing.T) {
	for _, text := range []string{`{}`, `{"manifests":null}`, `{"schemaVersion":2,"manifests":[]}`} {
		l := newLayout(t)
		l.file("index.json", text)
		if got := list(t, l.open()); len(got.Images) != 0 || len(got.Problems) != 0 {
			t.Errorf("%s: %v, %v", text, shown(got), got.Problems)
		}
	}
}
