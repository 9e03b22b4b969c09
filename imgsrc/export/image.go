package export

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/imgfs/imgfs/imgsrc"
)

// The media types of OCI's layers. Those that need not be there are deprecated, and stay what they are.
const (
	typeLayer     = v1.MediaTypeImageLayer
	typeLayerGzip = v1.MediaTypeImageLayerGzip
	typeLayerZstd = v1.MediaTypeImageLayerZstd
	typeForeign   = "application/vnd.oci.image.layer.nondistributable.v1.tar"

	typeDockerLayer   = "application/vnd.docker.image.rootfs.diff.tar"
	typeDockerForeign = "application/vnd.docker.image.rootfs.foreign.diff.tar"
)

// ociTypes are OCI's names for what Docker calls otherwise. Schema 1 gives its layers no type; they are compressed with gzip.
var ociTypes = map[string]string{
	"":                typeLayerGzip,
	typeDockerLayer:   typeLayer,
	typeDockerForeign: typeForeign,

	typeDockerLayer + ".gzip":   typeLayerGzip,
	typeDockerLayer + ".zstd":   typeLayerZstd,
	typeDockerForeign + ".gzip": typeForeign + "+gzip",
	typeDockerForeign + ".zstd": typeForeign + "+zstd",
}

// isForeign says whether a layer of this type need not be where the image is.
func isForeign(mediaType string) bool {
	return strings.Contains(mediaType, ".nondistributable.") || strings.Contains(mediaType, ".foreign.")
}

// keepsForm says whether a manifest is one that readers of OCI layouts take, if its blobs are there.
func keepsForm(f *imgsrc.Facts) bool {
	if f.Kind != imgsrc.KindImage || f.ManifestType() != v1.MediaTypeImageManifest || f.ConfigType() != v1.MediaTypeImageConfig || f.ConfigSize() < 0 {
		return false
	}
	for _, l := range f.Layers {
		if _, docker := ociTypes[l.MediaType]; docker || l.Size < 0 {
			return false
		}
	}
	return true
}

// image converts an image of layers.
func (c *conversion) image(ctx context.Context) (*OCI, error) {
	if c.f.LacksDiffIDs() {
		ids, err := imgsrc.FindDiffIDs(ctx, c.img, len(c.f.Layers))
		if err != nil {
			return nil, fmt.Errorf("finding out the diff ids of its layers: %w", err)
		}
		c.f = c.f.WithDiffIDs(ids)
	}
	keep := keepsForm(c.f)
	config, err := c.config(keep)
	if err != nil {
		return nil, err
	}
	blobs := []Blob{config}
	m := v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest, Config: config.Desc,
		Layers: []v1.Descriptor{}, // not null
	}
	rest := c.rest()
	for n := range c.f.Layers {
		l, err := c.layer(ctx, n)
		if err != nil {
			return nil, fmt.Errorf("layer %d (%s): %w", n, c.f.Layers[n].Digest, err)
		}
		if l.Open != nil {
			blobs = append(blobs, l)
		}
		if n < len(rest.Layers) && l.From.Kind == Layer {
			l.Desc.URLs = rest.Layers[n].URLs
		}
		keep = keep && l.From.Kind == Layer
		m.Layers = append(m.Layers, l.Desc)
	}
	if keep {
		return c.unchanged(ctx, blobs)
	}
	m.ArtifactType, m.Subject = rest.ArtifactType, rest.Subject
	if m.Annotations, err = imgsrc.Annotations(c.f); err != nil && !errors.Is(err, imgsrc.ErrAbsent) {
		return nil, err
	}
	return c.changed(ctx, v1.MediaTypeImageManifest, m, blobs)
}

// rest is what a manifest may say beside its facts. What is not as it should be is taken for not given.
func (c *conversion) rest() (rest struct {
	ArtifactType string
	Subject      *v1.Descriptor
	Layers       []struct{ URLs []string }
}) {
	var doc struct {
		ArtifactType json.RawMessage `json:"artifactType"`
		Subject      json.RawMessage `json:"subject"`
		Layers       []struct {
			URLs json.RawMessage `json:"urls"`
		} `json:"layers"`
	}
	if json.Unmarshal(c.f.Manifest, &doc) != nil {
		return rest
	}
	if json.Unmarshal(doc.ArtifactType, &rest.ArtifactType) != nil {
		rest.ArtifactType = ""
	}
	if json.Unmarshal(doc.Subject, &rest.Subject) != nil || c.f.Subject == "" {
		rest.Subject = nil
	}
	for _, l := range doc.Layers {
		var urls []string
		if json.Unmarshal(l.URLs, &urls) != nil {
			urls = nil
		}
		rest.Layers = append(rest.Layers, struct{ URLs []string }{urls})
	}
	return rest
}

// config is the config's blob. Its bytes have to be there, but for a manifest that is kept: that says what they are.
func (c *conversion) config(keep bool) (Blob, error) {
	b, err := imgsrc.ConfigDocker(c.f) // the exact bytes where there are any
	if c.f.Config != nil && keep {
		b, err = c.f.Config, nil // whatever is in them
	}
	d := c.f.Desc.Config
	switch {
	case err == nil && d == "": // of schema 1
		d = digest.FromBytes(b)
		return Blob{
			Desc: v1.Descriptor{MediaType: v1.MediaTypeImageConfig, Digest: d, Size: int64(len(b))}, Open: opener(b),
		}, nil
	case err == nil && len(b) == 0:
		return Blob{}, fmt.Errorf("its config is empty: %w", imgsrc.ErrDamaged)
	case err == nil:
		return c.configBlob(v1.MediaTypeImageConfig, d, int64(len(b))), nil
	}
	return Blob{}, err
}

// configBlob is the config as the source has it. It is read anew when somebody wants it.
func (c *conversion) configBlob(mediaType string, d digest.Digest, size int64) Blob {
	img := c.img
	return Blob{Desc: v1.Descriptor{MediaType: mediaType, Digest: d, Size: size}, Open: func(ctx context.Context) (imgsrc.Content, error) {
		b, err := img.Config(ctx)
		if err != nil {
			return nil, err
		}
		return bytesContent{bytes.NewReader(b)}, nil
	}}
}

// layer is layer n in the form in which it can be had: as the manifest names it, or as a tar. One that need not be there
// and is not has no Open.
func (c *conversion) layer(ctx context.Context, n int) (Blob, error) {
	l := c.f.Layers[n]
	blob, err := c.blob(ctx, n)
	if !errors.Is(err, imgsrc.ErrAbsent) {
		return blob, err
	}
	diff, diffErr := c.diff(ctx, n)
	if isForeign(l.MediaType) && l.Size >= 0 && (errors.Is(diffErr, imgsrc.ErrAbsent) || errors.Is(diffErr, imgsrc.ErrUnsupported)) {
		return Blob{Desc: c.descriptor(l, l.Size), From: Origin{Layer, n}}, nil
	}
	return diff, diffErr
}

// blob is layer n, or an artifact's, as the manifest names it.
func (c *conversion) blob(ctx context.Context, n int) (Blob, error) {
	l := c.f.Layers[n]
	if err := l.Digest.Validate(); err != nil {
		return Blob{}, fmt.Errorf("%w: %w", imgsrc.ErrUnsupported, err)
	}
	img := c.img
	open := func(ctx context.Context) (imgsrc.Content, error) { return img.Blob(ctx, l.Digest) }
	size, err := sizeOf(ctx, open, l.Size)
	return Blob{Desc: c.descriptor(l, size), Open: open, From: Origin{Layer, n}}, err
}

// descriptor describes a layer as the manifest does, in OCI's words.
func (c *conversion) descriptor(l imgsrc.LayerFacts, size int64) v1.Descriptor {
	d := v1.Descriptor{MediaType: l.MediaType, Digest: l.Digest, Size: size, Annotations: l.Annotations}
	if c.f.Kind != imgsrc.KindImage {
		return d
	}
	if oci, docker := ociTypes[d.MediaType]; docker {
		d.MediaType = oci
	}
	if l.DiffID == l.Digest {
		for _, t := range []string{typeLayer, typeForeign} {
			if strings.HasPrefix(d.MediaType, t+"+") {
				d.MediaType = t
			}
		}
	}
	return d
}

// ofBlob begin the names of annotations that say where things are in a compressed blob, or how it is encrypted.
var ofBlob = []string{
	"io.github.containers.zstd-chunked.", "containerd.io/snapshot/stargz/", "io.containers.estargz.", "org.opencontainers.image.enc.",
}

// diff is layer n as an uncompressed tar.
func (c *conversion) diff(ctx context.Context, n int) (Blob, error) {
	l := c.f.Layers[n]
	if err := l.DiffID.Validate(); err != nil {
		return Blob{}, fmt.Errorf("its blob is not kept, and its diff id %q is none: %w", l.DiffID, imgsrc.ErrUnsupported)
	}
	img := c.img
	open := func(ctx context.Context) (imgsrc.Content, error) { return img.Diff(ctx, n) }
	size, err := sizeOf(ctx, open, -1)
	if err != nil {
		return Blob{}, err
	}
	d := v1.Descriptor{MediaType: typeLayer, Digest: l.DiffID, Size: size}
next:
	for key, value := range l.Annotations {
		for _, prefix := range ofBlob {
			if strings.HasPrefix(key, prefix) {
				continue next
			}
		}
		if d.Annotations == nil {
			d.Annotations = map[string]string{}
		}
		d.Annotations[key] = value
	}
	return Blob{Desc: d, Open: open, From: Origin{Diff, n}}, nil
}

// sizeOf opens a content, which fails if it is not there, and returns its size: the one that is known, unless that is -1.
func sizeOf(ctx context.Context, open func(context.Context) (imgsrc.Content, error), known int64) (int64, error) {
	content, err := open(ctx)
	if err != nil {
		return 0, err
	}
	if known < 0 {
		known, err = content.Size(ctx)
	}
	return known, errors.Join(err, content.Close())
}

// artifact returns an artifact, as it is.
func (c *conversion) artifact(ctx context.Context) (*OCI, error) {
	var blobs []Blob
	if d := c.f.Desc.Config; d != "" {
		if c.f.Config == nil {
			return nil, c.f.ConfigErr
		}
		blobs = append(blobs, c.configBlob(c.f.ConfigType(), d, int64(len(c.f.Config))))
	}
	for n, l := range c.f.Layers {
		b, err := c.blob(ctx, n)
		if errors.Is(err, imgsrc.ErrAbsent) && isForeign(l.MediaType) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("blob %d (%s): %w", n, l.Digest, err)
		}
		blobs = append(blobs, b)
	}
	o, err := c.unchanged(ctx, blobs)
	if err != nil {
		return nil, err
	}
	o.Desc.ArtifactType = c.f.ArtifactType
	return o, nil
}
