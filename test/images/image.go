package images

import (
	"bytes"
	"compress/gzip"
	_ "crypto/sha256" // go-digest's hash, which it does not bring itself
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Compression is how layers are stored.
type Compression string

// The compressions that a layer's media type can name.
const (
	Gzip Compression = "gzip"
	Zstd Compression = "zstd"
	None Compression = "none"

	// EStargz is gzip too, in members that can be read on their own.
	EStargz Compression = "estargz"
	// ZstdChunked is zstd in frames that can be read on their own.
	ZstdChunked Compression = "zstd:chunked"
)

// A Layer is one layer, or a step of the history without one.
type Layer struct {
	Entries   []Entry
	CreatedBy string
	Comment   string
	Empty     bool // a history entry without a layer

	// What makes a layer damaged. The digests are those of the damaged bytes.
	SpoilTar    func(tar []byte) []byte  // changes the tar before it is compressed
	SpoilBlob   func(blob []byte) []byte // changes the compressed blob
	WrongDiffID bool                     // the config has another diff id
}

// A Healthcheck is Docker's; OCI configs have no such field.
type Healthcheck struct {
	Test     []string
	Interval time.Duration `json:",omitempty"`
	Timeout  time.Duration `json:",omitempty"`
	Retries  int           `json:",omitempty"`
}

// An Image is what an image is to be made of.
type Image struct {
	Layers      []Layer
	Config      v1.ImageConfig
	Healthcheck *Healthcheck // written only with Docker
	Author      string
	Comment     string      // written only with Docker
	Created     time.Time   // zero: Epoch
	Platform    v1.Platform // zero: linux/amd64
	Annotations map[string]string
	Compression Compression // empty: Gzip
	Docker      bool        // a Docker schema 2 manifest and config instead of OCI's
}

// The media types of Docker's schema 2, as the image manifest specification of that version has them.
const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerConfig   = "application/vnd.docker.container.image.v1+json"
	dockerLayer    = "application/vnd.docker.image.rootfs.diff.tar"
)

// dockerImage is a v1.Image with the fields that only Docker has. Its Config shadows the embedded one.
type dockerImage struct {
	v1.Image
	Config struct {
		v1.ImageConfig
		Healthcheck *Healthcheck `json:",omitempty"`
	} `json:"config"`
	Comment string `json:"comment,omitempty"`
}

// Add writes an image with all its blobs and returns its manifest's descriptor. It is listed in the layout's index.json under
// each of the names, or without a name if none is given.
func (l *Layout) Add(img Image, names ...string) (v1.Descriptor, error) {
	d, err := l.Write(img)
	if err != nil {
		return d, fmt.Errorf("making image %v: %w", names, err)
	}
	l.List(d, names...)
	return d, nil
}

// Write writes an image with all its blobs and returns its manifest's descriptor, without listing it: for an index.
func (l *Layout) Write(img Image) (v1.Descriptor, error) {
	if img.Created.IsZero() {
		img.Created = Epoch
	}
	if img.Platform.OS == "" {
		img.Platform = v1.Platform{OS: "linux", Architecture: "amd64"}
	}
	config := v1.Image{Created: &img.Created, Author: img.Author, Platform: img.Platform, Config: img.Config}
	config.RootFS.Type = "layers"
	manifest := v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest, Annotations: img.Annotations,
	}
	configType := v1.MediaTypeImageConfig
	if img.Docker {
		manifest.MediaType, configType = dockerManifest, dockerConfig
	}
	for _, layer := range img.Layers {
		config.History = append(config.History, v1.History{
			Created: &img.Created, CreatedBy: layer.CreatedBy, Comment: layer.Comment, EmptyLayer: layer.Empty,
		})
		if layer.Empty {
			continue
		}
		diffID, desc, err := l.writeLayer(layer, img.Compression, img.Docker)
		if err != nil {
			return v1.Descriptor{}, err
		}
		if layer.WrongDiffID {
			diffID = digest.FromString("wrong")
		}
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, diffID)
		manifest.Layers = append(manifest.Layers, desc)
	}
	var err error
	if img.Docker {
		docker := dockerImage{Image: config, Comment: img.Comment}
		docker.Config.ImageConfig, docker.Config.Healthcheck = img.Config, img.Healthcheck
		manifest.Config, err = l.writeJSON(configType, docker)
	} else {
		manifest.Config, err = l.writeJSON(configType, config)
	}
	if err != nil {
		return v1.Descriptor{}, err
	}
	desc, err := l.writeJSON(manifest.MediaType, manifest)
	desc.Platform = &v1.Platform{OS: img.Platform.OS, Architecture: img.Platform.Architecture, Variant: img.Platform.Variant}
	return desc, err
}

// AddIndex writes an image index over manifests and lists it under names.
func (l *Layout) AddIndex(manifests []v1.Descriptor, annotations map[string]string, names ...string) (v1.Descriptor, error) {
	d, err := l.writeJSON(v1.MediaTypeImageIndex, v1.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex,
		Manifests: manifests, Annotations: annotations,
	})
	if err != nil {
		return d, fmt.Errorf("making index %v: %w", names, err)
	}
	l.List(d, names...)
	return d, nil
}

// writeLayer writes a layer's tar as a blob. The file is written once, under a temporary name, because its digest is known
// only at its end.
func (l *Layout) writeLayer(layer Layer, how Compression, docker bool) (digest.Digest, v1.Descriptor, error) {
	if layer.SpoilTar != nil || layer.SpoilBlob != nil {
		return l.writeSpoilt(layer)
	}
	switch how {
	case EStargz:
		return l.writeStargz(layer)
	case ZstdChunked:
		return l.writeChunked(layer)
	}
	f, err := os.CreateTemp(l.blobs(), ".layer-")
	if err != nil {
		return "", v1.Descriptor{}, err
	}
	defer os.Remove(f.Name()) // fails once it has its real name
	defer f.Close()
	blob, diff := digest.Canonical.Digester(), digest.Canonical.Digester()
	packed := io.MultiWriter(f, blob.Hash())
	zw, suffix, err := compress(packed, how)
	if err != nil {
		return "", v1.Descriptor{}, err
	}
	if err := WriteTar(io.MultiWriter(zw, diff.Hash()), layer.Entries); err != nil {
		return "", v1.Descriptor{}, err
	}
	if err := zw.Close(); err != nil {
		return "", v1.Descriptor{}, err
	}
	size, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return "", v1.Descriptor{}, err
	}
	desc := v1.Descriptor{MediaType: v1.MediaTypeImageLayer, Digest: blob.Digest(), Size: size}
	switch {
	case docker && suffix != "":
		desc.MediaType = dockerLayer + "." + suffix
	case docker:
		desc.MediaType = dockerLayer
	case suffix != "":
		desc.MediaType += "+" + suffix
	}
	if err := os.Rename(f.Name(), l.path(desc.Digest)); err != nil {
		return "", v1.Descriptor{}, err
	}
	return diff.Digest(), desc, os.Chmod(l.path(desc.Digest), 0o644)
}

func compress(w io.Writer, how Compression) (io.WriteCloser, string, error) {
	switch how {
	case Gzip, "":
		return gzip.NewWriter(w), "gzip", nil
	case Zstd:
		zw, err := zstd.NewWriter(w, zstd.WithEncoderConcurrency(1))
		return zw, "zstd", err
	case None:
		return nopCloser{w}, "", nil
	}
	return nil, "", fmt.Errorf("compression %q: want gzip, zstd or none", how)
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

func (l *Layout) writeJSON(mediaType string, v any) (v1.Descriptor, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return v1.Descriptor{}, err
	}
	return l.WriteBlob(mediaType, bytes.TrimSpace(b.Bytes()))
}
