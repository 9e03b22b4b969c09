package fs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/imgfs/imgfs/imgsrc"
)

// madeIn makes an image of one layer and of these steps; "+" begins one that made another layer.
func madeIn(t testing.TB, steps ...string) *fakeImage {
	t.Helper()
	layers := []string{"base"}
	for _, s := range steps {
		if strings.HasPrefix(s, "+") {
			layers = append(layers, s)
		}
	}
	img := makeImage(t, "", layers...)
	config := v1.Image{Platform: v1.Platform{Architecture: "amd64", OS: "linux"}}
	config.RootFS.Type = "layers"
	config.History = []v1.History{{CreatedBy: "base"}}
	for _, l := range img.layers {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(l))
	}
	for _, s := range steps {
		config.History = append(config.History, v1.History{CreatedBy: s, EmptyLayer: !strings.HasPrefix(s, "+")})
	}
	was := digest.FromBytes(img.config)
	img.config = mustJSON(t, config)
	is := digest.FromBytes(img.config)
	img.manifest = []byte(strings.Replace(string(img.manifest), was.String(), is.String(), 1))
	img.desc.ID, img.desc.Config, img.desc.Digest = is.Encoded(), is, digest.FromBytes(img.manifest)
	img.desc.Size = int64(len(img.manifest))
	return img
}

// layered is an image as a source lists it that tells its layers apart by their digests.
func layered(img *fakeImage, names ...string) imgsrc.Listed {
	l := named(img, names...)
	for _, layer := range img.layers {
		l.Layers = append(l.Layers, digest.FromBytes(layer).String())
	}
	return l
}

// textOf reads a file of an image's directory; "" if there is none.
func textOf(t testing.TB, f *FS, img *fakeImage, name string) string {
	t.Helper()
	ctx := context.Background()
	dir := f.state.Load().byID[img.desc.ID].node(viewImage, 0)
	hit, err := f.view(dir).lookup(ctx, dir, name)
	if errnoOf(err) == errnoOf(imgsrc.ErrAbsent) && err != nil {
		return ""
	}
	if err != nil {
		t.Fatalf("looking up %s: %v", name, err)
	}
	buf := make([]byte, 1<<20)
	res, err := f.view(hit.node).read(ctx, hit.node, buf, 0)
	if err != nil {
		t.Fatalf("reading %s: %v", name, err)
	}
	b, _ := res.Bytes(buf)
	return string(b)
}

func idsOf(images ...*fakeImage) string {
	var ids []string
	for _, img := range images {
		ids = append(ids, img.desc.ID+"\n")
	}
	slices.Sort(ids)
	return strings.Join(ids, "")
}

func TestParentsAndChildren(t *testing.T) {
	base, env, top, twin := madeIn(t), madeIn(t, "ENV"), madeIn(t, "ENV", "+COPY"), madeIn(t, "CMD")
	f, src, _ := newTree(t, layered(base), layered(env), layered(top), layered(twin))
	check := func(img *fakeImage, parent, children string) {
		t.Helper()
		if got := textOf(t, f, img, "parent"); got != parent {
			t.Errorf("parent %q, want %q", got, parent)
		}
		if got := textOf(t, f, img, "children"); got != children {
			t.Errorf("children %q, want %q", got, children)
		}
	}
	check(base, "", idsOf(env, twin))
	check(env, idsOf(base), idsOf(top))
	check(top, idsOf(env), "")
	check(twin, idsOf(base), "")

	src.set(layered(base), layered(top), layered(twin))
	f.refresh(t.Context())
	check(base, "", idsOf(twin))
	check(top, "", "")
}

// A thousand images that share all their layers are looked at some thousand times to tell all their parents and children, and
// not a million times.
func TestKinshipIsNotQuadratic(t *testing.T) {
	const n = 500
	var images []*fakeImage
	var list []imgsrc.Listed
	for i := range n {
		images = append(images, madeIn(t, fmt.Sprint("ENV ", i)), madeIn(t, fmt.Sprint("ENV ", i), "CMD"))
	}
	for _, img := range images {
		list = append(list, layered(img))
	}
	f, _, _ := newTree(t, list...)
	for i := 0; i < len(images); i += 2 {
		parent, child := images[i], images[i+1]
		if got := textOf(t, f, parent, "children"); got != idsOf(child) {
			t.Fatalf("children of %d: %q", i, got)
		}
		if got := textOf(t, f, child, "parent"); got != idsOf(parent) {
			t.Fatalf("parent of %d: %q", i, got)
		}
		for _, name := range []string{"inspect.json", "live.json"} {
			if textOf(t, f, parent, name) == "" || textOf(t, f, child, name) == "" {
				t.Fatalf("no %s", name)
			}
		}
	}
	if asked := f.state.Load().kinship.asked; asked > 20*n {
		t.Errorf("%d images were looked at for the kin of %d", asked, 2*n)
	}
}

// An image that cannot be read is nobody's kin until it can be.
func TestKinOfDamaged(t *testing.T) { synctest.Test(t, testKinOfDamaged) }

func testKinOfDamaged(t *testing.T) {
	base, child := madeIn(t), madeIn(t, "ENV")
	child.broken = errors.New("no disk")
	f, _, _ := newTree(t, layered(base), layered(child))
	if got := textOf(t, f, base, "children"); got != "" {
		t.Errorf("children %q while the child cannot be read", got)
	}
	child.broken = nil
	time.Sleep(2 * damagedKept)
	if got := textOf(t, f, base, "children"); got != idsOf(child) {
		t.Errorf("children %q once the child can be read", got)
	}
}
