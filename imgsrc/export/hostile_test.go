package export

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/layer"
)

// What is longer than a file can be is no archive: a manifest or a table of contents says what its writer likes.
func TestTooLarge(t *testing.T) {
	for name, sizes := range map[string][]int64{
		"one":  {math.MaxInt64},
		"two":  {math.MaxInt64 - 1<<20, math.MaxInt64 - 1<<20},
		"sum":  {1 << 62, 1 << 62},
		"many": {1 << 62, 1 << 62, 1 << 62, 1 << 62, 1 << 62},
	} {
		img := &DockerImage{Config: []byte("{}")}
		for i, size := range sizes {
			img.Layers = append(img.Layers, DockerLayer{
				Digest: digest.FromString(fmt.Sprint(i)), Size: size,
			})
		}
		if _, err := DockerTar(img); !errors.Is(err, imgsrc.ErrUnsupported) {
			t.Errorf("%s: docker.tar: %v", name, err)
		}
		o := &OCI{Desc: v1.Descriptor{Digest: digest.FromString("")}}
		for _, l := range img.Layers {
			o.Blobs = append(o.Blobs, Blob{Desc: v1.Descriptor{Digest: l.Digest, Size: l.Size}, Open: opener(nil)})
		}
		if _, err := OCITar(o, nil, time.Time{}); !errors.Is(err, imgsrc.ErrUnsupported) {
			t.Errorf("%s: oci.tar: %v", name, err)
		}
		l := &memLayer{}
		for i, size := range sizes {
			l.files = append(l.files, imgsrc.File{Name: fmt.Sprint("file", i), Type: '0', Mode: 0o644, Size: size, Stored: size})
		}
		ix, err := layer.BuildIndex(t.Context(), l)
		if err != nil {
			t.Fatal(err)
		}
		tree, err := layer.Merge(t.Context(), []*layer.Index{ix})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := LayOutRootfs(t.Context(), tree, time.Time{}); !errors.Is(err, imgsrc.ErrUnsupported) {
			t.Errorf("%s: rootfs.tar: %v", name, err)
		}
	}
}

// An index may list thousands of manifests that are not there, and each of them as often: they are asked for once, and the
// error is of one line.
func TestIndexOfNothing(t *testing.T) {
	f := &imgsrc.Facts{Kind: imgsrc.KindIndex}
	for i := range 2_000 {
		f.Children = append(f.Children, imgsrc.Child{Digest: digest.FromString(fmt.Sprint(i % 1_000))})
	}
	asked := 0
	c := &conversion{f: f, child: func(_ context.Context, d digest.Digest) (*OCI, error) {
		asked++
		return nil, fmt.Errorf("manifest %s: %w", d, imgsrc.ErrNotFound)
	}}
	_, err := c.index(t.Context())
	if !errors.Is(err, imgsrc.ErrNotFound) || len(err.Error()) > 1_000 || strings.Contains(err.Error(), "\n") {
		t.Errorf("%v", err)
	}
	if asked != 1_000 {
		t.Errorf("1,000 manifests were asked for %d times", asked)
	}
}
