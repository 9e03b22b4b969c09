package fs

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
)

// registryForm is an image in a registry with its layers in one form, which are read by their blobs.
type registryForm struct {
	*fakeImage
	form  string
	lacks int64
	local []bool
	diffs *int // counts those that were opened
}

func (i *registryForm) Local(n int) bool { return n < len(i.local) && i.local[n] }

func (i *registryForm) Lacks() (int64, bool) { return i.lacks, true }

func (i *registryForm) Blob(_ context.Context, d digest.Digest) (imgsrc.Content, error) {
	for n := range i.layers {
		if text := i.blob(n); digest.FromBytes(text) == d {
			return fakeContent{bytes.NewReader(text)}, nil
		}
	}
	return nil, imgsrc.ErrAbsent
}

func (i *registryForm) blob(n int) []byte { return slices.Concat([]byte(i.form), i.layers[n]) }

func (i *registryForm) Diff(ctx context.Context, n int) (imgsrc.Content, error) {
	if i.diffs != nil {
		*i.diffs++
	}
	return i.fakeImage.Diff(ctx, n)
}

// inForm is an image with its layers as blobs of a form: gzip or zstd.
func inForm(img *fakeImage, form string, lacks int64) *registryForm {
	i := &registryForm{fakeImage: new(*img), form: form, lacks: lacks}
	for n, l := range img.layers {
		old := `"digest":"` + digest.FromString("gzip "+textIn(l)).String() + `"`
		i.manifest = bytes.ReplaceAll(i.manifest, []byte(old), []byte(`"digest":"`+digest.FromBytes(i.blob(n)).String()+`"`))
	}
	i.manifest = bytes.ReplaceAll(i.manifest, []byte("tar+gzip"), []byte("tar+"+form))
	i.desc.Digest = digest.FromBytes(i.manifest)
	return i
}

// textIn is what tarOf was given.
func textIn(tar []byte) string { return string(bytes.TrimRight(tar[512:1024], "\x00")) }

// Another manifest of one source is another to the kernel, too, and live.json says which it is.
func TestNearestOfOneSource(t *testing.T) {
	img := makeImage(t, "a", "one")
	gzip, zstd := inForm(img, "gzip", 100), inForm(img, "zstd", 0)
	src := &fakeSource{}
	src.set(named(gzip))
	f := treeOf(t, src)
	was := find(t, f, idsNode, img.desc.ID)
	src.set(named(gzip), named(zstd))
	if find(t, f, idsNode, img.desc.ID) == was {
		t.Error("the nodes stayed")
	}
	near := func(n node) (digests []digest.Digest) {
		t.Helper()
		text := make([]byte, 1<<16)
		n = find(t, f, n, "live.json")
		res, err := f.view(n).read(t.Context(), n, text, 0)
		if err != nil {
			t.Fatal(err)
		}
		text, _ = res.Bytes(text)
		var live struct {
			Sources []struct {
				Digest  digest.Digest
				Nearest bool
			}
		}
		if err := json.Unmarshal(text, &live); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		for _, s := range live.Sources {
			if s.Nearest {
				digests = append(digests, s.Digest)
			}
		}
		return digests
	}
	if got := near(was); !slices.Equal(got, []digest.Digest{gzip.desc.Digest}) {
		t.Errorf("the old directory is of %s", got)
	}
	if got := near(find(t, f, idsNode, img.desc.ID)); !slices.Equal(got, []digest.Digest{zstd.desc.Digest}) {
		t.Errorf("the new one is of %s", got)
	}
}

// docker.tar is the same bytes, whichever manifest the layers are read from.
func TestDockerTarNearest(t *testing.T) {
	img := makeImage(t, "a", "one", "two")
	for _, forms := range [][2]string{{"gzip", "zstd"}, {"zstd", "gzip"}} {
		var want []byte
		for _, lacks := range [][2]int64{{0, 100}, {100, 0}} {
			src := &fakeSource{}
			src.set(named(inForm(img, forms[0], lacks[0]), "localhost/a:1"), named(inForm(img, forms[1], lacks[1])))
			f := treeOf(t, src)
			if near, _ := f.image(1).fetcher(); (near.Desc().Digest == f.image(1).first) != (lacks[0] == 0) {
				t.Fatalf("%s: the other one is the nearest", forms)
			}
			n := find(t, f, idsNode, img.desc.ID, "export", "docker.tar")
			a, err := f.view(n).attr(t.Context(), n, false)
			if err != nil {
				t.Fatal(err)
			}
			got := make([]byte, a.size+1)
			res, err := f.view(n).read(t.Context(), n, got, 0)
			if err != nil && err != io.EOF {
				t.Fatal(err)
			}
			got, _ = res.Bytes(got)
			if int64(len(got)) != a.size || want != nil && !bytes.Equal(got, want) {
				t.Errorf("%s: %d bytes, of %d that stat says; they are the same: %v", forms, len(got), a.size, bytes.Equal(got, want))
			}
			want = got
		}
		if blobs := bytes.Contains(want, []byte(".tar.gz")); blobs != (forms[0] == "gzip") {
			t.Errorf("%s: the layers are as they are: %v", forms, blobs)
		}
	}
}

// A layer's tar is not fetched if another manifest of the same config has the layer here; what else there is of it is read as
// before.
func TestDiffElsewhere(t *testing.T) {
	img := makeImage(t, "a", "one", "two")
	gzip, zstd := inForm(img, "gzip", 100), inForm(img, "zstd", 0)
	var opened [2]int
	gzip.diffs, zstd.diffs = &opened[0], &opened[1]
	gzip.local, zstd.local = make([]bool, 2), make([]bool, 2)
	src := &fakeSource{}
	src.set(named(gzip), named(zstd))
	f := treeOf(t, src)
	layer := find(t, f, idsNode, img.desc.ID, "layers", "01")
	listed := func() (names []string) {
		t.Helper()
		if _, err := f.view(layer).attr(t.Context(), layer, false); err != nil {
			t.Fatal(err)
		}
		if err := f.view(layer).list(t.Context(), layer, 0, func(d dirent) bool { names = append(names, d.name); return true }); err != nil {
			t.Fatal(err)
		}
		return slices.DeleteFunc(names, func(name string) bool { return !slices.Contains([]string{"diff", "diff.tar", "changes"}, name) })
	}
	read := func(want string) {
		t.Helper()
		opened = [2]int{}
		n := find(t, f, layer, "diff.tar")
		a, err := f.view(n).attr(t.Context(), n, false)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, a.size)
		if _, err := f.view(n).read(t.Context(), n, got, 0); err != nil || !bytes.Equal(got, img.layers[1]) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		for i, form := range []string{"gzip", "zstd"} {
			if (opened[i] > 0) != (want == form) {
				t.Errorf("the tar of %s was opened %d times, and should be read from %q", form, opened[i], want)
			}
		}
	}
	mtime := func() time.Time {
		a, err := f.view(layer).attr(t.Context(), layer, false)
		if err != nil {
			t.Fatal(err)
		}
		return a.mtime
	}
	if names := listed(); len(names) > 0 {
		t.Errorf("%q is listed", names)
	}
	was := mtime()
	gzip.local[1] = true
	if names := listed(); !slices.Equal(names, []string{"diff.tar"}) || !mtime().After(was) {
		t.Errorf("%q is listed, since %v", names, mtime())
	}
	read("gzip")
	gzip.local[1] = false
	read("zstd")
	gzip.local[1], zstd.local[1] = true, true
	if names := listed(); len(names) != 3 {
		t.Errorf("%q is listed", names)
	}
	read("") // it is open
}
