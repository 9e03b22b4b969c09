package storage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
)

var checkNames = []struct {
	name, want string // an empty want: invalid
}{
	{"web", "localhost/web:latest"},
	{"web:1.0", "localhost/web:1.0"},
	{"a/b/c", "localhost/a/b/c:latest"},
	{"library/x:1", "localhost/library/x:1"},
	{"docker.io/library/x:1", "docker.io/library/x:1"},
	{"docker.io/x", "docker.io/library/x:latest"},
	{"localhost/x", "localhost/x:latest"},
	{"localhost:5000/x", "localhost:5000/x:latest"},
	{"registry.example.com/x/y:z", "registry.example.com/x/y:z"},
	{"x__y.z-1", "localhost/x__y.z-1:latest"},
	{"sha256", "localhost/sha256:latest"},
	{strings.Repeat("a", 64), "localhost/" + strings.Repeat("a", 64) + ":latest"},
	{"", ""},
	{" ", ""},
	{"web ", ""},
	{"Web", ""},
	{"web:", ""},
	{":1", ""},
	{"/web", ""},
	{"web/", ""},
	{"a//b", ""},
	{"../x", ""},
	{"web:a:b", ""},
	{"x:" + strings.Repeat("t", 128), "localhost/x:" + strings.Repeat("t", 128)},
	{"x:" + strings.Repeat("t", 129), ""},
	{"example.com/" + strings.Repeat("n", 244), ""},
	{"web\n", ""},
	{"w\x00b", ""},
	{"w\xffb", ""},
	{"docker://web", ""},
	{"web@sha256:" + strings.Repeat("a", 64), ""},
	{"web:1@sha256:" + strings.Repeat("a", 64), ""},
	{"sha256:" + strings.Repeat("a", 64), ""},
	{"sha256:1", ""}, // as podman has it
	{"localhost/sha256:1", "localhost/sha256:1"},
}

func TestCheckName(t *testing.T) {
	s := &Source{}
	for _, tt := range checkNames {
		got, err := s.CheckName(tt.name)
		if got != tt.want || (tt.want == "") != errors.Is(err, imgsrc.ErrInvalid) || err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %q, %v; not %q", tt.name, got, err, tt.want)
		}
		if tt.want == "" {
			continue
		}
		if again, err := s.CheckName(got); err != nil || again != got {
			t.Errorf("%q again: %q, %v", got, again, err)
		}
	}
}

// tagged is a store with the images a and b.
func tagged(t testing.TB, driver string) (r real, s *Source, a, b imgsrc.Desc) {
	t.Helper()
	r = newReal(t, driver)
	src := t.TempDir()
	write(t, []byte("a"), src, "a", "file")
	write(t, []byte("b"), src, "b", "file")
	r.commit(t, "localhost/a", "oci", filepath.Join(src, "a"))
	r.commit(t, "localhost/b", "oci", filepath.Join(src, "b"))
	s = r.source(t)
	return r, s, find(t, s, "localhost/a:latest").Desc(), find(t, s, "localhost/b:latest").Desc()
}

// names are those of an image as podman has them, sorted.
func (r real) names(t testing.TB, id string) []string {
	t.Helper()
	return sorted(r.inspect(t, id).RepoTags)
}

func TestNamesAreAsPodmanTags(t *testing.T) {
	r, s, a, _ := tagged(t, "overlay")
	for _, tt := range checkNames {
		if tt.want == "" {
			continue
		}
		r.do(t, "podman", "tag", a.ID, tt.name)
		if got := find(t, s, tt.want); got.Desc().ID != a.ID {
			t.Errorf("podman tags %q otherwise than %q", tt.name, tt.want)
		}
		r.do(t, "podman", "untag", a.ID, tt.want)
	}
}

func TestTag(t *testing.T) {
	for _, driver := range drivers {
		t.Run(driver, func(t *testing.T) {
			r, s, a, b := tagged(t, driver)
			ctx := t.Context()
			stamp := s.Stamp()
			check := func(id string, want ...string) {
				t.Helper()
				if got := r.names(t, id); !slices.Equal(got, sorted(want)) {
					t.Errorf("podman has the names %v, not %v", got, want)
				}
				listed := find(t, s, want[0])
				if listed.Desc().ID != id || !slices.Equal(sorted(listed.Names), sorted(want)) {
					t.Errorf("%s is listed with %v, not %v", id, listed.Names, want)
				}
				if s.Stamp() == stamp {
					t.Error("the stamp has not moved")
				}
				stamp = s.Stamp()
			}
			if err := s.Tag(ctx, a, []string{"localhost/x:1", "localhost/x:2"}, nil); err != nil {
				t.Fatal(err)
			}
			check(a.ID, "localhost/a:latest", "localhost/x:1", "localhost/x:2")
			if err := s.Tag(ctx, b, []string{"localhost/x:1"}, nil); err != nil { // taken from a
				t.Fatal(err)
			}
			check(b.ID, "localhost/b:latest", "localhost/x:1")
			if err := s.Tag(ctx, a, []string{"localhost/y:1"}, []string{"localhost/x:2"}); err != nil {
				t.Fatal(err)
			}
			check(a.ID, "localhost/a:latest", "localhost/y:1")
			if err := s.Tag(ctx, a, nil, []string{"localhost/y:1"}); err != nil {
				t.Fatal(err)
			}
			check(a.ID, "localhost/a:latest")
			r.do(t, "podman", "tag", "localhost/a", "localhost/z:1") // the library's state of before is old
			if err := s.Tag(ctx, a, []string{"localhost/y:2"}, []string{"localhost/a:latest"}); err != nil {
				t.Fatal(err)
			}
			check(a.ID, "localhost/z:1", "localhost/y:2")
		})
	}
}

// Names that somebody else gives while an image is renamed stay.
func TestTagBesideOthers(t *testing.T) {
	r, s, a, _ := tagged(t, "vfs")
	want := []string{"localhost/a:latest"}
	others := make(chan error, 1)
	go func() {
		for i := range 100 {
			if err := addName(s, a.ID, fmt.Sprintf("localhost/other:%d", i)); err != nil {
				others <- err
				return
			}
		}
		others <- nil
	}()
	var last []string
	for i, done := 0, false; !done; i++ {
		select {
		case err := <-others:
			if err != nil {
				t.Fatal(err)
			}
			done = true
		default:
		}
		name := fmt.Sprintf("localhost/x:%d", i)
		if err := s.Tag(t.Context(), a, []string{name}, last); err != nil {
			t.Fatal(err)
		}
		last = []string{name}
	}
	want = append(want, last...)
	for i := range 100 {
		want = append(want, fmt.Sprintf("localhost/other:%d", i))
	}
	if got := r.names(t, a.ID); !slices.Equal(got, sorted(want)) {
		t.Errorf("of %d names %d are left", len(want), len(got))
	}
}

// addName is podman tag.
func addName(s *Source, id, name string) error {
	store, err := s.openReal() // the library's list of stores is this process's, not another's
	if err != nil {
		return err
	}
	return store.AddNames(id, []string{name})
}

// A name that is to be added and removed is there afterwards.
func TestTagAddsWhatItRemoves(t *testing.T) {
	r, s, a, _ := tagged(t, "vfs")
	if err := s.Tag(t.Context(), a, []string{"localhost/a:latest", "localhost/y:1"}, []string{"localhost/a:latest"}); err != nil {
		t.Fatal(err)
	}
	if got := r.names(t, a.ID); !slices.Equal(got, []string{"localhost/a:latest", "localhost/y:1"}) {
		t.Errorf("the names are %q", got)
	}
}

func TestTagRefusesBeforeItChanges(t *testing.T) {
	r, s, a, _ := tagged(t, "overlay")
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	missing := imgsrc.Desc{ID: strings.Repeat("0", 64)}
	before := tree(t, r.root, r.run)
	for _, tt := range []struct {
		what        string
		ctx         context.Context
		img         imgsrc.Desc
		add, remove []string
		want        error
	}{
		{"no such image", t.Context(), missing, []string{"localhost/x:1"}, nil, imgsrc.ErrNotFound},
		{"an image without id", t.Context(), imgsrc.Desc{}, []string{"localhost/x:1"}, nil, imgsrc.ErrNotFound},
		{"a layer", t.Context(), imgsrc.Desc{ID: "a"}, []string{"localhost/x:1"}, nil, imgsrc.ErrNotFound},
		{"no such name", t.Context(), a, nil, []string{"localhost/x:1"}, imgsrc.ErrNotFound},
		{"one name of two", t.Context(), a, nil, []string{"localhost/a:latest", "localhost/x:1"}, imgsrc.ErrNotFound},
		{"another image's name", t.Context(), a, nil, []string{"localhost/b:latest"}, imgsrc.ErrNotFound},
		{"a name to add beside a bad one", t.Context(), a, []string{"localhost/x:1"}, []string{"localhost/b:latest"}, imgsrc.ErrNotFound},
		{"not normalised", t.Context(), a, []string{"x"}, nil, imgsrc.ErrInvalid},
		{"junk", t.Context(), a, []string{"localhost/x:1", "Ü ü"}, nil, imgsrc.ErrInvalid},
		{"left", gone, a, []string{"localhost/x:1"}, nil, context.Canceled},
	} {
		if err := s.Tag(tt.ctx, tt.img, tt.add, tt.remove); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v", tt.what, err)
		}
	}
	if tree(t, r.root, r.run) != before {
		t.Error("a refused tag has left a trace")
	}
}

func TestTwoThousandNamesAreOneWrite(t *testing.T) {
	r, s, a, _ := tagged(t, "overlay")
	var names []string
	for i := range 2000 {
		names = append(names, fmt.Sprintf("localhost/app:%d", i))
	}
	// A write of the store makes a new images.json: count them.
	dir := filepath.Join(r.root, "overlay-images")
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_MOVED_TO); err != nil {
		t.Fatal(err)
	}
	writes := func() int {
		buf := make([]byte, 1<<16)
		n, err := unix.Read(fd, buf)
		if err != nil {
			return 0
		}
		return strings.Count(string(buf[:n]), "images.json\x00")
	}
	if err := s.Tag(t.Context(), a, names, nil); err != nil {
		t.Fatal(err)
	}
	if n := writes(); n != 1 {
		t.Errorf("2,000 names are %d writes", n)
	}
	if got := r.names(t, a.ID); len(got) != 2001 {
		t.Errorf("podman has %d names", len(got))
	}
	if err := s.Tag(t.Context(), a, []string{"localhost/one:1"}, names); err != nil {
		t.Fatal(err)
	}
	if n := writes(); n < 1 || n > 2 { // two in a row may be one event
		t.Errorf("removing 2,000 names and adding one is %d writes", n)
	}
	if got := r.names(t, a.ID); len(got) != 2 {
		t.Errorf("podman has %d names", len(got))
	}
}

func TestTagLeavesNoTrace(t *testing.T) {
	for _, driver := range drivers {
		r, s, a, _ := tagged(t, driver)
		if err := s.Tag(t.Context(), a, []string{"localhost/x:1"}, nil); err != nil {
			t.Fatal(err)
		}
		// Names of what is there: the second tag makes and leaves nothing. Times of the images' own files change.
		list := func() string {
			var out []string
			for line := range strings.Lines(tree(t, r.root, r.run)) {
				if path, _, _ := strings.Cut(line, " "); !strings.Contains(path, driver+"-images") {
					out = append(out, line)
				}
			}
			return strings.Join(out, "")
		}
		before, mounts := list(), mountsBelow(t, r.root)
		if err := s.Tag(t.Context(), a, []string{"localhost/x:2"}, []string{"localhost/x:1"}); err != nil {
			t.Fatal(err)
		}
		if after := list(); after != before {
			t.Errorf("%s: a tag has changed more than the list of images:\n%s\n%s", driver, before, after)
		}
		if now := mountsBelow(t, r.root); now != mounts {
			t.Errorf("%s: mounts before %q, after %q", driver, mounts, now)
		}
	}
}

// mountsBelow are the lines of the table of mounts that name dir.
func mountsBelow(t *testing.T, dir string) string {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(string(data)) {
		if strings.Contains(line, dir) {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "")
}

// A container's mount, and the one that podman makes of the driver's directory, belong to others.
func TestTagLeavesTheMountsOfOthers(t *testing.T) {
	r, s, a, _ := tagged(t, "overlay")
	ctr := r.do(t, "buildah", "from", "--pull-never", "localhost/a")
	r.do(t, "buildah", "mount", ctr)
	home := filepath.Join(r.root, "overlay")
	if err := unix.Mount(home, home, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	before := mountsBelow(t, r.root)
	if err := s.Tag(t.Context(), a, []string{"localhost/x:2"}, nil); err != nil {
		t.Error(err)
	}
	if now := mountsBelow(t, r.root); now != before {
		t.Errorf("mounts before:\n%s\nafter:\n%s", before, now)
	}
	if err := unix.Unmount(home, 0); err != nil {
		t.Error(err)
	}
	r.do(t, "buildah", "umount", ctr)
	r.do(t, "buildah", "rm", ctr)
}

func TestPodmanTagIsSeen(t *testing.T) {
	r, s, a, _ := tagged(t, "overlay")
	calls := make(chan struct{}, 100)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Watch(ctx, func() { calls <- struct{}{} }) }()
	<-calls // ready
	for what, do := range map[string]func(){
		"podman tag":  func() { r.do(t, "podman", "tag", "localhost/a", "localhost/x") },
		"a container": func() { r.do(t, "buildah", "from", "--pull-never", "localhost/b") },
		"Tag": func() {
			if err := s.Tag(ctx, a, []string{"localhost/y:1"}, nil); err != nil {
				t.Error(err)
			}
		},
	} {
		for len(calls) > 0 {
			<-calls
		}
		do()
		select {
		case <-calls:
		case <-time.After(20 * time.Second):
			t.Errorf("%s is not seen", what)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func BenchmarkTag(b *testing.B) {
	_, s, a, _ := tagged(b, "overlay")
	for i := 0; b.Loop(); i++ {
		if err := s.Tag(b.Context(), a, []string{fmt.Sprintf("localhost/x:%d", i%10)}, nil); err != nil {
			b.Fatal(err)
		}
	}
}
