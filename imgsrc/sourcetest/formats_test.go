package sourcetest_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/dir"
	"github.com/imgfs/imgfs/imgsrc/registry"
	"github.com/imgfs/imgfs/imgsrc/sourcetest"
	"github.com/imgfs/imgfs/test/images"
	"github.com/imgfs/imgfs/test/servers"
)

// TestFormats compares what a layout says of manifests of all formats, artifacts and images that lack something among them,
// with what is said of them in the other forms that keep manifests.
func TestFormats(t *testing.T) {
	at := filepath.Join(t.TempDir(), "layout")
	l, err := images.Create(at)
	if err == nil {
		err = errors.Join(images.Formats(l), l.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	s := &sample{dir: at}
	want := said(t, inPlace(t, s, nil)[0].open(t))
	if len(want) < 30 {
		t.Fatalf("%d manifests", len(want))
	}
	compare := func(t *testing.T, got map[digest.Digest]string, all bool) {
		t.Helper()
		for d, text := range got {
			if text != want[d] {
				t.Errorf("manifest %s is\n%s\nand in the layout\n%s", d, text, want[d])
			}
		}
		for d := range want {
			if _, ok := got[d]; !ok && all {
				t.Errorf("manifest %s is not there", d)
			}
		}
	}
	t.Run("oci-archive", func(t *testing.T) { compare(t, said(t, ociArchive(false)(t, s, nil)[0].open(t)), true) })
	t.Run("docker-archive with a layout", func(t *testing.T) { compare(t, said(t, dockerSave(t, s, nil)[0].open(t)), true) })
	t.Run("dir", func(t *testing.T) {
		all := map[digest.Digest]string{}
		for _, d := range topLevel(t, at) {
			of := formatDir(t, at, d)
			src, err := dir.Open(t.Context(), dir.Options{Dir: of, Cache: cacheOf(t), Log: discard})
			if err != nil {
				t.Fatal(err)
			}
			got := said(t, src)
			compare(t, got, false)
			if files, err := filepath.Glob(filepath.Join(of, "*manifest.json")); err != nil || len(files) != len(got) {
				t.Errorf("%d manifests of %d, %v", len(got), len(files), err)
			}
			maps.Copy(all, got)
		}
		compare(t, all, true)
	})
	t.Run("docker", func(t *testing.T) {
		host := servers.Serve(t, servers.NewRegistry())
		c := servers.Client{TB: t, Host: host}
		pushed := map[digest.Digest]bool{}
		for _, d := range topLevel(t, at) {
			if pushFormat(t, c, at, d, d.Digest.Encoded()[:12]) {
				pushed[d.Digest] = true
			}
		}
		o := registry.Options{Ref: host, CacheDir: t.TempDir(), AuthFile: authFile(t), Log: discard}
		o.Cache = cacheIn(t, o.CacheDir)
		src, err := registry.Open(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		got := said(t, src)
		compare(t, got, false) // of an index, those for other platforms are not listed
		if len(pushed) < 15 {
			t.Errorf("%d manifests could be pushed", len(pushed))
		}
		for d := range pushed {
			if _, ok := got[d]; !ok {
				t.Errorf("manifest %s is not listed", d)
			}
		}
	})
}

// said is what a source says of each manifest, by the digest of its bytes. It closes the source.
func said(t *testing.T, src imgsrc.Source) map[digest.Digest]string {
	t.Helper()
	defer src.Close()
	l, err := src.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	all := map[digest.Digest]string{}
	for _, img := range l.Images {
		d := img.Desc()
		if d.Damaged != nil {
			continue // an index need not have all that it lists: a registry's does not say so
		}
		f, err := imgsrc.Load(t.Context(), img)
		if err != nil {
			t.Fatal(err)
		}
		manifest, err := img.Manifest(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var b strings.Builder
		fmt.Fprintf(&b, "%s %d %s %q %s %s %v\n", d.MediaType, d.Size, d.Config, d.Subject, f.Kind, f.ArtifactType, d.Lists)
		if d.Config != "" { // otherwise it is the manifest's digest, and that of a signed one has two
			fmt.Fprintln(&b, d.ID)
		}
		for _, value := range []func(*imgsrc.Facts) ([]byte, error){imgsrc.AnnotationsJSON, imgsrc.LabelsJSON, imgsrc.HistoryJSON, imgsrc.ConfigOCI} {
			text, err := value(f)
			fmt.Fprintf(&b, "%s %v\n", text, kind(err))
		}
		config, err := img.Config(t.Context())
		fmt.Fprintf(&b, "config: %s %v\n", config, kind(err))
		for n, l := range f.Layers {
			c, err := img.Blob(t.Context(), l.Digest)
			fmt.Fprintf(&b, "blob %d %s: %s\n", n, l.MediaType, sum(t, c, err))
			c, err = img.Diff(t.Context(), n)
			fmt.Fprintf(&b, "diff %d: %s\n", n, sum(t, c, err))
			files, err := img.Files(t.Context(), n)
			var names []string
			if err == nil {
				err = errors.Join(files.Entries(t.Context(), func(f *imgsrc.File) error { names = append(names, f.Name); return nil }), files.Close())
			}
			fmt.Fprintf(&b, "files %d: %q %v\n", n, names, kind(err))
		}
		all[digest.FromBytes(manifest)] = b.String()
	}
	return all
}

func sum(t *testing.T, c imgsrc.Content, err error) string {
	t.Helper()
	var b []byte
	if err == nil {
		b, err = sourcetest.ReadAll(t.Context(), c)
		err = errors.Join(err, c.Close())
	}
	if err != nil {
		return fmt.Sprint(kind(err))
	}
	return digest.FromBytes(b).String()
}

// kind is the condition in an error.
func kind(err error) error {
	for _, kind := range []error{imgsrc.ErrDamaged, imgsrc.ErrAbsent, imgsrc.ErrUnsupported, imgsrc.ErrNotFound} {
		if errors.Is(err, kind) {
			return kind
		}
	}
	return err
}

// topLevel are the manifests that index.json of a layout lists.
func topLevel(t *testing.T, at string) []v1.Descriptor {
	t.Helper()
	var index v1.Index
	b, err := os.ReadFile(filepath.Join(at, "index.json"))
	if err == nil {
		err = json.Unmarshal(b, &index)
	}
	if err != nil {
		t.Fatal(err)
	}
	return index.Manifests
}

// A formatDoc is a manifest of any format, as far as it names others.
type formatDoc struct {
	Config    v1.Descriptor
	Layers    []v1.Descriptor
	FSLayers  []struct{ BlobSum digest.Digest }
	Manifests []v1.Descriptor
}

// formatBlobs reads a manifest, and those of its blobs that the layout has.
func formatBlobs(t *testing.T, at string, d digest.Digest) (manifest []byte, doc formatDoc, blobs map[digest.Digest][]byte) {
	t.Helper()
	read := func(d digest.Digest) []byte {
		b, err := os.ReadFile(filepath.Join(at, "blobs", "sha256", d.Encoded()))
		if err != nil {
			return nil
		}
		return b
	}
	if manifest = read(d); manifest == nil {
		return nil, doc, nil
	}
	if err := json.Unmarshal(manifest, &doc); err != nil {
		t.Fatal(err)
	}
	blobs = map[digest.Digest][]byte{}
	named := []digest.Digest{}
	if doc.Config.Digest != "" {
		named = append(named, doc.Config.Digest)
	}
	for _, l := range doc.Layers {
		named = append(named, l.Digest)
	}
	for _, l := range doc.FSLayers {
		named = append(named, l.BlobSum)
	}
	for _, d := range named {
		if b := read(d); b != nil {
			blobs[d] = b
		}
	}
	return manifest, doc, blobs
}

// pushFormat pushes a manifest with all that it lists, unless some of that is not there, which the registry would not take.
func pushFormat(t *testing.T, c servers.Client, at string, d v1.Descriptor, tag string) (pushed bool) {
	t.Helper()
	manifest, doc, blobs := formatBlobs(t, at, d.Digest)
	pushed = manifest != nil
	for _, child := range doc.Manifests {
		pushed = pushFormat(t, c, at, child, "") && pushed
	}
	if !pushed {
		return false
	}
	for _, b := range blobs {
		c.Push("formats", "", b)
	}
	c.Put("formats", tag, d.MediaType, manifest)
	return true
}

// formatDir makes what skopeo's dir: makes of a manifest, and of all that it lists.
func formatDir(t *testing.T, at string, d v1.Descriptor) string {
	t.Helper()
	to := t.TempDir()
	files := map[string][]byte{"version": []byte("Directory Transport Version: 1.1\n")}
	var add func(file string, d digest.Digest)
	add = func(file string, d digest.Digest) {
		manifest, doc, blobs := formatBlobs(t, at, d)
		if manifest == nil {
			return
		}
		files[file] = manifest
		for d, b := range blobs {
			files[d.Encoded()] = b
		}
		for _, child := range doc.Manifests {
			add(child.Digest.Encoded()+".manifest.json", child.Digest)
		}
	}
	add("manifest.json", d.Digest)
	for name, b := range files {
		if err := os.WriteFile(filepath.Join(to, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return to
}
