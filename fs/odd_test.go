package fs

import (
	"archive/tar"
	"bytes"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// What would be more than one line, or does something to a terminal, is no line of a list; it is escaped in images/, and as it
// is in what is JSON.
func TestNamesWithControlCharacters(t *testing.T) {
	img := makeImage(t, "a", "one")
	f, _, _ := newTree(t, named(img, "good:1", "bad\nlocalhost/other:1", "\x1b[2J"))
	for _, name := range []string{"names", "tags"} {
		if got := textOf(t, f, img, name); got != "good:1\n" {
			t.Errorf("%s: %q", name, got)
		}
	}
	if got := textOf(t, f, img, "inspect.json"); !strings.Contains(got, `"bad\nlocalhost/other:1"`) {
		t.Errorf("inspect.json: %s", got)
	}
	index, all := layoutOf(t, f)
	if fmt.Sprintf("%q", index) != `["good:1" "bad\nlocalhost/other:1" "\x1b[2J"]` || len(all) == 0 {
		t.Errorf("oci/ has the names %q", index)
	}
	listed := map[string]file{}
	walk(t, f, imagesNode, "", listed)
	for _, path := range []string{"/good:1", "/bad%0Alocalhost%2Fother:1", "/%1B[2J"} {
		if listed[path].text != "../ids/"+img.desc.ID {
			t.Errorf("%s leads to %q", path, listed[path].text)
		}
	}
	odd := makeImage(t, "b")
	f, _, _ = newTree(t, named(odd, "only\nodd"))
	if got := textOf(t, f, odd, "names") + textOf(t, f, odd, "tags"); got != "" {
		t.Errorf("names %q", got)
	}
}

// A symbolic link's mode is what every file system of Linux has, whatever the tar says; the tar itself stays as it is.
func TestSymlinkModes(t *testing.T) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i, mode := range []int64{0, 0o644, 0o777, 0o4755} {
		h := tar.Header{Name: fmt.Sprint("link", i), Typeflag: tar.TypeSymlink, Linkname: "to", Mode: mode, ModTime: createdAt}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	img := makeImage(t, "a", "one")
	text := string(img.config)
	text = strings.Replace(text, digest.FromBytes(img.layers[0]).String(), digest.FromBytes(b.Bytes()).String(), 1)
	img.layers[0], img.config = b.Bytes(), []byte(text)
	was := img.desc.Config
	img.desc.Config = digest.FromBytes(img.config)
	img.desc.ID = img.desc.Config.Encoded()
	img.manifest = []byte(strings.Replace(string(img.manifest), was.String(), img.desc.Config.String(), 1))
	img.desc.Size, img.desc.Digest, img.desc.MediaType = int64(len(img.manifest)), digest.FromBytes(img.manifest), v1.MediaTypeImageManifest
	f, _, _ := newTree(t, named(img, "a:1"))
	all := map[string]file{}
	walk(t, f, f.state.Load().order[0].node(viewImage, 0), "", all)
	for _, dir := range []string{"/rootfs", "/layers/00/diff"} {
		for i := range 4 {
			if got := all[fmt.Sprint(dir, "/link", i)].attr.mode; got != syscall.S_IFLNK|0o777 {
				t.Errorf("%s/link%d: %o", dir, i, got)
			}
		}
	}
	if got := all["/layers/00/diff.tar"].text; got != b.String() {
		t.Error("diff.tar is not the layer's bytes")
	}
}
