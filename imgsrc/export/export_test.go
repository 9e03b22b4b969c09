package export_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/export"
	"github.com/imgfs/imgfs/imgsrc/layer"
	"github.com/imgfs/imgfs/imgsrc/layout"
	"github.com/imgfs/imgfs/test/images"
)

// made is a layout of a set of images.
func made(t testing.TB, sets ...func(*images.Layout) error) string {
	t.Helper()
	at := filepath.Join(t.TempDir(), "layout")
	l, err := images.Create(at)
	for _, set := range sets {
		err = errors.Join(err, set(l))
	}
	if err := errors.Join(err, l.Close()); err != nil {
		t.Fatal(err)
	}
	return at
}

func open(t testing.TB, at string) imgsrc.Source {
	t.Helper()
	cache, err := layer.OpenCache(t.TempDir(), 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	s, err := layout.Open(t.Context(), layout.Options{Dir: at, Cache: cache})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close(); cache.Close() })
	return s
}

// A set is images to convert, by their manifests' digests.
type set struct {
	t      testing.TB
	images map[digest.Digest]imgsrc.Listed
	order  []digest.Digest
}

// read lists a source; as is what becomes of each image before it is converted, if not nil.
func read(t testing.TB, src imgsrc.Source, as func(imgsrc.Image) imgsrc.Image) *set {
	t.Helper()
	l, err := src.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s := &set{t: t, images: map[digest.Digest]imgsrc.Listed{}}
	for _, img := range l.Images {
		if as != nil {
			img.Image = as(img.Image)
		}
		d := img.Desc().Digest
		if same, there := s.images[d]; there { // that was another
			img.Names = append(same.Names, img.Names...)
		} else {
			s.order = append(s.order, d)
		}
		s.images[d] = img
	}
	return s
}

func (s *set) convert(ctx context.Context, d digest.Digest) (*export.OCI, error) {
	img, ok := s.images[d]
	if !ok {
		return nil, fmt.Errorf("manifest %s: %w", d, imgsrc.ErrNotFound)
	}
	f, err := imgsrc.Load(ctx, img)
	if err != nil {
		return nil, err
	}
	return export.Convert(ctx, img, f, s.convert)
}

// named converts the image that has this name.
func (s *set) named(name string) (*export.OCI, error) {
	s.t.Helper()
	for d, img := range s.images {
		if slices.Contains(img.Names, name) {
			return s.convert(s.t.Context(), d)
		}
	}
	s.t.Fatalf("no image is named %s", name)
	return nil, nil
}

func whole(t testing.TB, b export.Blob) []byte {
	t.Helper()
	c, err := b.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	size, err := c.Size(t.Context())
	if err != nil || size != b.Desc.Size {
		t.Errorf("%s has %d bytes, and its descriptor says %d: %v", b.Desc.Digest, size, b.Desc.Size, err)
	}
	buf := make([]byte, size)
	if n, err := c.ReadAt(t.Context(), buf, 0); int64(n) != size || err != nil && err != io.EOF {
		t.Errorf("reading %s: %d bytes, %v", b.Desc.Digest, n, err)
	}
	return buf
}

// unpacked is an image as containers-storage has it: without the blobs of its layers.
type unpacked struct{ imgsrc.Image }

func (u unpacked) Blob(context.Context, digest.Digest) (imgsrc.Content, error) {
	return nil, imgsrc.ErrAbsent
}

func likeStore(img imgsrc.Image) imgsrc.Image { return unpacked{img} }

// What is converted is a layout that holds to what its descriptors say, and has the images that there were.
func TestConvertAll(t *testing.T) {
	for name, make := range map[string]func(*images.Layout) error{"sample": images.Sample, "formats": images.Formats, "stargz": images.Stargz} {
		for how, as := range map[string]func(imgsrc.Image) imgsrc.Image{"blobs": nil, "unpacked": likeStore} {
			t.Run(name+"/"+how, func(t *testing.T) {
				at := made(t, make)
				first, second := read(t, open(t, at), as), read(t, open(t, at), as)
				slices.Reverse(second.order)
				again := map[digest.Digest]*export.OCI{}
				for _, d := range second.order {
					if o, err := second.convert(t.Context(), d); err == nil {
						again[d] = o
					}
				}
				files := map[digest.Digest][]byte{}
				var entries []export.Entry
				for _, d := range first.order {
					o, err := first.convert(t.Context(), d)
					if (err == nil) != (again[d] != nil) {
						t.Errorf("%s: %v, and the second time it was otherwise", d, err)
					}
					if err != nil {
						t.Logf("left out %s: %v", first.images[d].Names, err)
						continue
					}
					if string(o.Manifest) != string(again[d].Manifest) {
						t.Errorf("%s: another manifest in another order:\n%s\n%s", d, o.Manifest, again[d].Manifest)
					}
					check(t, first.images[d], o, files)
					entries = append(entries, export.Entry{Desc: o.Desc, Names: first.images[d].Names})
				}
				sameImages(t, first, write(t, entries, files))
			})
		}
	}
}

// check reads all that an image consists of.
func check(t *testing.T, img imgsrc.Listed, o *export.OCI, files map[digest.Digest][]byte) {
	t.Helper()
	var last digest.Digest
	for b := range o.All() {
		if got := b.Desc.Digest.Algorithm().FromBytes(whole(t, b)); got != b.Desc.Digest {
			t.Errorf("%s: the bytes of %s are %s", img.Names, b.Desc.Digest, got)
		}
		files[b.Desc.Digest] = whole(t, b)
		last = b.Desc.Digest
	}
	if last != o.Desc.Digest {
		t.Errorf("%s: the last file is %s, and the manifest %s", img.Names, last, o.Desc.Digest)
	}
	text, err := img.Manifest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	same := string(text) == string(o.Manifest)
	if same != (o.Original == nil) || !same && string(o.Original) != string(text) {
		t.Errorf("%s: the manifest is the same: %v, and the original is %q", img.Names, same, o.Original)
	}
	if o.Original != nil && files[digest.Digest(o.Desc.Annotations[export.AnnotationOriginal])] == nil {
		t.Errorf("%s: the original is not there", img.Names)
	}
	if strings.Contains(o.Desc.MediaType, "docker") || strings.Contains(string(o.Manifest), "vnd.docker.image") {
		t.Errorf("%s: not in OCI form: %s", img.Names, o.Manifest)
	}
}

// write makes a layout.
func write(t *testing.T, entries []export.Entry, files map[digest.Digest][]byte) string {
	t.Helper()
	at := t.TempDir()
	index, err := export.IndexJSON(entries)
	err = errors.Join(err, os.WriteFile(filepath.Join(at, v1.ImageIndexFile), index, 0o644),
		os.WriteFile(filepath.Join(at, v1.ImageLayoutFile), []byte(export.LayoutFile), 0o644))
	for d, b := range files {
		dir := filepath.Join(at, v1.ImageBlobsDir, d.Algorithm().String())
		err = errors.Join(err, os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, d.Encoded()), b, 0o644))
	}
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// sameImages compares the ids and names of what could be converted.
func sameImages(t *testing.T, was *set, at string) {
	t.Helper()
	is := read(t, open(t, at), nil)
	names := map[string]string{}
	for _, img := range is.images {
		if err := img.Desc().Damaged; err != nil {
			t.Errorf("%s: %v", img.Names, err)
		}
		f, err := imgsrc.Load(t.Context(), img)
		if err != nil || f.ManifestErr != nil {
			t.Errorf("%s: %v, %v", img.Names, err, f.ManifestErr)
		}
	}
	for _, d := range is.order {
		for _, name := range is.images[d].Names {
			if names[name] == "" {
				names[name] = is.images[d].Desc().ID
			}
		}
	}
	seen := map[string]bool{}
	for _, d := range was.order {
		img := was.images[d]
		if _, err := was.convert(t.Context(), d); err != nil || img.Desc().Config == "" {
			continue // those without a config have another id if their manifest is another
		}
		for _, name := range img.Names {
			if !seen[name] && names[name] != img.Desc().ID {
				t.Errorf("%s is %s, and was %s", name, names[name], img.Desc().ID)
			}
			seen[name] = true
		}
	}
}

// TestForms says of each kind of image what becomes of it.
func TestForms(t *testing.T) {
	const gzip, zstd, plain = v1.MediaTypeImageLayerGzip, v1.MediaTypeImageLayerZstd, v1.MediaTypeImageLayer
	at := made(t, images.Sample, func(l *images.Layout) error {
		docker := images.App()
		docker.Docker, docker.Compression, docker.Author = true, images.None, "docker, uncompressed"
		_, err := l.Add(docker, "docker:plain")
		return err
	})
	for _, test := range []struct {
		name, as string
		layers   []string // media types
		same     bool
	}{
		{"localhost/app:1.0", "blobs", []string{gzip, gzip, gzip}, true},
		{"localhost/app:1.0", "unpacked", []string{plain, plain, plain}, false},
		{"localhost/app:none", "unpacked", []string{plain, plain, plain}, true},
		{"localhost/app:zstd", "blobs", []string{zstd, zstd, zstd}, true},
		{"localhost/health:docker", "blobs", []string{gzip, gzip, gzip}, false},
		{"localhost/health:docker", "unpacked", []string{plain, plain, plain}, false},
		{"docker:plain", "blobs", []string{plain, plain, plain}, false},
	} {
		t.Run(test.name+" "+test.as, func(t *testing.T) {
			var as func(imgsrc.Image) imgsrc.Image
			if test.as == "unpacked" {
				as = likeStore
			}
			o, err := read(t, open(t, at), as).named(test.name)
			if err != nil {
				t.Fatal(err)
			}
			var m v1.Manifest
			if err := json.Unmarshal(o.Manifest, &m); err != nil {
				t.Fatal(err)
			}
			var types []string
			for _, l := range m.Layers {
				types = append(types, l.MediaType)
			}
			if !slices.Equal(types, test.layers) || (o.Original == nil) != test.same {
				t.Errorf("%v, unchanged %v; want %v, %v", types, o.Original == nil, test.layers, test.same)
			}
			if m.MediaType != v1.MediaTypeImageManifest || m.Config.MediaType != v1.MediaTypeImageConfig {
				t.Errorf("%s over %s", m.MediaType, m.Config.MediaType)
			}
		})
	}
}

// Of an index in which something had to be converted, what it says is kept.
func TestIndex(t *testing.T) {
	s := read(t, open(t, made(t, images.Formats)), nil)
	o, err := s.named("localhost/multi:docker")
	if err != nil {
		t.Fatal(err)
	}
	var was, is v1.Index
	if err := errors.Join(json.Unmarshal(o.Original, &was), json.Unmarshal(o.Manifest, &is)); err != nil {
		t.Fatal(err)
	}
	if is.MediaType != v1.MediaTypeImageIndex || !maps.Equal(is.Annotations, was.Annotations) || len(is.Manifests) == 0 {
		t.Errorf("%s", o.Manifest)
	}
	for _, d := range is.Manifests {
		if d.MediaType != v1.MediaTypeImageManifest || d.Platform == nil {
			t.Errorf("an entry %+v", d)
		}
	}
	same, err := s.named("localhost/multi:all")
	if err != nil || same.Original != nil {
		t.Errorf("an index in OCI form was changed to %v, %v", same, err)
	}
}

// A manifest that cannot be had to the byte is left out.
func TestLeftOut(t *testing.T) {
	at := made(t, images.Sample)
	src := open(t, at)
	s := read(t, src, nil)
	o, err := s.named("localhost/app:1.0")
	if err != nil {
		t.Fatal(err)
	}
	last := o.Blobs[len(o.Blobs)-1].Desc.Digest
	path := filepath.Join(at, v1.ImageBlobsDir, "sha256", last.Encoded())
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func() error{
		"short":   func() error { return os.WriteFile(path, b[:len(b)-1], 0o644) },
		"missing": func() error { return os.Remove(path) },
	} {
		t.Run(name, func(t *testing.T) {
			if err := spoil(); err != nil {
				t.Fatal(err)
			}
			_, err := s.named("localhost/app:1.0")
			if !errors.Is(err, imgsrc.ErrDamaged) || !strings.Contains(err.Error(), last.Encoded()) {
				t.Errorf("%v, want it damaged, and the layer", err)
			}
		})
	}
	without := read(t, src, func(img imgsrc.Image) imgsrc.Image { return nothing{img} })
	if _, err := without.named("localhost/base:1"); !errors.Is(err, imgsrc.ErrAbsent) {
		t.Errorf("%v, want ErrAbsent", err)
	}
}

// nothing is an image whose layers cannot be had.
type nothing struct{ imgsrc.Image }

func (nothing) Blob(context.Context, digest.Digest) (imgsrc.Content, error) {
	return nil, imgsrc.ErrAbsent
}
func (nothing) Diff(context.Context, int) (imgsrc.Content, error) { return nil, imgsrc.ErrAbsent }

func TestIndexJSON(t *testing.T) {
	desc := v1.Descriptor{MediaType: v1.MediaTypeImageManifest, Digest: digest.FromString("x"), Size: 1}
	changed := desc
	changed.Annotations = map[string]string{export.AnnotationOriginal: "sha256:00"}
	b, err := export.IndexJSON([]export.Entry{{Desc: desc}, {Desc: changed, Names: []string{"a<b", "b"}}})
	if err != nil {
		t.Fatal(err)
	}
	var ix v1.Index
	if err := json.Unmarshal(b, &ix); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, d := range ix.Manifests {
		got = append(got, d.Annotations[v1.AnnotationRefName]+" "+d.Annotations[export.AnnotationOriginal])
	}
	if want := []string{" " + desc.Digest.String(), "a<b sha256:00", "b sha256:00"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if _, ok := changed.Annotations[v1.AnnotationRefName]; ok || desc.Annotations != nil {
		t.Error("the entry was changed")
	}
}
