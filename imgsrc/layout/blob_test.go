package layout

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/imgfs/imgfs/imgsrc"
)

// A blob that changes under its reader is verified again: before and after the change nothing else is read.
func TestBlobChanges(t *testing.T) {
	l := newLayout(t)
	plain := tarOf(strings.Repeat("x", 3<<20))
	d := l.blob(v1.MediaTypeImageLayer, plain)
	l.name(l.manifest([]v1.Descriptor{d}, []digest.Digest{d.Digest}), "a")
	img := only(t, l.open())
	c, err := img.Blob(t.Context(), d.Digest)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	read := func(what string, want error) {
		t.Helper()
		p := make([]byte, 1000)
		n, err := c.ReadAt(t.Context(), p, 2<<20)
		if want != nil {
			if n != 0 || !errors.Is(err, want) || !bytes.Equal(p, make([]byte, 1000)) {
				t.Errorf("%s: %d bytes, %v, want %v", what, n, err, want)
			}
		} else if err != nil || !bytes.Equal(p, plain[2<<20:2<<20+1000]) {
			t.Errorf("%s: %d bytes, %v", what, n, err)
		}
	}
	path := l.path(d.Digest)
	read("as it was", nil)
	edit(t, path, 100)
	read("edited", imgsrc.ErrDamaged)
	edit(t, path, 100)
	read("edited back", nil)
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	read("gone", imgsrc.ErrDamaged)
	l.blob(v1.MediaTypeImageLayer, plain)
	read("a new file", nil)
	if err := os.Truncate(path, 100); err != nil {
		t.Fatal(err)
	}
	read("cut short", imgsrc.ErrDamaged)
	if err := errors.Join(os.Remove(path), os.Rename(path+".old", path)); err != nil {
		t.Fatal(err)
	}
	read("the old file", nil)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	read("closed and opened again", nil)
}
