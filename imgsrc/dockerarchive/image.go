package dockerarchive

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/manifest"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/blobs"
	"github.com/imgfs/imgfs/imgsrc/layer"
)

// describe makes an image of an entry; hashes are the digests of files that had to be hashed for others. Error: that its
// config cannot be read, without which nothing is known of it.
func (s *Source) describe(ctx context.Context, it item, hashes map[string]digest.Digest) (*described, error) {
	config, _, err := blobs.ReadFile(s.tar, it.Config, imgsrc.MaxManifest)
	if err != nil {
		return nil, fmt.Errorf("%w: reading its config: %w", imgsrc.ErrDamaged, err)
	}
	d := digest.FromBytes(config)
	if name := digestName(it.Config); name != "" && name != d {
		return nil, fmt.Errorf("%w: the bytes of its config %s are %s", imgsrc.ErrDamaged, it.Config, d)
	}
	s.lies(d, it.Config)
	made, err := s.makeManifest(ctx, it, manifest.Schema2Descriptor{
		MediaType: manifest.DockerV2Schema2ConfigMediaType, Size: int64(len(config)), Digest: d,
	}, config, hashes)
	desc := imgsrc.Desc{ID: d.Encoded(), Config: d, MediaType: manifest.DockerV2Schema2MediaType}
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		desc.Damaged = err
		return &described{image: blobs.NewImage(s.store, desc, int64(len(config)), blobs.Manifest{
			Bytes: func(context.Context) ([]byte, error) { return nil, err },
			Here:  func() bool { return false },
		})}, nil
	}
	desc.Digest = digest.FromBytes(made)
	facts := imgsrc.Describe(&desc, made)
	out := &described{image: blobs.NewImage(s.store, desc, facts.ConfigSize(), blobs.Manifest{
		Bytes: func(context.Context) ([]byte, error) { return made, s.there(it.Config) },
		Here:  func() bool { return s.there(it.Config) == nil },
	})}
	for _, l := range facts.Layers {
		out.layers = append(out.layers, string(l.Digest))
	}
	return out, nil
}

// there fails if the archive is gone, has the image no more, or may have it in what is missing of it.
func (s *Source) there(config string) error {
	_, err := s.tar.Stat(config)
	if errors.Is(err, fs.ErrNotExist) && !errors.Is(err, imgsrc.ErrDamaged) {
		err = fmt.Errorf("%w: the archive does not have it any more: %w", imgsrc.ErrNotFound, err)
	}
	return err
}

// makeManifest makes the manifest that the format does not have.
func (s *Source) makeManifest(ctx context.Context, it item, config manifest.Schema2Descriptor, text []byte, hashes map[string]digest.Digest) ([]byte, error) {
	var parsed struct {
		RootFS struct {
			DiffIDs []digest.Digest `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if err := json.Unmarshal(text, &parsed); err != nil {
		return nil, fmt.Errorf("%w: its config: %w", imgsrc.ErrDamaged, err)
	}
	ids := parsed.RootFS.DiffIDs
	if len(ids) != len(it.Layers) {
		return nil, fmt.Errorf("%w: manifest.json names %d layers, and the config %d", imgsrc.ErrDamaged, len(it.Layers), len(ids))
	}
	var layers []manifest.Schema2Descriptor
	lacks := false
	for i, file := range it.Layers {
		if err := ids[i].Validate(); err != nil {
			return nil, fmt.Errorf("%w: diff id %q: %w", imgsrc.ErrDamaged, ids[i], err)
		}
		l, err := s.describeLayer(ctx, file, ids[i], hashes)
		if errors.Is(err, fs.ErrNotExist) {
			l, err, lacks = s.missing(file, ids[i]), nil, true
		}
		if err != nil {
			return nil, fmt.Errorf("layer %d: %w", i, err)
		}
		layers = append(layers, l)
	}
	if lacks {
		return withoutSizes(config, layers)
	}
	return manifest.Schema2FromComponents(config, layers).Serialize()
}

// unknownSize stands for the size of a layer that is not there.
const unknownSize = -1

// missing describes a layer that the archive names and does not have, so that the image is there but for that: by the digest that
// the file's name says, or as the uncompressed tar. Who reads it is told that the file is missing.
func (s *Source) missing(file string, diffID digest.Digest) manifest.Schema2Descriptor {
	d := cmp.Or(digestName(file), diffID)
	if s.path(d) == "" { // another image may have it
		s.lies(d, file)
	}
	return manifest.Schema2Descriptor{MediaType: manifest.DockerV2Schema2LayerMediaType, Size: unknownSize, Digest: d}
}

// withoutSizes is a manifest that does not say the sizes of layers that are not there: none is made up.
func withoutSizes(config manifest.Schema2Descriptor, layers []manifest.Schema2Descriptor) ([]byte, error) {
	type descriptor struct {
		MediaType string        `json:"mediaType"`
		Size      *int64        `json:"size,omitempty"`
		Digest    digest.Digest `json:"digest"`
	}
	doc := struct {
		SchemaVersion int          `json:"schemaVersion"`
		MediaType     string       `json:"mediaType"`
		Config        descriptor   `json:"config"`
		Layers        []descriptor `json:"layers"`
	}{2, manifest.DockerV2Schema2MediaType, descriptor{config.MediaType, &config.Size, config.Digest}, nil}
	for i := range layers {
		l := descriptor{MediaType: layers[i].MediaType, Digest: layers[i].Digest}
		if layers[i].Size != unknownSize {
			l.Size = &layers[i].Size
		}
		doc.Layers = append(doc.Layers, l)
	}
	return json.Marshal(doc)
}

// describeLayer looks at the beginning of a layer's file; at all of it, if it is compressed, its name does not say its
// digest and no other image has had it hashed.
func (s *Source) describeLayer(ctx context.Context, file string, diffID digest.Digest, hashes map[string]digest.Digest) (manifest.Schema2Descriptor, error) {
	f, err := s.tar.Open(file)
	if err != nil {
		return manifest.Schema2Descriptor{}, fmt.Errorf("%w: %w", imgsrc.ErrDamaged, err)
	}
	defer f.Close()
	l := manifest.Schema2Descriptor{MediaType: manifest.DockerV2Schema2LayerMediaType, Size: f.Identity().Size(), Digest: diffID}
	head := make([]byte, layer.HeadLen)
	n, err := f.ReadAt(head, 0)
	if err != nil && err != io.EOF {
		return l, fmt.Errorf("reading %s: %w", file, err)
	}
	if layer.Detect(head[:n]) != layer.None {
		if l.Digest = cmp.Or(digestName(file), hashes[file]); l.Digest == "" {
			if l.Digest, err = digest.FromReader(&interruptible{ctx, io.NewSectionReader(f, 0, l.Size)}); err != nil {
				return l, fmt.Errorf("reading %s: %w", file, err)
			}
			hashes[file] = l.Digest
		}
	}
	s.lies(l.Digest, file)
	return l, nil
}

// interruptible is a reader that ends with its context.
type interruptible struct {
	ctx context.Context
	r   io.Reader
}

func (r *interruptible) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}
