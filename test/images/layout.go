package images

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// A Layout is an OCI image layout that is being written. It is complete once Close has returned.
type Layout struct {
	dir   string
	index v1.Index
}

// Create begins a layout in dir, which is made if it is missing; one that is there is added to.
func Create(dir string) (*Layout, error) {
	l := &Layout{dir: dir, index: v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex}}
	if err := os.MkdirAll(l.blobs(), 0o755); err != nil {
		return nil, fmt.Errorf("creating layout: %w", err)
	}
	old, err := os.ReadFile(filepath.Join(dir, v1.ImageIndexFile))
	if errors.Is(err, fs.ErrNotExist) {
		return l, nil
	}
	if err == nil {
		err = json.Unmarshal(old, &l.index)
	}
	if err != nil {
		return nil, fmt.Errorf("adding to layout %s: %w", dir, err)
	}
	return l, nil
}

func (l *Layout) blobs() string { return filepath.Join(l.dir, v1.ImageBlobsDir, "sha256") }

func (l *Layout) path(d digest.Digest) string { return filepath.Join(l.blobs(), d.Encoded()) }

// WriteBlob writes a blob and returns its descriptor.
func (l *Layout) WriteBlob(mediaType string, data []byte) (v1.Descriptor, error) {
	d := v1.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	if err := os.WriteFile(l.path(d.Digest), data, 0o644); err != nil {
		return d, fmt.Errorf("writing blob: %w", err)
	}
	return d, nil
}

// List adds d to index.json under each of the names; without a name if there are none.
func (l *Layout) List(d v1.Descriptor, names ...string) {
	if len(names) == 0 {
		l.index.Manifests = append(l.index.Manifests, d)
		return
	}
	for _, name := range names {
		named := d
		named.Annotations = map[string]string{v1.AnnotationRefName: name}
		maps.Copy(named.Annotations, d.Annotations)
		l.index.Manifests = append(l.index.Manifests, named)
	}
}

// Close writes index.json and oci-layout.
func (l *Layout) Close() error {
	version, err := json.Marshal(v1.ImageLayout{Version: v1.ImageLayoutVersion})
	if err != nil {
		return err
	}
	index, err := json.Marshal(l.index)
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(l.dir, v1.ImageIndexFile), index, 0o644),
		os.WriteFile(filepath.Join(l.dir, v1.ImageLayoutFile), version, 0o644),
	)
}
