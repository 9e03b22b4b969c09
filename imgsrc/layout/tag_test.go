package layout

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/indexjson"
	"github.com/imgfs/imgfs/test/needs"
)

func TestCheckName(t *testing.T) {
	s := newLayout(t).open()
	for _, name := range []string{"latest", "web-1.0", "a/b:c", "1", "docker.io/library/nginx:1.27", "a--b", "A_b+c@d", "x@sha256:" + strings.Repeat("a", 64), strings.Repeat("a", 255)} {
		if got, err := s.CheckName(name); err != nil || got != name {
			t.Errorf("%q: %q, %v", name, got, err)
		}
	}
	for _, name := range badNames {
		if got, err := s.CheckName(name); !errors.Is(err, imgsrc.ErrInvalid) {
			t.Errorf("%q: %q, %v, want ErrInvalid", name, got, err)
		}
	}
}

var badNames = []string{"", " ", "a b", "/a", "a/", "a//b", "..", "../a", "-a", "a-", "a:", "a::b", "a---b", "a__b", "ä", "a\n", "a\x00", "a%2Fb", strings.Repeat("a", 256)}

// The text of index.json before and after. %A and %B stand for the descriptors of two images.
func TestTagText(t *testing.T) {
	type names []string
	for name, test := range map[string]struct {
		before      string
		add, remove names
		after       string // empty: as before
		err         error
	}{
		"first name": {
			before: `{"manifests":[{%A}]}`, add: names{"x"},
			after: `{"manifests":[{%A,"annotations":{"org.opencontainers.image.ref.name":"x"}}]}`,
		},
		"second name": {
			before: `{"manifests":[{%A,"platform":{"os":"linux"},"annotations":{"k":"v","org.opencontainers.image.ref.name":"x"},"n":12345678901234567890},{%B}]}`, add: names{"y"},
			after: `{"manifests":[{%A,"platform":{"os":"linux"},"annotations":{"k":"v","org.opencontainers.image.ref.name":"x"},"n":12345678901234567890},{%B},` +
				`{%A,"platform":{"os":"linux"},"annotations":{"k":"v","org.opencontainers.image.ref.name":"y"},"n":12345678901234567890}]}`,
		},
		"a name that is there": {before: `{"manifests":[{%A,"annotations":{"org.opencontainers.image.ref.name":"x"}}]}`, add: names{"x"}},
		"taken from another": {
			before: `{"manifests":[{%B,"annotations":{"org.opencontainers.image.ref.name":"x"}},{%A}]}`, add: names{"x"},
			after: `{"manifests":[{%B},{%A,"annotations":{"org.opencontainers.image.ref.name":"x"}}]}`,
		},
		"taken from one that has two": {
			before: `{"manifests":[{%B,"annotations":{"org.opencontainers.image.ref.name":"x"}},{%A},{%B,"annotations":{"org.opencontainers.image.ref.name":"y"}}]}`, add: names{"x"},
			after: `{"manifests":[{%A,"annotations":{"org.opencontainers.image.ref.name":"x"}},{%B,"annotations":{"org.opencontainers.image.ref.name":"y"}}]}`,
		},
		"the last name goes": {
			before: `{"manifests":[{%A,"annotations":{"k":"v","org.opencontainers.image.ref.name":"x"}}]}`, remove: names{"x"},
			after: `{"manifests":[{%A,"annotations":{"k":"v"}}]}`,
		},
		"one of two goes": {
			before: `{"manifests":[{%A,"annotations":{"org.opencontainers.image.ref.name":"x"}},{%A,"annotations":{"org.opencontainers.image.ref.name":"y"}}]}`, remove: names{"x"},
			after: `{"manifests":[{%A,"annotations":{"org.opencontainers.image.ref.name":"y"}}]}`,
		},
		"both go": {
			before: `{"manifests":[{%A,"annotations":{"org.opencontainers.image.ref.name":"x"}},{%A,"annotations":{"org.opencontainers.image.ref.name":"y"}}]}`, remove: names{"y", "x"},
			after: `{"manifests":[{%A}]}`,
		},
		"renamed": {
			before: `{"manifests":[{%A,"annotations":{"org.opencontainers.image.ref.name":"x"}},{%B}]}`, add: names{"y"}, remove: names{"x"},
			after: `{"manifests":[{%A,"annotations":{"org.opencontainers.image.ref.name":"y"}},{%B}]}`,
		},
		"an absent name": {before: `{"manifests":[{%A}]}`, add: names{"y"}, remove: names{"x"}, err: imgsrc.ErrNotFound},
		"another's name": {before: `{"manifests":[{%A},{%B,"annotations":{"org.opencontainers.image.ref.name":"x"}}]}`, remove: names{"x"}, err: imgsrc.ErrNotFound},
		"no such image":  {before: `{"manifests":[{%B}]}`, add: names{"x"}, err: imgsrc.ErrNotFound},
		"a bad name":     {before: `{"manifests":[{%A}]}`, add: names{"x", "y y"}, err: imgsrc.ErrInvalid},
		"docker save, a second name": {
			before: `{"manifests":[{%A,"annotations":{"io.containerd.image.name":"docker.io/library/x:1","org.opencontainers.image.ref.name":"1"}}]}`, add: names{"y"},
			after: `{"manifests":[{%A,"annotations":{"io.containerd.image.name":"docker.io/library/x:1","org.opencontainers.image.ref.name":"1"}},` +
				`{%A,"annotations":{"org.opencontainers.image.ref.name":"y"}}]}`,
		},
		"docker save, its name goes": {
			before: `{"manifests":[{%A,"annotations":{"io.containerd.image.name":"docker.io/library/x:1","org.opencontainers.image.ref.name":"1"}}]}`, remove: names{"docker.io/library/x:1"},
			after: `{"manifests":[{%A}]}`,
		},
		"docker save, the bare tag is given away": {
			before: `{"manifests":[{%B,"annotations":{"io.containerd.image.name":"docker.io/library/x:1","org.opencontainers.image.ref.name":"1"}},{%A}]}`, add: names{"1"},
			after: `{"manifests":[{%B,"annotations":{"io.containerd.image.name":"docker.io/library/x:1"}},{%A,"annotations":{"org.opencontainers.image.ref.name":"1"}}]}`,
		},
		"what is not understood stays": {
			before: `{"schemaVersion":2,"x":{"y":[1.0,"<&>",null]},"manifests":[7,{"digest":"?"},{%A},null],"annotations":{"z":"\u00e4"}}`, add: names{"x"},
			after: `{"schemaVersion":2,"x":{"y":[1.0,"<&>",null]},"manifests":[7,{"digest":"?"},{%A,"annotations":{"org.opencontainers.image.ref.name":"x"}},null],"annotations":{"z":"\u00e4"}}`,
		},
		"members that are there twice": {
			before: `{"manifests":[],"manifests":[{%A,"annotations":null,"annotations":{"org.opencontainers.image.ref.name":"x","org.opencontainers.image.ref.name":"y"}}]}`, remove: names{"y"},
			after: `{"manifests":[{%A}]}`,
		},
		"indented": {
			before: "{\n   \"manifests\": [\n      {%A}\n   ]\n}\n", add: names{"x"},
			after: "{\n   \"manifests\": [\n      {\n         %A,\n         \"annotations\": {\n            \"org.opencontainers.image.ref.name\": \"x\"\n         }\n      }\n   ]\n}\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLayout(t)
			a, b := l.image("a"), l.image("b")
			fill := func(s, sep, colon string) string {
				for k, d := range map[string]v1.Descriptor{"%A": a, "%B": b} {
					s = strings.ReplaceAll(s, k, fmt.Sprintf(`"mediaType"%[1]s"%[3]s",%[2]s"digest"%[1]s"%[4]s",%[2]s"size"%[1]s%[5]d`, colon, sep, d.MediaType, d.Digest, d.Size))
				}
				return s
			}
			before := fill(test.before, "", ":")
			after := fill(test.after, "", ":")
			if strings.Contains(test.after, "\n") {
				after = fill(test.after, "\n         ", ": ")
			}
			if test.after == "" {
				after = before
			}
			l.file("index.json", before)
			desc := imgsrc.Desc{ID: a.Digest.Encoded(), Digest: a.Digest, MediaType: a.MediaType, Size: a.Size}
			s := l.open()
			stamp := s.Stamp()
			if err := s.Tag(t.Context(), desc, test.add, test.remove); !errors.Is(err, test.err) {
				t.Fatalf("%v, want %v", err, test.err)
			}
			got, err := os.ReadFile(filepath.Join(l.dir, "index.json"))
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != after {
				t.Errorf("index.json is\n%s\nwant\n%s", got, after)
			}
			if moved := s.Stamp() != stamp; moved != (test.after != "") {
				t.Errorf("the stamp has moved: %v", moved)
			}
			wantClean(t, l)
		})
	}
}

// wantClean wants nothing in the layout that does not belong there.
func wantClean(t *testing.T, l *testLayout) {
	t.Helper()
	entries, err := os.ReadDir(l.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		switch e.Name() {
		case "blobs", "index.json", "oci-layout":
		default:
			t.Errorf("left in the layout: %s", e.Name())
		}
	}
}

// A manifest that only an index has gets an entry of its own.
func TestTagNested(t *testing.T) {
	l := newLayout(t)
	a, b := l.image("a"), l.image("b")
	ix := l.nested(a, b)
	l.name(ix, "ix")
	s := l.open()
	for _, img := range list(t, s).Images {
		if img.Desc().Digest == b.Digest {
			if err := s.Tag(t.Context(), img.Desc(), []string{"b", "b2"}, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	want := strings.Join([]string{show(ix, "", "ix"), show(b, "", "b", "b2"), show(a, "")}, "\n")
	if got := shown(list(t, s)); got != want {
		t.Errorf("listed\n%s\nwant\n%s", got, want)
	}
}

func TestTagKeepsMode(t *testing.T) {
	l := newLayout(t)
	l.add(l.image("a"))
	path := filepath.Join(l.dir, "index.json")
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(path, 1234, 4321); err != nil {
			t.Fatal(err)
		}
	}
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	l.file(indexjson.Temp, "left by a process that was killed")
	s := l.open()
	if err := s.Tag(t.Context(), only(t, s).Desc(), []string{"x"}, nil); err != nil {
		t.Fatal(err)
	}
	after, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	x, y := before.Sys().(*syscall.Stat_t), after.Sys().(*syscall.Stat_t)
	if before.Mode() != after.Mode() || x.Uid != y.Uid || x.Gid != y.Gid {
		t.Errorf("%v %d:%d became %v %d:%d", before.Mode(), x.Uid, x.Gid, after.Mode(), y.Uid, y.Gid)
	}
	wantClean(t, l)
}

// Two sources over one layout, as two processes have them, lose none of each other's names.
func TestTagConcurrently(t *testing.T) {
	l := newLayout(t)
	for i := range 4 {
		l.add(l.image(fmt.Sprint(i)))
	}
	var wg sync.WaitGroup
	for i := range 4 {
		s := l.open()
		desc := list(t, s).Images[i].Desc()
		wg.Go(func() {
			for j := range 10 {
				if err := s.Tag(t.Context(), desc, []string{fmt.Sprintf("n%d-%d", i, j)}, nil); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for i, img := range list(t, l.open()).Images {
		if len(img.Names) != 10 {
			t.Errorf("image %d: %q, want 10 names", i, img.Names)
		}
	}
	wantClean(t, l)
}

// A layout that was built anew in the place of the old one is what is listed and tagged.
func TestReplaced(t *testing.T) {
	old, next := newLayout(t), newLayout(t)
	old.name(old.image("old"), "was")
	next.name(next.image("new"), "is")
	s := old.open()
	if l := list(t, s); len(l.Images) != 1 || l.Images[0].Names[0] != "was" {
		t.Fatal(l.Images)
	}
	if err := os.RemoveAll(old.dir); err != nil {
		t.Fatal(err)
	}
	if _, err := s.List(t.Context()); !errors.Is(err, imgsrc.ErrNotFound) {
		t.Errorf("while it is gone: %v", err)
	}
	if err := s.Tag(t.Context(), imgsrc.Desc{}, []string{"x"}, nil); !errors.Is(err, imgsrc.ErrNotFound) {
		t.Errorf("tagging while it is gone: %v", err)
	}
	if err := os.Rename(next.dir, old.dir); err != nil {
		t.Fatal(err)
	}
	l := list(t, s)
	if len(l.Images) != 1 || l.Images[0].Names[0] != "is" {
		t.Fatal(l.Images)
	}
	if err := s.Tag(t.Context(), l.Images[0].Desc(), []string{"tagged"}, nil); err != nil {
		t.Fatal(err)
	}
	if l = list(t, s); len(l.Images[0].Names) != 2 {
		t.Errorf("%q", l.Images[0].Names)
	}
}

func TestTagReadOnly(t *testing.T) {
	l := onDisk(t)
	l.add(l.image("a"))
	if err := unix.Mount("", l.dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	s, err := Open(t.Context(), Options{Dir: l.dir, Log: discard})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Tag(t.Context(), only(t, s).Desc(), []string{"x"}, nil); !errors.Is(err, imgsrc.ErrReadOnly) {
		t.Errorf("%v, want ErrReadOnly", err)
	}
}

func TestTagNoSpace(t *testing.T) {
	l := onDisk(t)
	d := l.image("a")
	for i := range 100 {
		d.Annotations = map[string]string{v1.AnnotationRefName: fmt.Sprintf("name-%d", i)}
		l.entries = append(l.entries, d)
	}
	l.index()
	before, err := os.ReadFile(filepath.Join(l.dir, "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(l.dir, "blobs/full"))
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	f.Close()
	s, err := Open(t.Context(), Options{Dir: l.dir, Log: discard})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Tag(t.Context(), only(t, s).Desc(), []string{"x"}, nil); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("%v, want ENOSPC", err)
	}
	after, err := os.ReadFile(filepath.Join(l.dir, "index.json"))
	if err != nil || string(after) != string(before) {
		t.Errorf("index.json has changed: %v", err)
	}
	wantClean(t, l)
}

// onDisk is a layout on a file system of its own, of 1 MiB.
func onDisk(t *testing.T) *testLayout {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m,mode=0755"); err != nil {
		needs.Unmet(t, "mounting a tmpfs: "+err.Error())
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
			unix.Unmount(dir, unix.MNT_DETACH)
		}
	})
	l := &testLayout{TB: t, dir: dir}
	l.file("oci-layout", `{"imageLayoutVersion":"1.0.0"}`)
	l.index()
	return l
}

func TestTagTooMany(t *testing.T) {
	l := newLayout(t)
	filler := map[string]string{"filler": strings.Repeat("x", indexjson.Max-20_000)}
	l.file("index.json", text(l, map[string]any{"schemaVersion": 2, "manifests": []any{l.image("a")}, "annotations": filler}))
	s := l.open()
	var names []string
	for i := range 1000 {
		names = append(names, fmt.Sprintf("a-name-that-takes-a-little-more-room-than-others-%d", i))
	}
	before := s.Stamp()
	if err := s.Tag(t.Context(), only(t, s).Desc(), names, nil); !errors.Is(err, imgsrc.ErrInvalid) {
		t.Errorf("%v, want ErrInvalid", err)
	}
	if s.Stamp() != before {
		t.Error("index.json has changed")
	}
	if err := s.Tag(t.Context(), only(t, s).Desc(), names[:1], nil); err != nil {
		t.Error(err)
	}
	if n := len(list(t, s).Images[0].Names); n != 1 {
		t.Errorf("%d names, want 1", n)
	}
}
