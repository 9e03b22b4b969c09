package sourcetest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/imgfs/imgfs/imgsrc"
)

// An Image is what an image must be, wherever it lies.
type Image struct {
	v1.Descriptor // of the manifest

	ID       string // what podman shows
	Names    []string
	Manifest []byte
	Config   []byte   // nil: it has none
	Layers   []Layer  // base first; nil for an index
	Lists    []*Image // what an index lists
	form     document // what the manifest says
}

// A Layer is one of an image's layers.
type Layer struct {
	v1.Descriptor // as the manifest has it

	DiffID  digest.Digest // as the config has it
	Blob    []byte
	BlobErr error  // why it cannot be read
	Diff    []byte // the uncompressed tar, if it is what the config promises
	DiffErr error  // why it is not
	TarErr  error  // why its files cannot be listed
	entries []tarEntry
}

// A tarEntry is an entry of a tar, as the standard library reads it.
type tarEntry struct {
	*tar.Header
	body []byte // of a regular file, holes and all
}

// A document is what this test knows of a manifest: an image's, or an index's.
type document struct {
	Config      v1.Descriptor
	Layers      []v1.Descriptor
	Manifests   []v1.Descriptor
	Annotations map[string]string
}

// ReadLayout reads the images of an OCI image layout, in its order, and behind each index what it lists. It shares nothing
// with the sources under test, so that a mistake there is not made here as well.
func ReadLayout(dir string) ([]*Image, error) {
	var index v1.Index
	b, err := os.ReadFile(filepath.Join(dir, v1.ImageIndexFile))
	if err == nil {
		err = json.Unmarshal(b, &index)
	}
	if err != nil {
		return nil, err
	}
	r := &layoutReader{dir: dir, images: map[digest.Digest]*Image{}}
	for _, d := range index.Manifests {
		img, err := r.image(d)
		if err != nil {
			return nil, err
		}
		if name, ok := d.Annotations[v1.AnnotationRefName]; ok {
			img.Names = append(img.Names, name)
		}
	}
	return r.all, nil
}

type layoutReader struct {
	dir    string
	images map[digest.Digest]*Image
	all    []*Image
}

func (r *layoutReader) blob(d digest.Digest) ([]byte, error) {
	return os.ReadFile(filepath.Join(r.dir, v1.ImageBlobsDir, d.Algorithm().String(), d.Encoded()))
}

func (r *layoutReader) image(d v1.Descriptor) (*Image, error) {
	if img := r.images[d.Digest]; img != nil {
		return img, nil
	}
	img := &Image{Descriptor: d, ID: d.Digest.Encoded()}
	r.images[d.Digest] = img
	r.all = append(r.all, img)
	var err error
	if img.Manifest, err = r.blob(d.Digest); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(img.Manifest, &img.form); err != nil {
		return nil, err
	}
	for _, c := range img.form.Manifests {
		child, err := r.image(c)
		if err != nil {
			return nil, err
		}
		img.Lists = append(img.Lists, child)
	}
	if img.Lists != nil {
		return img, nil
	}
	img.ID = img.form.Config.Digest.Encoded()
	if img.Config, err = r.blob(img.form.Config.Digest); err != nil {
		return nil, err
	}
	var config v1.Image
	if err := json.Unmarshal(img.Config, &config); err != nil {
		return nil, err
	}
	if len(config.RootFS.DiffIDs) != len(img.form.Layers) {
		return nil, fmt.Errorf("image %s has %d layers and %d diff ids", img.ID, len(img.form.Layers), len(config.RootFS.DiffIDs))
	}
	for n, d := range img.form.Layers {
		l := Layer{Descriptor: d, DiffID: config.RootFS.DiffIDs[n]}
		if l.Blob, err = r.blob(d.Digest); err != nil {
			return nil, err
		}
		l.read()
		img.Layers = append(img.Layers, l)
	}
	return img, nil
}

// read finds out what is in the blob.
func (l *Layer) read() {
	if l.Diff, l.DiffErr = decompress(l.Blob); l.DiffErr == nil && digest.FromBytes(l.Diff) != l.DiffID {
		l.DiffErr = fmt.Errorf("%w: the tar is not %s", imgsrc.ErrDamaged, l.DiffID)
	}
	if l.TarErr = l.DiffErr; l.TarErr == nil {
		l.entries, l.TarErr = readTar(l.Diff)
	}
}

// isSparse says whether the layer has a file that the tar keeps without its holes.
func (l *Layer) isSparse() bool {
	return slices.ContainsFunc(l.entries, func(e tarEntry) bool {
		return e.Typeflag == tar.TypeGNUSparse || e.PAXRecords["GNU.sparse.major"] != ""
	})
}

func decompress(b []byte) ([]byte, error) {
	var r io.Reader = bytes.NewReader(b)
	var err error
	switch {
	case bytes.HasPrefix(b, []byte{0x1f, 0x8b}):
		r, err = gzip.NewReader(r)
	case bytes.HasPrefix(b, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		var d *zstd.Decoder
		if d, err = zstd.NewReader(r); err == nil {
			defer d.Close()
			r = d
		}
	}
	if err == nil {
		b, err = io.ReadAll(r)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", imgsrc.ErrDamaged, err)
	}
	return b, nil
}

func readTar(b []byte) ([]tarEntry, error) {
	var all []tarEntry
	r := tar.NewReader(bytes.NewReader(b))
	for {
		h, err := r.Next()
		if err == io.EOF {
			return all, nil
		}
		e := tarEntry{Header: h}
		if err == nil && h.Typeflag == tar.TypeReg {
			e.body, err = io.ReadAll(r)
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %w", imgsrc.ErrDamaged, err)
		}
		all = append(all, e)
	}
}

// withoutStargz leaves out what is only there to make a layer eStargz: its table of contents, which is the last entry, and
// its marks.
func withoutStargz(all []tarEntry) []tarEntry {
	if len(all) == 0 || all[len(all)-1].Name != "stargz.index.json" {
		return all
	}
	var rest []tarEntry
	for _, e := range all[:len(all)-1] {
		if !strings.HasSuffix(e.Name, ".prefetch.landmark") {
			rest = append(rest, e)
		}
	}
	return rest
}
