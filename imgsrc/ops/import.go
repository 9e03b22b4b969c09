package ops

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/types"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/layer"
)

// A rootfs is a file that is the tar of a root file system, compressed or not.
type rootfs struct {
	path   string
	diffID digest.Digest // of the tar
	size   int64         // the tar's
}

// markers are the members that only an archive of images has at its top.
var markers = map[string]bool{imgspecv1.ImageLayoutFile: true, imgspecv1.ImageIndexFile: true, "manifest.json": true, "repositories": true}

// findRootfs reads a file as a tar, from its beginning to its end, and measures it. nil if it is an archive of images: as
// soon as one of its markers comes. Errors: imgsrc.ErrInvalid if it is no tar; imgsrc.ErrDamaged if it breaks off, or its
// compression is broken.
func findRootfs(ctx context.Context, file string) (*rootfs, error) {
	r := &rootfs{path: file}
	if marked, err := hasMarker(ctx, file); marked || err != nil {
		return nil, err
	}
	in, err := r.open(ctx)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	sum := digest.Canonical.Digester()
	counted := &countingReader{r: io.TeeReader(in, sum.Hash())}
	tr := tar.NewReader(counted)
	n, end := 0, int64(0) // how many files there were, and where the last one ended, but for what fills its last block
	for ; ; n++ {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, notTar(file, n, counted.n, err)
		}
		if isMarker(h) {
			return nil, nil
		}
		if _, err := io.Copy(io.Discard, tr); err != nil {
			return nil, notTar(file, n+1, counted.n, err)
		}
		end = counted.n
	}
	if counted.n == 0 {
		return nil, fail(imgsrc.ErrInvalid, "%s is empty", quote(file))
	}
	if counted.n-end < tarBlock { // the reader takes the end of the file for the end of the archive as well
		return nil, notTar(file, n, counted.n, io.ErrUnexpectedEOF)
	}
	switch rest, err := io.Copy(io.Discard, io.LimitReader(counted, maxBehind+1)); {
	case err != nil:
		return nil, notTar(file, n, counted.n, err)
	case rest > maxBehind:
		return nil, fail(imgsrc.ErrInvalid, "%s is no tar of a root file system: its tar ends at byte %d, and more than %d bytes follow", quote(file), counted.n-rest, maxBehind)
	}
	r.diffID, r.size = sum.Digest(), counted.n
	return r, nil
}

func isMarker(h *tar.Header) bool {
	return h.Typeflag == tar.TypeReg && markers[path.Clean("/" + h.Name)[1:]]
}

// hasMarker says whether a tar that is not compressed has a marker, by a look at its headers alone: archives of images
// often have theirs at the end. That there is none says nothing.
func hasMarker(ctx context.Context, file string) (bool, error) {
	f, err := os.Open(file)
	if err != nil {
		return false, err
	}
	defer f.Close()
	for tr := tar.NewReader(f); ; { // which seeks over the bodies
		if ctx.Err() != nil {
			return false, context.Cause(ctx)
		}
		h, err := tr.Next()
		if err != nil {
			return false, nil // whoever reads all of it says what is wrong
		}
		if isMarker(h) {
			return true, nil
		}
	}
}

// notTar says what is wrong with a file after n members and so many bytes of its tar.
func notTar(file string, n int, at int64, err error) error {
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, imgsrc.ErrUnsupported), errors.Is(err, fs.ErrPermission):
		return err
	case errors.Is(err, imgsrc.ErrDamaged) && !errors.Is(err, io.ErrUnexpectedEOF):
		return fail(imgsrc.ErrDamaged, "%s: %s", quote(file), err)
	case !errors.Is(err, imgsrc.ErrDamaged) && n == 0 && (errors.Is(err, tar.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF)):
		return fail(imgsrc.ErrInvalid, "%s is neither an archive of images nor a tar of a root file system", quote(file))
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fail(imgsrc.ErrDamaged, "%s is cut short: its tar ends at byte %d, after %s: copy it again", quote(file), at, files(n))
	case errors.Is(err, tar.ErrHeader):
		return fail(imgsrc.ErrDamaged, "%s is damaged: what follows after %s is no tar", quote(file), files(n))
	}
	return err
}

func files(n int) string {
	if n == 1 {
		return "1 file"
	}
	return fmt.Sprintf("%d files", n)
}

// open opens the tar's bytes.
func (r *rootfs) open(ctx context.Context) (io.ReadCloser, error) {
	f, err := os.Open(r.path)
	if err != nil {
		return nil, err
	}
	plain, _, err := layer.Decompress(&ctxReader{ctx, f})
	if err != nil {
		f.Close()
		return nil, notTar(r.path, 0, 0, err)
	}
	return &twoClosers{plain, f}, nil
}

type twoClosers struct {
	io.ReadCloser
	below io.Closer
}

func (c *twoClosers) Close() error { return errors.Join(c.ReadCloser.Close(), c.below.Close()) }

// tarBlock is what a tar's length is a multiple of. At its end are two such blocks of zeros.
const tarBlock = 512

// maxBehind is how much may follow after the end of a tar, which its makers fill up to a block of the tape. It is a part of what the
// diff id is of, and without a bound the holes of a sparse file would be read for hours.
const maxBehind = 64 << 20

// A countingReader knows how much has been read through it.
type countingReader struct {
	r io.Reader
	n int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// importRootfs loads a root file system as an image of one layer, as podman import does.
func (o *Ops) importRootfs(ctx context.Context, p pullLine, root *rootfs, to Receiver, t *task) error {
	base := filepath.Base(p.place)
	name := p.name
	if name == "" {
		var err error
		if name, err = nameOfFile(base); err != nil {
			return err
		}
	}
	name, err := to.CheckName(name)
	if err != nil {
		return err
	}
	t.becomes("import")
	img, err := newImported(root, base, time.Now().UTC())
	if err != nil {
		return err
	}
	src := &source{
		held: imgsrc.Held{Listed: imgsrc.Listed{Image: img}, Source: importedFrom{path: p.place}},
		task: t, reading: func() func() { return func() {} },
	}
	a := arrival{to: to, name: name, ref: src, sys: &types.SystemContext{BlobInfoCacheDir: os.DevNull}, task: t, watch: new(watchdog)}
	id, err := o.receive(ctx, a)
	if err != nil {
		return err
	}
	t.came(o.show(ctx, to, id, name), name)
	return nil
}

// imported is the image that is made of a root file system.
type imported struct {
	root             *rootfs
	desc             imgsrc.Desc
	manifest, config []byte
}

// newImported makes the image of root, which came in a file called base.
func newImported(root *rootfs, base string, now time.Time) (*imported, error) {
	img := &imported{root: root}
	config := imgspecv1.Image{
		Created:  &now,
		Platform: imgspecv1.Platform{Architecture: runtime.GOARCH, OS: runtime.GOOS},
		RootFS:   imgspecv1.RootFS{Type: "layers", DiffIDs: []digest.Digest{root.diffID}},
		History:  []imgspecv1.History{{Created: &now, CreatedBy: "imgfs load " + base, Comment: "imported from " + base}},
	}
	var err error
	if img.config, err = json.Marshal(config); err != nil {
		return nil, err
	}
	id := digest.FromBytes(img.config)
	m := imgspecv1.Manifest{
		MediaType: imgspecv1.MediaTypeImageManifest,
		Config:    imgspecv1.Descriptor{MediaType: imgspecv1.MediaTypeImageConfig, Digest: id, Size: int64(len(img.config))},
		Layers:    []imgspecv1.Descriptor{{MediaType: imgspecv1.MediaTypeImageLayer, Digest: root.diffID, Size: root.size}},
	}
	m.SchemaVersion = 2
	if img.manifest, err = json.Marshal(m); err != nil {
		return nil, err
	}
	img.desc = imgsrc.Desc{
		ID: id.Encoded(), Config: id, Digest: digest.FromBytes(img.manifest), MediaType: m.MediaType, Size: int64(len(img.manifest)),
	}
	return img, nil
}

func (i *imported) Desc() imgsrc.Desc                        { return i.desc }
func (i *imported) Manifest(context.Context) ([]byte, error) { return i.manifest, nil }
func (i *imported) Config(context.Context) ([]byte, error)   { return i.config, nil }

func (i *imported) Blob(_ context.Context, d digest.Digest) (imgsrc.Content, error) {
	if d != i.root.diffID {
		return nil, fmt.Errorf("opening blob %s: %w", d, imgsrc.ErrAbsent)
	}
	return &rootfsContent{root: i.root}, nil
}

func (i *imported) Diff(ctx context.Context, n int) (imgsrc.Content, error) {
	if n != 0 {
		return nil, fmt.Errorf("opening layer %d: %w", n, imgsrc.ErrAbsent)
	}
	return i.Blob(ctx, i.root.diffID)
}

func (i *imported) Files(context.Context, int) (imgsrc.Files, error) { return nil, imgsrc.ErrAbsent }

// rootfsContent is the tar of a root file system, read from its beginning to its end.
type rootfsContent struct {
	root *rootfs
	in   io.ReadCloser
	off  int64
}

func (c *rootfsContent) Size(context.Context) (int64, error) { return c.root.size, nil }

func (c *rootfsContent) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if c.in == nil || off != c.off {
		if off != 0 {
			return 0, fmt.Errorf("reading at %d: %w: only from the beginning to the end", off, imgsrc.ErrUnsupported)
		}
		if err := c.Close(); err != nil {
			return 0, err
		}
		in, err := c.root.open(ctx)
		if err != nil {
			return 0, err
		}
		c.in, c.off = in, 0
	}
	n, err := io.ReadFull(c.in, p)
	c.off += int64(n)
	if err == io.ErrUnexpectedEOF && c.off == c.root.size {
		err = io.EOF
	}
	if err != nil && err != io.EOF || c.off > c.root.size {
		err = fmt.Errorf("%w: %s changed while it was read: %w", imgsrc.ErrDamaged, c.root.path, err)
	}
	return n, err
}

func (c *rootfsContent) Close() error {
	if c.in == nil {
		return nil
	}
	err := c.in.Close()
	c.in = nil
	return err
}

// importedFrom is what an imported image has for a source: a place for the signature policy to know it by.
type importedFrom struct{ path string }

func (f importedFrom) Name() string { return "tarball:" + f.path }
func (importedFrom) List(context.Context) (*imgsrc.Listing, error) {
	return nil, imgsrc.ErrUnsupported
}
func (importedFrom) Stamp() imgsrc.Stamp                       { return "" }
func (importedFrom) Watch(ctx context.Context, _ func()) error { return imgsrc.ErrUnsupported }
func (importedFrom) Close() error                              { return nil }

// nameOfFile makes a name of a file's: localhost/NAME:latest, without extensions of archives.
func nameOfFile(base string) (string, error) {
	name := strings.ToLower(base)
	for _, ext := range []string{".gz", ".bz2", ".xz", ".zst", ".zstd", ".tgz", ".tbz", ".tbz2", ".txz", ".tzst"} {
		if cut, ok := strings.CutSuffix(name, ext); ok {
			name = cut
			break
		}
	}
	name = strings.TrimSuffix(name, ".tar")
	name = strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '.' || r == '_' || r == '-' {
			return r
		}
		return '-'
	}, name)
	name = strings.Trim(name, "._-")
	full := "localhost/" + name + ":latest"
	if _, err := reference.ParseNamed(full); err != nil {
		return "", fail(imgsrc.ErrInvalid, "no name for an image can be made of %s: give one with name=", quote(base))
	}
	return full, nil
}
