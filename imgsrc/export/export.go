package export

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/imgfs/imgfs/imgsrc"
)

// AnnotationOriginal is the annotation, of a descriptor in a layout's index.json, that holds the digest of the manifest or
// index that the source has in the place of the one that is described. That is a blob of the layout.
const AnnotationOriginal = "io.github.imgfs.original-manifest"

// OCI is an image, an index or an artifact in OCI form. It is immutable.
type OCI struct {
	// Desc describes Manifest. If there is an Original, its annotations say so.
	Desc v1.Descriptor
	// Manifest is the manifest or index.
	Manifest []byte
	// Original is the source's manifest, where it is another; otherwise nil.
	Original []byte
	// Blobs are the config and the layers, in this order, each digest once. An index has none.
	Blobs []Blob
	// Children are an index's, in its order: those that are there, each once.
	Children []*OCI
}

// A Blob is one file of a layout.
type Blob struct {
	Desc v1.Descriptor // media type, digest and exact size
	// Open opens the bytes. The caller closes them. Errors: as with imgsrc.Image.
	Open func(ctx context.Context) (imgsrc.Content, error)
	// From says what the blob is.
	From Origin
}

// An Origin says what a blob of an image is.
type Origin struct {
	Kind  OriginKind
	Layer int // of Layer and Diff, counted from 0 at the base
}

// OriginKind is a kind of blob.
type OriginKind uint8

// What a blob can be.
const (
	Config   OriginKind = iota // of the image
	Layer                      // as the source's manifest names it
	Diff                       // a layer as an uncompressed tar, under its diff id
	Manifest                   // in OCI form
	Original                   // the source's manifest, where that is another
)

// All are all the files that an image needs in a layout, each once: what a manifest names comes before it, and Manifest itself
// is the last.
func (o *OCI) All() iter.Seq[Blob] {
	return func(yield func(Blob) bool) { o.all(map[digest.Digest]bool{}, yield) }
}

func (o *OCI) all(seen map[digest.Digest]bool, yield func(Blob) bool) bool {
	if seen[o.Desc.Digest] { // and then all that it refers to
		return true
	}
	for _, c := range o.Children {
		if !c.all(seen, yield) {
			return false
		}
	}
	for _, b := range o.Files() {
		if seen[b.Desc.Digest] {
			continue
		}
		seen[b.Desc.Digest] = true
		if !yield(b) {
			return false
		}
	}
	return true
}

// Files are what an image itself needs in a layout, each digest once: its blobs, the original if there is one, and the manifest.
// What an index lists is not among them.
func (o *OCI) Files() []Blob {
	files := slices.Clone(o.Blobs)
	if o.Original != nil {
		files = append(files, Blob{
			Desc: v1.Descriptor{MediaType: "application/octet-stream", Digest: o.OriginalDigest(), Size: int64(len(o.Original))},
			Open: opener(o.Original), From: Origin{Kind: Original},
		})
	}
	desc := o.Desc
	desc.Annotations = nil
	return unique(append(files, Blob{Desc: desc, Open: opener(o.Manifest), From: Origin{Kind: Manifest}}))
}

// OriginalDigest is the digest of Original's bytes; empty if there is none.
func (o *OCI) OriginalDigest() digest.Digest {
	return digest.Digest(o.Desc.Annotations[AnnotationOriginal])
}

// leftOut are the errors of an image that cannot be had in OCI form. Any other says nothing of the image.
var leftOut = []error{imgsrc.ErrDamaged, imgsrc.ErrNotFound, imgsrc.ErrAbsent, imgsrc.ErrUnsupported, imgsrc.ErrInvalid}

// IsLeftOut says whether an error of Convert, or of loading an image's facts, means that the image is not to be had in OCI form. If not, it could not be
// told: a registry did not answer, or a disk failed.
func IsLeftOut(err error) bool {
	return slices.ContainsFunc(leftOut, func(e error) bool { return errors.Is(err, e) })
}

// A ChildFunc returns what an index lists under a digest, in OCI form. An error that IsLeftOut, as imgsrc.ErrNotFound is, leaves
// it out of the index; any other fails the conversion.
type ChildFunc func(ctx context.Context, d digest.Digest) (*OCI, error)

// Convert returns an image in OCI form. Facts are the image's. Child is asked for what an index
// lists; nil: nothing of it is there. Errors: ctx's; imgsrc.ErrNotFound if the image is gone; imgsrc.ErrDamaged if its manifest,
// its config or a layer is missing or not what it should be; imgsrc.ErrAbsent or imgsrc.ErrUnsupported if a layer cannot be had
// to the byte; imgsrc.ErrInvalid if the new manifest would be longer than imgsrc.MaxManifest.
func Convert(ctx context.Context, img imgsrc.Image, f *imgsrc.Facts, child ChildFunc) (*OCI, error) {
	c := &conversion{img: bare(img), f: f, child: child}
	o, err := c.run(ctx)
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, fmt.Errorf("putting image %s into OCI form: %w", f.ID, err)
	}
	return o, nil
}

// A conversion is one image on its way.
type conversion struct {
	img   imgsrc.Image
	f     *imgsrc.Facts
	child ChildFunc
}

func (c *conversion) run(ctx context.Context) (*OCI, error) {
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case c.f.ManifestErr != nil:
		return nil, c.f.ManifestErr
	case c.f.Manifest == nil:
		return nil, fmt.Errorf("its manifest was not read: %w", imgsrc.ErrInvalid)
	case c.f.Kind == imgsrc.KindIndex:
		return c.index(ctx)
	case c.f.Kind == imgsrc.KindArtifact:
		return c.artifact(ctx)
	}
	return c.image(ctx)
}

// unchanged is an image that stays as it is. If it was made from another that is known, that one's manifest is still the original.
func (c *conversion) unchanged(ctx context.Context, blobs []Blob) (*OCI, error) {
	o := &OCI{
		Desc:     v1.Descriptor{MediaType: c.f.ManifestType(), Digest: c.digest(), Size: int64(len(c.f.Manifest))},
		Manifest: c.f.Manifest, Blobs: unique(blobs),
	}
	made, ok := c.img.(imgsrc.Converted)
	if !ok {
		return o, nil
	}
	original, err := made.Original(ctx)
	if errors.Is(err, imgsrc.ErrAbsent) {
		return o, nil
	}
	if err != nil {
		return nil, err
	}
	o.setOriginal(original, digest.FromBytes(original))
	return o, nil
}

// digest is that of the source's manifest as a file: its own, but for a signed one of schema 1, whose digest leaves the
// signatures out.
func (c *conversion) digest() digest.Digest {
	if d := c.f.Digest; d.Validate() == nil && d.Algorithm().FromBytes(c.f.Manifest) == d {
		return d
	}
	return digest.FromBytes(c.f.Manifest)
}

func (o *OCI) setOriginal(b []byte, d digest.Digest) {
	o.Original = b
	o.Desc.Annotations = map[string]string{AnnotationOriginal: d.String()}
}

// changed is an image with another manifest, unless that turns out to be the same.
func (c *conversion) changed(ctx context.Context, mediaType string, doc any, blobs []Blob) (*OCI, error) {
	b, err := encode(doc)
	if err != nil {
		return nil, err
	}
	if bytes.Equal(b, c.f.Manifest) {
		return c.unchanged(ctx, blobs)
	}
	if len(b) > imgsrc.MaxManifest {
		return nil, fmt.Errorf("its manifest would have %d bytes, more than %d: %w", len(b), imgsrc.MaxManifest, imgsrc.ErrInvalid)
	}
	o := &OCI{
		Desc:     v1.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))},
		Manifest: b, Blobs: unique(blobs),
	}
	o.setOriginal(c.f.Manifest, c.digest())
	return o, nil
}

// unique drops blobs that come again.
func unique(blobs []Blob) []Blob {
	var all []Blob
	seen := map[digest.Digest]bool{}
	for _, b := range blobs {
		if !seen[b.Desc.Digest] {
			seen[b.Desc.Digest] = true
			all = append(all, b)
		}
	}
	return all
}

// bare is the source's own image, of which it can be asked what more it is than that.
func bare(img imgsrc.Image) imgsrc.Image {
	switch l := img.(type) {
	case imgsrc.Held:
		return l.Image
	case imgsrc.Listed:
		return l.Image
	}
	return img
}

// bytesContent is a document as a Content.
type bytesContent struct{ *bytes.Reader }

func opener(b []byte) func(context.Context) (imgsrc.Content, error) {
	return func(context.Context) (imgsrc.Content, error) { return bytesContent{bytes.NewReader(b)}, nil }
}

func (c bytesContent) Size(ctx context.Context) (int64, error) { return c.Reader.Size(), ctx.Err() }

func (c bytesContent) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	n, err := c.Reader.ReadAt(p, off)
	if err != nil && err != io.EOF {
		err = fmt.Errorf("reading a manifest at %d: %w", off, errors.Join(imgsrc.ErrInvalid, err))
	}
	return n, err
}

func (c bytesContent) Close() error { return nil }
