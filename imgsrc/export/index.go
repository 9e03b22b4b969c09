package export

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/imgfs/imgfs/imgsrc"
)

// index converts an index. What it lists and cannot be converted is not there.
func (c *conversion) index(ctx context.Context) (*OCI, error) {
	ix := v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex, Manifests: []v1.Descriptor{}}
	same := c.f.ManifestType() == v1.MediaTypeImageIndex
	var children []*OCI
	was := map[digest.Digest]*OCI{} // by the digest in the index; nil: not there
	var missing error               // the first: there may be thousands
	for _, child := range c.f.Children {
		o, known := was[child.Digest]
		if !known {
			var err error
			o, err = c.childOf(ctx, child.Digest)
			switch {
			case err == nil:
				children = append(children, o)
			case ctx.Err() != nil || !IsLeftOut(err):
				return nil, fmt.Errorf("manifest %s: %w", child.Digest, err)
			case missing == nil:
				missing = err
			}
			if err != nil {
				o = nil
			}
			was[child.Digest] = o
		}
		if o == nil {
			continue
		}
		same = same && o.Desc.Digest == child.Digest
		ix.Manifests = append(ix.Manifests, entryOf(child, o))
	}
	if len(children) == 0 && len(c.f.Children) > 0 {
		return nil, fmt.Errorf("none of the %d manifests that it lists can be had: %w", len(was), missing)
	}
	if same {
		o, err := c.unchanged(ctx, nil)
		if err != nil {
			return nil, err
		}
		o.Children = children
		if missing != nil && o.Original == nil {
			o.Desc.Annotations = map[string]string{AnnotationOriginal: o.Desc.Digest.String()}
		}
		return o, nil
	}
	for i := range ix.Manifests {
		refer(&ix.Manifests[i], was)
	}
	rest := c.rest()
	ix.ArtifactType, ix.Subject = rest.ArtifactType, rest.Subject
	var err error
	if ix.Annotations, err = imgsrc.Annotations(c.f); err != nil && !errors.Is(err, imgsrc.ErrAbsent) {
		return nil, err
	}
	o, err := c.changed(ctx, v1.MediaTypeImageIndex, ix, nil)
	if err != nil {
		return nil, err
	}
	o.Children = children
	return o, nil
}

func (c *conversion) childOf(ctx context.Context, d digest.Digest) (*OCI, error) {
	if c.child == nil {
		return nil, fmt.Errorf("manifest %s: %w", d, imgsrc.ErrNotFound)
	}
	return c.child(ctx, d)
}

// entryOf is an entry of an index, as it was but for what it leads to.
func entryOf(child imgsrc.Child, o *OCI) v1.Descriptor {
	d := v1.Descriptor{
		MediaType: o.Desc.MediaType, Digest: o.Desc.Digest, Size: o.Desc.Size,
		ArtifactType: child.ArtifactType, Annotations: maps.Clone(child.Annotations),
	}
	if p := child.Platform; p != nil {
		d.Platform = &v1.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant, OSVersion: p.OSVersion, OSFeatures: p.OSFeatures}
	}
	return d
}

// refer makes an annotation that is the digest of another entry, as those of attestations are, that entry's new one.
func refer(d *v1.Descriptor, was map[digest.Digest]*OCI) {
	for key, value := range d.Annotations {
		if o := was[digest.Digest(value)]; o != nil {
			d.Annotations[key] = o.Desc.Digest.String()
		}
	}
}

// LayoutFile is what is in the file oci-layout.
const LayoutFile = `{"imageLayoutVersion":"` + v1.ImageLayoutVersion + `"}`

// An Entry is an image in a layout, with its names.
type Entry struct {
	Desc  v1.Descriptor // OCI.Desc
	Names []string
}

// IndexJSON is a layout's index.json: a descriptor for each name of an image, or one without a name. The names are
// org.opencontainers.image.ref.name, whatever they are. A manifest that was made from none, beside one that turned out the
// same, has itself for its original; so has an index that was not whole where it is from.
func IndexJSON(images []Entry) ([]byte, error) {
	ix := v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex, Manifests: []v1.Descriptor{}}
	made := map[digest.Digest]bool{}
	for _, img := range images {
		made[img.Desc.Digest] = made[img.Desc.Digest] || img.Desc.Annotations[AnnotationOriginal] != ""
	}
	for _, img := range images {
		if made[img.Desc.Digest] && img.Desc.Annotations[AnnotationOriginal] == "" {
			annotations := map[string]string{AnnotationOriginal: img.Desc.Digest.String()}
			maps.Copy(annotations, img.Desc.Annotations)
			img.Desc.Annotations = annotations
		}
		if len(img.Names) == 0 {
			ix.Manifests = append(ix.Manifests, img.Desc)
		}
		for _, name := range img.Names {
			d := img.Desc
			d.Annotations = map[string]string{v1.AnnotationRefName: name}
			maps.Copy(d.Annotations, img.Desc.Annotations)
			ix.Manifests = append(ix.Manifests, d)
		}
	}
	return encode(ix)
}

// encode is the form of the JSON that is made here: compact, "<" as itself, without a newline at the end.
func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("encoding JSON: %w", err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}
