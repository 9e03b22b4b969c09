package fs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
)

// sketchedImage is an image of which a sketch tells something until it is read.
type sketchedImage struct {
	*fakeImage
	told *imgsrc.Sketch
}

func (i *sketchedImage) Sketch() *imgsrc.Sketch {
	if *i.loads > 0 {
		return nil
	}
	return i.told
}

func sketched(img *fakeImage, config string) *sketchedImage {
	img.loads = new(int)
	s := &imgsrc.Sketch{Config: []byte(config), Created: createdAt, Withheld: []string{"history"}}
	for _, l := range img.layers {
		s.DiffIDs = append(s.DiffIDs, digest.FromBytes(l))
	}
	return &sketchedImage{img, s}
}

// rowsOf lists an image's directory. What is costly is listed without attributes.
func rowsOf(t *testing.T, f *FS, id string) (names []string, costly []string) {
	t.Helper()
	return listOf(t, f, f.state.Load().byID[id].node(viewImage, 0))
}

func listOf(t *testing.T, f *FS, dir node) (names []string, costly []string) {
	t.Helper()
	err := f.view(dir).list(t.Context(), dir, 0, func(d dirent) bool {
		names = append(names, d.name)
		if _, err := f.view(d.node).attr(t.Context(), d.node, true); errors.Is(err, errCostly) {
			costly = append(costly, d.name)
		} else if err != nil {
			t.Errorf("%s: %v", d.name, err)
		}
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	return names, costly
}

// lookUp finds a path below an image's directory, and returns what a stat and a read of it say.
func lookUp(t *testing.T, f *FS, id, path string) (a attr, text string, err error) {
	t.Helper()
	n := f.state.Load().byID[id].node(viewImage, 0)
	for name := range strings.SplitSeq(path, "/") {
		hit, err := f.view(n).lookup(t.Context(), n, name)
		if err != nil {
			return attr{}, "", err
		}
		n = hit.node
	}
	if a, err = f.view(n).attr(t.Context(), n, false); err == nil && a.mode&syscall.S_IFMT == syscall.S_IFREG {
		text = readAll(t, f, n, a.size)
	}
	return a, text, err
}

func listingTime(t *testing.T, f *FS, id string) time.Time {
	t.Helper()
	n := f.state.Load().byID[id].node(viewImage, 0)
	a, err := f.view(n).attr(t.Context(), n, false)
	if err != nil {
		t.Fatal(err)
	}
	return a.mtime
}

// What a sketch tells is found, listed and read without reading the image, and is the same afterwards. What it does not tell is
// found by reading the image, and listed before if every image has it.
func TestSketch(t *testing.T) {
	img := makeImage(t, "an author", "one", "two")
	s := sketched(img, `{"author":"an author","os":"linux","config":{"Labels":{"org.example/a":"one","b":""}}}`)
	f, _, _ := newTree(t, named(s, "web:1"))
	id := img.desc.ID
	if got := listingTime(t, f, id); !got.Equal(createdAt) {
		t.Errorf("the directory is of %s", got)
	}
	names, costly := rowsOf(t, f, id)
	const early = "manifest.json config.json config.oci.json config.docker.json history history.json labels.json labels layers id digest names author os " +
		"size media-type tags push error inspect.json info.json live.json SHA256SUMS export"
	if got := strings.Join(names, " "); got != early {
		t.Errorf("listed are %s", got)
	}
	const reads = "manifest.json config.json config.oci.json config.docker.json history history.json size media-type inspect.json info.json live.json SHA256SUMS"
	if got := strings.Join(costly, " "); got != reads {
		t.Errorf("listed without attributes are %s", got)
	}
	layer := f.state.Load().byID[id].node(viewLayers, layerEntry(1, 0))
	if names, costly := listOf(t, f, layer); fmt.Sprint(names, costly) != "[info.json digest diff-id media-type size] [info.json digest media-type size]" {
		t.Errorf("of a layer there is listed %v, without attributes %v", names, costly)
	}
	paths := []string{
		"author", "os", "labels.json", "labels", "labels/b", "labels/org.example%2Fa", "layers", "layers/00", "layers/01/diff-id", "id", "digest", "names",
		"tags", "push", "error", "live.json", "export", "export/README",
	}
	attrs, texts := map[string]attr{}, map[string]string{}
	for _, p := range paths {
		var err error
		if attrs[p], texts[p], err = lookUp(t, f, id, p); err != nil {
			t.Errorf("%s: %v", p, err)
		}
	}
	for _, p := range []string{"parent", "children", "layers/02", "nothing", "index.json", "platforms"} {
		if _, _, err := lookUp(t, f, id, p); !errors.Is(err, syscall.ENOENT) {
			t.Errorf("%s: %v", p, err)
		}
	}
	if *img.loads != 0 {
		t.Fatalf("the image was read %d times", *img.loads)
	}
	if _, _, err := lookUp(t, f, id, "comment"); !errors.Is(err, syscall.ENOENT) || *img.loads != 1 {
		t.Errorf("what is not told: %v, %d reads", err, *img.loads)
	}
	for _, p := range paths {
		a, text, err := lookUp(t, f, id, p)
		if err != nil || a != attrs[p] || text != texts[p] {
			t.Errorf("%s: after reading the image %+v, %q, %v, before %+v, %q", p, a, text, err, attrs[p], texts[p])
		}
	}
	// architecture and created are there now: the kernel has to list the directory anew.
	now, _ := rowsOf(t, f, id)
	if !slices.Contains(now, "created") || !slices.Contains(now, "rootfs") || !listingTime(t, f, id).After(createdAt) {
		t.Errorf("listed are %v, in a directory of %s", now, listingTime(t, f, id))
	}
	if names, _ := listOf(t, f, layer); fmt.Sprint(names) != "[diff.tar info.json digest diff-id media-type size created-by diff changes]" {
		t.Errorf("of a layer there is listed %v", names)
	}
}

// Each thing that is not told reads the image; then there is what takes a layer's bytes too.
func TestSketchThatTellsAll(t *testing.T) {
	for _, path := range []string{"manifest.json", "config.oci.json", "size", "inspect.json", "layers/00/digest", "export/docker.tar", "rootfs", "comment"} {
		img := makeImage(t, "a", "one")
		s := sketched(img, string(img.config))
		f, _, _ := newTree(t, named(s, "web:1"))
		before, _ := rowsOf(t, f, img.desc.ID)
		if *img.loads != 0 {
			t.Fatal("it was read for a listing")
		}
		_, _, err := lookUp(t, f, img.desc.ID, path)
		if (err != nil) != (path == "comment") || *img.loads == 0 {
			t.Errorf("%s: %v, %d reads", path, err, *img.loads)
		}
		after, _ := rowsOf(t, f, img.desc.ID)
		i := slices.Index(after, "rootfs")
		if i < 0 || !slices.Equal(before, slices.Delete(after, i, i+1)) || !listingTime(t, f, img.desc.ID).After(createdAt) {
			t.Errorf("%s: listed were %v, and are %v beside rootfs in a directory of %s", path, before, after, listingTime(t, f, img.desc.ID))
		}
	}
}

// An image that has not been read is nobody's parent or child, and nobody reads it to know.
func TestSketchOfKin(t *testing.T) {
	base, web := makeImage(t, "", "one"), makeImage(t, "", "one", "two")
	listedBase, listedWeb := layered(base, "base:1"), layered(web, "web:1")
	listedBase.Image, listedWeb.Image = sketched(base, string(base.config)), sketched(web, string(web.config))
	f, _, _ := newTree(t, listedBase, listedWeb)
	has := func(img *fakeImage, name string) bool {
		names, _ := rowsOf(t, f, img.desc.ID)
		_, _, err := lookUp(t, f, img.desc.ID, name)
		if listed := slices.Contains(names, name); listed != (err == nil) {
			t.Errorf("%s is listed: %t, and looking it up says %v", name, listed, err)
		}
		return err == nil
	}
	if has(web, "parent") || has(base, "children") || *base.loads+*web.loads > 0 {
		t.Fatalf("before: %d and %d reads", *base.loads, *web.loads)
	}
	if _, _, err := lookUp(t, f, web.desc.ID, "inspect.json"); err != nil || *web.loads != 1 || *base.loads != 0 {
		t.Errorf("inspect.json: %v, %d and %d reads", err, *base.loads, *web.loads)
	}
	if has(web, "parent") || *base.loads != 0 {
		t.Error("of an image that was not read it is said that it is the parent")
	}
	webTime, baseTime := listingTime(t, f, web.desc.ID), listingTime(t, f, base.desc.ID)
	if _, _, err := lookUp(t, f, base.desc.ID, "manifest.json"); err != nil {
		t.Error(err)
	}
	f.state.Load().kinship.kin = map[kinKey]*kin{} // as a second later
	if !has(web, "parent") || !has(base, "children") {
		t.Error("both were read, and are not parent and child")
	}
	if !listingTime(t, f, web.desc.ID).After(webTime) || !listingTime(t, f, base.desc.ID).After(baseTime) {
		t.Error("the times of listings that are longer have not moved")
	}
}

// What was told and is not so is what the image says once it has been read, and the kernel is told.
func TestSketchThatIsWrong(t *testing.T) {
	img := makeImage(t, "right", "one")
	f, _, _ := newTree(t, named(sketched(img, `{"author":"wrong","os":"linux","variant":"v9"}`), "web:1"))
	id := img.desc.ID
	if _, text, err := lookUp(t, f, id, "author"); err != nil || text != "wrong\n" {
		t.Errorf("before: %q, %v", text, err)
	}
	f.gone.takeAll()
	if _, _, err := lookUp(t, f, id, "manifest.json"); err != nil {
		t.Fatal(err)
	}
	if _, text, err := lookUp(t, f, id, "author"); err != nil || text != "right\n" {
		t.Errorf("after: %q, %v", text, err)
	}
	var told []string
	for _, g := range f.gone.takeAll() {
		if g.spoilt != 0 {
			told = append(told, rowByID[g.spoilt.entry()].name)
		} else {
			told = append(told, g.name)
		}
	}
	if got := strings.Join(told, " "); got != "author author variant variant" {
		t.Errorf("the kernel is told of %s", got)
	}
}

// What was listed and told before is set right also if something else than its own files has read the image, as an archive or a
// push does: the source has no sketch any more when the first of them is asked for.
func TestSketchReadElsewhere(t *testing.T) {
	for _, evicted := range []bool{false, true} {
		img := makeImage(t, "right", "one")
		s := sketched(img, `{"author":"wrong","os":"linux"}`)
		f, _, _ := newTree(t, named(s, "web:1"))
		id := img.desc.ID
		if _, text, err := lookUp(t, f, id, "author"); err != nil || text != "wrong\n" {
			t.Errorf("before: %q, %v", text, err)
		}
		rowsOf(t, f, id)
		f.gone.takeAll()
		if evicted {
			f.sketches = newRenderedCache(sketchBytes)
		}
		if _, err := imgsrc.Load(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		if !listingTime(t, f, id).After(createdAt) {
			t.Errorf("evicted: %t: the directory has more files, and is of %s", evicted, listingTime(t, f, id))
		}
		if !slices.Contains(f.gone.takeAll(), goneEntry{spoilt: f.state.Load().byID[id].node(viewImage, rowByName["author"].id)}) {
			t.Errorf("evicted: %t: the kernel is not told that it has another author", evicted)
		}
		was := listingTime(t, f, id)
		f.rendered = newRenderedCache(renderedBytes)
		if _, _, err := lookUp(t, f, id, "author"); err != nil || !listingTime(t, f, id).Equal(was) || len(f.gone.takeAll()) > 0 {
			t.Errorf("evicted: %t: rendered again, %v, in a directory of %s", evicted, err, listingTime(t, f, id))
		}
	}
}

// An image that was read before anybody saw it is found as a parent by those who listed its children before.
func TestSketchOfKinReadElsewhere(t *testing.T) {
	base, web := makeImage(t, "", "one"), makeImage(t, "", "one", "two")
	listedBase, listedWeb := layered(base, "base:1"), layered(web, "web:1")
	s := sketched(web, string(web.config))
	listedBase.Image, listedWeb.Image = sketched(base, string(base.config)), s
	f, _, _ := newTree(t, listedBase, listedWeb)
	if _, _, err := lookUp(t, f, base.desc.ID, "manifest.json"); err != nil {
		t.Fatal(err)
	}
	rowsOf(t, f, base.desc.ID)
	was := listingTime(t, f, base.desc.ID)
	if _, err := imgsrc.Load(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if _, _, err := lookUp(t, f, web.desc.ID, "manifest.json"); err != nil {
		t.Fatal(err)
	}
	if !listingTime(t, f, base.desc.ID).After(was) {
		t.Error("the listing that has a child now is as old as before")
	}
}

// An image that cannot be read keeps what was told of it.
func TestSketchOfDamaged(t *testing.T) {
	img := makeImage(t, "an author", "one")
	s := &brokenSketch{sketched(img, `{"author":"an author"}`)}
	f, _, _ := newTree(t, named(s, "web:1"))
	for range 2 {
		if _, _, err := lookUp(t, f, img.desc.ID, "config.json"); !errors.Is(err, imgsrc.ErrDamaged) {
			t.Errorf("config.json: %v", err)
		}
		if _, text, err := lookUp(t, f, img.desc.ID, "author"); err != nil || text != "an author\n" {
			t.Errorf("author: %q, %v", text, err)
		}
	}
}

type brokenSketch struct{ *sketchedImage }

func (b *brokenSketch) Sketch() *imgsrc.Sketch { return b.told }

func (b *brokenSketch) Config(context.Context) ([]byte, error) { return nil, imgsrc.ErrDamaged }
