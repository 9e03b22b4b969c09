package images

import (
	"fmt"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

const dockerList = "application/vnd.docker.distribution.manifest.list.v2+json"

// platforms adds indexes and returns the manifest of the first for linux/amd64:
//
//   - localhost/multi:all has linux/amd64, linux/arm64/v8, linux/arm/v7, linux/arm/v6, windows/amd64, linux/amd64 again with zstd layers, what
//     was attested of the first two, and linux/s390x, which is not in the layout
//   - localhost/multi:docker is the same as a Docker manifest list over Docker manifests
//   - localhost/multi:nested has two indexes: one with a platform, linux/amd64, and multi:all without one
func platforms(l *Layout) (v1.Descriptor, error) {
	children, err := children(l, false)
	if err != nil {
		return v1.Descriptor{}, err
	}
	all, err := l.AddIndex(children, map[string]string{"org.opencontainers.image.title": "all", "org.example/of": "the index"}, "localhost/multi:all")
	if err != nil {
		return v1.Descriptor{}, err
	}
	if err := dockerIndex(l); err != nil {
		return v1.Descriptor{}, err
	}
	inner, err := l.AddIndex(children[:2], map[string]string{"org.opencontainers.image.title": "inner"}, "localhost/multi:inner")
	if err != nil {
		return v1.Descriptor{}, err
	}
	inner.Platform = &v1.Platform{OS: "linux", Architecture: "amd64"}
	_, err = l.AddIndex([]v1.Descriptor{inner, all}, nil, "localhost/multi:nested")
	return children[0], err
}

func dockerIndex(l *Layout) error {
	children, err := children(l, true)
	if err != nil {
		return err
	}
	list, err := l.writeJSON(dockerList, v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: dockerList, Manifests: children})
	if err != nil {
		return fmt.Errorf("making a manifest list: %w", err)
	}
	l.List(list, "localhost/multi:docker")
	return nil
}

// children writes the images of an index and returns their descriptors.
func children(l *Layout, docker bool) ([]v1.Descriptor, error) {
	var all []v1.Descriptor
	for _, c := range []struct {
		v1.Platform
		Compression
	}{
		{v1.Platform{OS: "linux", Architecture: "amd64"}, Gzip},
		{v1.Platform{OS: "linux", Architecture: "arm64", Variant: "v8"}, Gzip},
		{v1.Platform{OS: "linux", Architecture: "arm", Variant: "v7"}, Gzip},
		{v1.Platform{OS: "linux", Architecture: "arm", Variant: "v6"}, Gzip},
		{v1.Platform{OS: "windows", Architecture: "amd64", OSVersion: "10.0.17763.1234", OSFeatures: []string{"win32k"}}, Gzip},
		{v1.Platform{OS: "linux", Architecture: "amd64"}, Zstd},
	} {
		text := fmt.Sprintf("%s/%s/%s\n", c.OS, c.Architecture, c.Variant)
		d, err := l.Write(Image{
			Layers: []Layer{{CreatedBy: "COPY platform /", Entries: []Entry{File("platform", text)}}},
			Author: "multi", Platform: c.Platform, Compression: c.Compression, Docker: docker,
			Config: v1.ImageConfig{Cmd: []string{"/platform"}, Labels: map[string]string{"variant": c.Variant}},
		})
		if err != nil {
			return nil, fmt.Errorf("making %s: %w", text, err)
		}
		platform := c.Platform
		d.Platform = &platform
		all = append(all, d)
	}
	for _, of := range all[:2] {
		d, err := attestation(l, of)
		if err != nil {
			return nil, fmt.Errorf("making an attestation: %w", err)
		}
		all = append(all, d)
	}
	return append(all, v1.Descriptor{
		MediaType: all[0].MediaType, Digest: digest.FromString("not here"), Size: 321, Platform: &v1.Platform{OS: "linux", Architecture: "s390x"},
	}), nil
}

// attestation writes what BuildKit puts beside an image in its index: a manifest of the platform unknown/unknown whose layers are in-toto
// statements.
func attestation(l *Layout, of v1.Descriptor) (v1.Descriptor, error) {
	m := manifestOf(v1.MediaTypeImageConfig)
	var ids []digest.Digest
	for _, predicate := range []string{"https://spdx.dev/Document", "https://slsa.dev/provenance/v0.2"} {
		layer, err := l.writeJSON("application/vnd.in-toto+json", map[string]any{
			"_type": "https://in-toto.io/Statement/v0.1", "predicateType": predicate,
			"subject": []any{map[string]any{"name": "_", "digest": map[string]string{"sha256": of.Digest.Encoded()}}},
		})
		if err != nil {
			return v1.Descriptor{}, err
		}
		ids = append(ids, layer.Digest)
		layer.Annotations = map[string]string{"in-toto.io/predicate-type": predicate}
		m.Layers = append(m.Layers, layer)
	}
	unknown := v1.Platform{OS: "unknown", Architecture: "unknown"}
	var err error
	if m.Config, err = l.writeJSON(v1.MediaTypeImageConfig, v1.Image{Platform: unknown, RootFS: v1.RootFS{Type: "layers", DiffIDs: ids}}); err != nil {
		return v1.Descriptor{}, err
	}
	d, err := l.writeJSON(m.MediaType, m)
	d.Platform = &unknown
	d.Annotations = map[string]string{
		"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": of.Digest.String(),
	}
	return d, err
}
