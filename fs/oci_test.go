package fs

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/export"
)

// layoutOf walks oci/ and holds every blob against its name.
func layoutOf(t *testing.T, f *FS) (names []string, all map[string]file) {
	t.Helper()
	all = map[string]file{}
	walk(t, f, ociNode, "", all)
	for path, got := range all {
		if hex, ok := strings.CutPrefix(path, "/blobs/sha256/"); ok {
			if d := digest.FromString(got.text); d.Encoded() != hex {
				t.Errorf("the bytes of %s are %s", path, d)
			}
			if got.attr.live || !got.attr.mtime.Equal(epoch) || got.attr.mode != syscall.S_IFREG|0o444 {
				t.Errorf("%s: %+v", path, got.attr)
			}
		}
	}
	var ix v1.Index
	if err := json.Unmarshal([]byte(all["/index.json"].text), &ix); err != nil {
		t.Fatal(err)
	}
	for _, d := range ix.Manifests {
		names = append(names, d.Annotations[v1.AnnotationRefName])
		got, ok := all["/blobs/sha256/"+d.Digest.Encoded()]
		if !ok || int64(len(got.text)) != d.Size {
			t.Errorf("%+v is not there", d)
		}
		var m v1.Manifest
		if err := json.Unmarshal([]byte(got.text), &m); err != nil {
			t.Fatal(err)
		}
		if m.Config.Digest == "" { // an index
			continue
		}
		for _, l := range append(m.Layers, m.Config) {
			if got, ok := all["/blobs/sha256/"+l.Digest.Encoded()]; !ok || got.attr.size != l.Size {
				t.Errorf("%+v is not there", l)
			}
		}
	}
	return names, all
}

func TestOCI(t *testing.T) {
	a, b := makeImage(t, "a", "one", "two"), makeImage(t, "b", "one")
	f, src, _ := newTree(t, named(a, "localhost/a:1", "odd/name"), named(b))
	names, all := layoutOf(t, f)
	if slices.Sort(names); !slices.Equal(names, []string{"", "localhost/a:1", "odd/name"}) {
		t.Errorf("%q", names)
	}
	if len(all) != 2+2+2*3+2 { // oci-layout, index.json; two directories; of each image config, manifest and original; two layers
		t.Errorf("%q", slices.Sorted(maps.Keys(all)))
	}
	was := all["/index.json"].attr
	if !was.live || !was.mtime.Equal(listedAt) {
		t.Errorf("index.json %+v, want the listing's time", was)
	}

	// Manifests that are made again are the same.
	f.oci.docs = newMemo[uint32, []byte](0)
	if _, again := layoutOf(t, f); !maps.Equal(all, again) {
		t.Error("read again it differs")
	}

	// A new image adds, and moves no other.
	src.set(named(makeImage(t, "0", "one", "three"), "localhost/c:1"), named(a, "localhost/a:1", "odd/name"), named(b))
	_, more := layoutOf(t, f)
	for path, was := range all {
		if strings.HasPrefix(path, "/blobs/sha256/") && more[path] != was {
			t.Errorf("%s is %+v, and was %+v", path, more[path].attr, was.attr)
		}
	}
	if is := more["/index.json"].attr; !is.mtime.After(was.mtime) || more["/blobs/sha256"].attr.mtime != is.mtime {
		t.Errorf("after a change index.json is of %v, and was of %v", is.mtime, was.mtime)
	}

	// One that goes takes with it what no other has.
	src.set(named(b, "localhost/b:1"))
	names, left := layoutOf(t, f)
	if !slices.Equal(names, []string{"localhost/b:1"}) || len(left) != 2+2+3+1 {
		t.Errorf("%q %q", names, slices.Sorted(maps.Keys(left)))
	}
	gone := all["/blobs/sha256/"+digest.FromBytes(tarOf(t, "two")).Encoded()]
	if _, err := f.view(gone.node).read(t.Context(), gone.node, make([]byte, 1), 0); !errors.Is(err, imgsrc.ErrNotFound) {
		t.Errorf("reading what is gone: %v", err)
	}
}

// What changes nothing in the layout leaves its time alone.
func TestOCITime(t *testing.T) {
	a := makeImage(t, "a", "one")
	f, src, _ := newTree(t, named(a, "localhost/a:1"))
	_, first := layoutOf(t, f)
	src.set(imgsrc.Listed{Image: a, Names: []string{"localhost/a:1"}, Containers: []string{"c0ffee"}})
	if _, second := layoutOf(t, f); second["/index.json"].attr != first["/index.json"].attr {
		t.Errorf("%+v and then %+v", first["/index.json"].attr, second["/index.json"].attr)
	}
}

// A source that does not record when it changed is of the mount's time: rsync is to look at the index after each remount.
func TestOCIUndated(t *testing.T) {
	f, src, _ := newTree(t, named(makeImage(t, "a", "one"), "localhost/a:1"))
	src.listing.ModTime = time.Time{}
	src.stamp++
	if _, all := layoutOf(t, f); !all["/index.json"].attr.mtime.Equal(f.started) {
		t.Errorf("of %v, want the mount's time", all["/index.json"].attr.mtime)
	}
}

// An image that is damaged is left out until it is repaired; one of which nothing can be told fails the whole.
func TestOCILeftOut(t *testing.T) {
	a, b := makeImage(t, "a", "one"), makeImage(t, "b", "two")
	f, _, _ := newTree(t, named(a, "localhost/a:1"), named(b, "localhost/b:1"))
	b.broken = imgsrc.ErrDamaged
	if names, _ := layoutOf(t, f); !slices.Equal(names, []string{"localhost/a:1"}) {
		t.Errorf("%q", names)
	}
	b.broken = nil
	again := *f.oci.state.Load() // as it is a moment later
	again.until = time.Now()
	f.oci.state.Store(&again)
	for _, img := range f.oci.known {
		if img.err != nil {
			img.until = again.until
		}
	}
	if names, _ := layoutOf(t, f); len(names) != 2 {
		t.Errorf("%q after it was repaired", names)
	}

	f, _, _ = newTree(t, named(a, "localhost/a:1"), named(b, "localhost/b:1"))
	b.broken = syscall.EHOSTUNREACH
	index := makeNode(0, viewOCI, ociIndex)
	for _, n := range []node{index, makeNode(0, viewOCI, ociSHA256)} {
		if _, err := f.view(n).attr(t.Context(), n, false); errnoOf(err) != syscall.EHOSTUNREACH {
			t.Errorf("%v, want EHOSTUNREACH", err)
		}
	}
	if _, err := f.view(ociNode).attr(t.Context(), ociNode, false); err != nil {
		t.Errorf("oci/ itself: %v", err)
	}
}

// followedSource has what somebody has followed.
type followedSource struct{ fakeSource }

func (*followedSource) Follow(context.Context, string) (string, error) { return "", imgsrc.ErrNotFound }

func TestOCIFollowed(t *testing.T) {
	src, followed := &fakeSource{}, &followedSource{}
	a := makeImage(t, "a", "one")
	src.set(named(a, "localhost/a:1"))
	followed.set(imgsrc.Listed{Image: makeImage(t, "b", "two"), RemoteNames: []string{"h.io/b:1"}}, imgsrc.Listed{Image: a, RemoteNames: []string{"h.io/a:1"}})
	followed.listing.ModTime = time.Time{}
	discard := slog.New(slog.DiscardHandler)
	f := New(Options{
		Layers: layerCache(t), Catalog: imgsrc.NewCatalog(discard, src, followed), Ops: &fakeOps{}, Remotes: followed, Log: discard,
	})
	t.Cleanup(f.OnUnmount)
	names, all := layoutOf(t, f)
	if !slices.Equal(names, []string{"localhost/a:1"}) || !all["/index.json"].attr.mtime.Equal(listedAt) {
		t.Errorf("%q of %v", names, all["/index.json"].attr.mtime)
	}
}

// Of two manifests over one config each has its names, and one that two sources have is in there once.
func TestOCISharedConfig(t *testing.T) {
	a := makeImage(t, "a", "one")
	other := *a
	other.manifest = append(slices.Clone(a.manifest), '\n')
	other.desc.Digest = digest.FromBytes(other.manifest)
	other.desc.Size++
	f, _, _ := newTree(t, named(a, "localhost/a:1"), named(&other, "localhost/other:1"), named(a, "localhost/b:1"))
	names, all := layoutOf(t, f)
	if slices.Sort(names); !slices.Equal(names, []string{"localhost/a:1", "localhost/b:1", "localhost/other:1"}) {
		t.Errorf("%q", names)
	}
	var ix v1.Index
	if err := json.Unmarshal([]byte(all["/index.json"].text), &ix); err != nil {
		t.Fatal(err)
	}
	originals := map[string]string{}
	for _, d := range ix.Manifests {
		originals[d.Annotations[v1.AnnotationRefName]] = d.Annotations[export.AnnotationOriginal]
	}
	want := map[string]string{
		"localhost/a:1": a.desc.Digest.String(), "localhost/b:1": a.desc.Digest.String(), "localhost/other:1": other.desc.Digest.String(),
	}
	if !maps.Equal(originals, want) {
		t.Errorf("%q, want %q", originals, want)
	}
}

// registryImage is in a registry.
type registryImage struct{ *fakeImage }

func (registryImage) Local(int) bool { return false }

func (registryImage) Lacks() (int64, bool) { return 0, false }

// What is here is read here, whichever source is named first; a registry is asked only for what nobody else has.
func TestOCINear(t *testing.T) {
	a, b := makeImage(t, "a", "one"), makeImage(t, "b", "one", "two")
	f, _, _ := newTree(t, named(registryImage{a}, "h.io/a:1"), named(a, "localhost/a:1"), named(registryImage{b}, "h.io/b:1"))
	names, all := layoutOf(t, f)
	if slices.Sort(names); !slices.Equal(names, []string{"h.io/a:1", "h.io/b:1", "localhost/a:1"}) {
		t.Errorf("%q", names)
	}
	for layer, remote := range map[string]bool{"one": false, "two": true} {
		n := all["/blobs/sha256/"+digest.FromBytes(tarOf(t, layer)).Encoded()].node
		file, ok := f.oci.state.Load().file(n.entry())
		if _, far := file.of.img.(registryImage); !ok || far != remote {
			t.Errorf("layer %s is from a registry: %v, want %v", layer, far, remote)
		}
	}
}

// An index has what is there of its images; one that comes changes it.
func TestOCIIndex(t *testing.T) {
	a, b := makeImage(t, "a", "one"), makeImage(t, "b", "two")
	list := v1.Index{MediaType: v1.MediaTypeImageIndex, Manifests: []v1.Descriptor{
		{MediaType: a.desc.MediaType, Digest: a.desc.Digest, Size: a.desc.Size, Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}},
		{MediaType: b.desc.MediaType, Digest: b.desc.Digest, Size: b.desc.Size, Platform: &v1.Platform{OS: "linux", Architecture: "arm64"}},
	}}
	index := &fakeImage{manifest: mustJSON(t, list)}
	d := digest.FromBytes(index.manifest)
	index.desc = imgsrc.Desc{
		ID: d.Encoded(), Digest: d, MediaType: list.MediaType, Size: int64(len(index.manifest)), Lists: []digest.Digest{a.desc.Digest, b.desc.Digest},
	}
	f, src, _ := newTree(t, named(index, "localhost/multi:1"), named(a))
	platforms := func() []string {
		t.Helper()
		var top, ix v1.Index
		_, all := layoutOf(t, f)
		if err := json.Unmarshal([]byte(all["/index.json"].text), &top); err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(top.Manifests, func(d v1.Descriptor) bool { return d.Annotations[v1.AnnotationRefName] != "" })
		if err := json.Unmarshal([]byte(all["/blobs/sha256/"+top.Manifests[i].Digest.Encoded()].text), &ix); err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, d := range ix.Manifests {
			names = append(names, d.Platform.Architecture)
			if _, ok := all["/blobs/sha256/"+d.Digest.Encoded()]; !ok {
				t.Errorf("%s is not there", d.Digest)
			}
		}
		return names
	}
	if got := platforms(); !slices.Equal(got, []string{"amd64"}) {
		t.Errorf("%q", got)
	}
	src.set(named(index, "localhost/multi:1"), named(a), named(b))
	f.oci.docs = newMemo[uint32, []byte](0)
	if got := platforms(); !slices.Equal(got, []string{"amd64", "arm64"}) {
		t.Errorf("%q when the other has come", got)
	}
}
