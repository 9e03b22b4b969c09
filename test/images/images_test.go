package images_test

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/imgfs/imgfs/test/images"
)

func layout(t *testing.T, add func(*images.Layout) error) string {
	t.Helper()
	dir := t.TempDir()
	l, err := images.Create(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(add(l), l.Close()); err != nil {
		t.Fatal(err)
	}
	return dir
}

func readIndex(t *testing.T, dir string) v1.Index {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	var index v1.Index
	if err := json.Unmarshal(b, &index); err != nil {
		t.Fatal(err)
	}
	return index
}

// Two layouts that were made by the same calls are the same to the byte.
func TestDeterministic(t *testing.T) {
	odd := func(l *images.Layout) error {
		_, err := l.Add(images.Odd(), "odd")
		return errors.Join(err, images.Sample(l), images.Many(l, 3))
	}
	a, b := layout(t, odd), layout(t, odd)
	if out, err := exec.Command("diff", "-r", a, b).CombinedOutput(); err != nil {
		t.Errorf("diff -r: %v\n%s", err, out)
	}
	if got := len(readIndex(t, a).Manifests); got != 1+10+1+3 {
		t.Errorf("index.json lists %d manifests, want 15", got)
	}
}

// So are those of all formats, and each of these is listed under its media type.
func TestFormats(t *testing.T) {
	a, b := layout(t, images.Formats), layout(t, images.Formats)
	if out, err := exec.Command("diff", "-r", a, b).CombinedOutput(); err != nil {
		t.Errorf("diff -r: %v\n%s", err, out)
	}
	types := map[string]int{}
	for _, m := range readIndex(t, a).Manifests {
		types[m.MediaType]++
		if _, err := os.Stat(filepath.Join(a, "blobs/sha256", m.Digest.Encoded())); err != nil {
			t.Errorf("%v: %v", m.Annotations, err)
		}
	}
	want := map[string]int{
		v1.MediaTypeImageManifest: 14, v1.MediaTypeImageIndex: 4,
		"application/vnd.docker.distribution.manifest.v2+json":      1,
		"application/vnd.docker.distribution.manifest.list.v2+json": 1,
		"application/vnd.docker.distribution.manifest.v1+json":      2,
		"application/vnd.docker.distribution.manifest.v1+prettyjws": 1,
	}
	if !maps.Equal(types, want) {
		t.Errorf("index.json lists %v, want %v", types, want)
	}
}

// Every blob is its digest, and nothing else is left in the layout.
func TestBlobs(t *testing.T) {
	dir := layout(t, func(l *images.Layout) error { return errors.Join(images.Sample(l), images.Formats(l)) })
	blobs, err := os.ReadDir(filepath.Join(dir, "blobs/sha256"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sha256sum", "--check", "--quiet", "-")
	cmd.Dir = filepath.Join(dir, "blobs/sha256")
	var sums bytes.Buffer
	for _, b := range blobs {
		sums.WriteString(b.Name() + "  " + b.Name() + "\n")
	}
	cmd.Stdin = &sums
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("sha256sum: %v\n%s", err, out)
	}
}

// What archive/tar reads is what was given, holes, attributes and all.
func TestTar(t *testing.T) {
	var b bytes.Buffer
	entries := images.Odd().Layers[0].Entries
	if err := images.WriteTar(&b, entries); err != nil {
		t.Fatal(err)
	}
	tr := tar.NewReader(&b)
	for _, want := range entries {
		got, err := tr.Next()
		if err != nil {
			t.Fatalf("at %q: %v", want.Name, err)
		}
		data, err := io.ReadAll(tr)
		if err != nil {
			t.Fatalf("%q: %v", want.Name, err)
		}
		content := want.Data
		if want.Extents != nil {
			content = make([]byte, want.Size)
			from := int64(0)
			for _, x := range want.Extents {
				copy(content[x.Offset:], want.Data[from:from+x.Length])
				from += x.Length
			}
		}
		if got.Name != want.Name || got.Typeflag != want.Typeflag || got.Mode != want.Mode || got.Uid != want.Uid ||
			got.Linkname != want.Linkname || got.Devmajor != want.Devmajor || !got.ModTime.Equal(want.ModTime) ||
			got.Size != want.Size || !bytes.Equal(data, content) {
			t.Errorf("got %+v with %d bytes, want %+v with %d bytes", got, len(data), want.Header, len(content))
		}
		for k, v := range want.PAXRecords {
			if got.PAXRecords[k] != v {
				t.Errorf("%q: %s = %q, want %q", want.Name, k, got.PAXRecords[k], v)
			}
		}
	}
	if _, err := tr.Next(); err != io.EOF {
		t.Errorf("after the last entry: %v, want EOF", err)
	}
}

// A tree of this machine becomes entries below a prefix, cut at the limit.
func TestTree(t *testing.T) {
	root := t.TempDir()
	if err := errors.Join(
		os.MkdirAll(filepath.Join(root, "a"), 0o755),
		os.WriteFile(filepath.Join(root, "a/one"), []byte("1"), 0o600),
		os.Symlink("one", filepath.Join(root, "a/two")),
		os.WriteFile(filepath.Join(root, "b"), make([]byte, 100), 0o644),
	); err != nil {
		t.Fatal(err)
	}
	for limit, want := range map[int64]int{0: 5, 50: 4} {
		entries, err := images.Tree("usr", root, limit)
		if err != nil || len(entries) != want {
			t.Errorf("limit %d: %d entries, %v; want %d", limit, len(entries), err, want)
		}
		if err := images.WriteTar(io.Discard, entries); err != nil {
			t.Errorf("limit %d: %v", limit, err)
		}
	}
	if _, err := images.Tree("usr", filepath.Join(root, "none"), 0); err == nil {
		t.Error("no error for a directory that is not there")
	}
}
