package fs

import (
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
)

// sumsOf reads an image's SHA256SUMS: for each file the digest.
func sumsOf(t *testing.T, f *FS, id string) (map[string]digest.Digest, file) {
	t.Helper()
	img := f.refresh(t.Context()).byID[id]
	row := rowByName["SHA256SUMS"]
	n := img.node(viewImage, row.id)
	a, err := f.view(n).attr(t.Context(), n, false)
	if err != nil {
		t.Fatal(err)
	}
	text := readAll(t, f, n, a.size)
	all := map[string]digest.Digest{}
	for line := range strings.Lines(text) {
		sum, name, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "  ")
		d := digest.NewDigestFromEncoded(digest.SHA256, sum)
		if !ok || d.Validate() != nil {
			t.Errorf("a line %q", line)
		}
		all[name] = d
	}
	return all, file{attr: a, text: text}
}

func TestSums(t *testing.T) {
	a := makeImage(t, "a", "one", "two")
	second := *a
	second.manifest = append(slices.Clone(a.manifest), '\n')
	second.desc.Digest, second.desc.Size = digest.FromBytes(second.manifest), int64(len(second.manifest))
	f, src, _ := newTree(t, named(a, "localhost/a:1"), named(&second))
	sums, was := sumsOf(t, f, a.desc.ID)
	all := map[string]file{}
	walk(t, f, f.refresh(t.Context()).byID[a.desc.ID].node(viewImage, 0), "", all)
	for name, d := range sums {
		if got := digest.FromString(all["/"+name].text); got != d {
			t.Errorf("%s is %s, and the sum says %s", name, got, d)
		}
	}
	for _, name := range []string{"manifest.json", "config.json", "layers/00/diff.tar", "layers/01/diff.tar", manifestName(second.desc.Digest)} {
		if sums[name] == "" {
			t.Errorf("%s is not in it", name)
		}
	}
	if len(sums) != 5 {
		t.Errorf("%v", sums)
	}
	if !was.attr.mtime.Equal(createdAt) || !was.attr.live {
		t.Errorf("%+v, want it to be live, and of the image's creation", was.attr)
	}

	// A further manifest goes: the file changes, and its time. Names change nothing.
	src.set(named(a, "localhost/a:1"))
	fewer, is := sumsOf(t, f, a.desc.ID)
	if len(fewer) != 4 || !is.attr.mtime.After(was.attr.mtime) {
		t.Errorf("%v of %v", fewer, is.attr.mtime)
	}
	src.set(named(a, "localhost/b:1"))
	if _, again := sumsOf(t, f, a.desc.ID); again.attr != is.attr {
		t.Errorf("%+v and then %+v", is.attr, again.attr)
	}
}

// What cannot be read is in it by the digest that it should have.
func TestSumsOfDamaged(t *testing.T) {
	a := makeImage(t, "a", "one")
	a.broken = imgsrc.ErrDamaged
	f, _, _ := newTree(t, named(a, "localhost/a:1"))
	sums, _ := sumsOf(t, f, a.desc.ID)
	if sums["config.json"] != a.desc.Config {
		t.Errorf("%v", sums)
	}
}
