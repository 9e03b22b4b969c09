package images

import (
	_ "embed"
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// The example configs of the specifications: OCI's config.md, and Docker's image specification 1.2 with the other fields that Docker writes.
var (
	//go:embed spec/oci.json
	specOCI string
	//go:embed spec/docker.json
	specDocker string
)

// specDiffIDs are the diff ids in both.
var specDiffIDs = []string{
	"sha256:c6f988f4874bb0add23a778f753c65efe992244e148a1d2ec2a8b664fb66bbd1",
	"sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef",
}

// Formats adds an image or more of each format that there is, among them indexes and artifacts:
//
//   - localhost/spec/oci:1 (also "web") and localhost/spec/docker:1, with the example configs of the specifications
//   - localhost/v1:signed, :unsigned and :bare, Docker's schema 1; the layers of the last are not there
//   - localhost/multi:all, :docker and :nested, see platforms
//   - localhost/charts/mychart:0.1.0, localhost/thing:1 and what refers to images, see artifacts
//   - localhost/foreign:1, of whose two layers the first is not there; localhost/bare:1 (also "v1.0"), whose config says little;
//     localhost/empty:1 (also "a/b:c"), without layers
//   - localhost/app:1.0, and localhost/twice:1, which is the name of two images
func Formats(l *Layout) error {
	if err := specExamples(l); err != nil {
		return err
	}
	if err := schema1(l); err != nil {
		return err
	}
	amd64, err := platforms(l)
	if err != nil {
		return err
	}
	app, err := l.Add(App(), "localhost/app:1.0")
	if err != nil {
		return err
	}
	if err := artifacts(l, app, amd64); err != nil {
		return err
	}
	return incomplete(l)
}

func specExamples(l *Layout) error {
	oci, err := l.writeConfigured(specOCI, specLayers(), v1.MediaTypeImageConfig)
	if err != nil {
		return fmt.Errorf("making the OCI specification's image: %w", err)
	}
	docker, err := l.writeConfigured(specDocker, specLayers(), dockerConfig)
	if err != nil {
		return fmt.Errorf("making the Docker specification's image: %w", err)
	}
	l.List(oci, "localhost/spec/oci:1", "web")
	l.List(docker, "localhost/spec/docker:1")
	return nil
}

func specLayers() []Layer {
	return []Layer{
		{Entries: []Entry{Dir("bin"), File("bin/my-app-binary", "#!\n").WithMode(0o755), Dir("etc"), File("etc/os-release", "ID=spec\n")}},
		{Entries: []Entry{Dir("etc"), Dir("etc/my-app.d"), File("etc/my-app.d/default.cfg", "[app]\n")}},
	}
}

// writeConfigured writes an image over a config that is there as text: the diff ids in it become those of the layers, and nothing else
// of it changes.
func (l *Layout) writeConfigured(config string, layers []Layer, configType string) (v1.Descriptor, error) {
	m := manifestOf(configType)
	for i, layer := range layers {
		diffID, desc, err := l.writeLayer(layer, Gzip, configType == dockerConfig)
		if err != nil {
			return v1.Descriptor{}, err
		}
		config = strings.ReplaceAll(config, specDiffIDs[i], diffID.String())
		m.Layers = append(m.Layers, desc)
	}
	var err error
	if m.Config, err = l.WriteBlob(configType, []byte(config)); err != nil {
		return v1.Descriptor{}, err
	}
	return l.writeJSON(m.MediaType, m)
}

// manifestOf is a manifest, of Docker's or OCI's type, for a config of this type. It has no layers yet.
func manifestOf(configType string) v1.Manifest {
	m := v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest, Layers: []v1.Descriptor{}}
	if configType == dockerConfig {
		m.MediaType = dockerManifest
	}
	return m
}

// incomplete adds images that lack something, and one name twice.
func incomplete(l *Layout) error {
	foreign, err := foreignLayer(l)
	if err != nil {
		return fmt.Errorf("making the image with a foreign layer: %w", err)
	}
	bare, err := l.writeConfigured(`{"config":{},"rootfs":{"type":"layers","diff_ids":["`+specDiffIDs[0]+`"]}}`, specLayers()[:1], v1.MediaTypeImageConfig)
	if err != nil {
		return fmt.Errorf("making the image that says little: %w", err)
	}
	empty, err := l.writeConfigured(`{"created":"2024-01-02T03:04:05Z","architecture":"amd64","os":"linux","config":{"Cmd":["/none"]},`+
		`"rootfs":{"type":"layers","diff_ids":[]},"history":[{"created":"2024-01-02T03:04:05Z","created_by":"CMD [\"/none\"]","empty_layer":true}]}`,
		nil, v1.MediaTypeImageConfig)
	if err != nil {
		return fmt.Errorf("making the image without layers: %w", err)
	}
	l.List(foreign, "localhost/foreign:1")
	l.List(bare, "localhost/bare:1", "v1.0", "localhost/twice:1")
	l.List(empty, "localhost/empty:1", "a/b:c", "localhost/twice:1")
	return nil
}

// foreignLayer writes an image whose first layer is to be had elsewhere: the manifest has its digest and an address.
func foreignLayer(l *Layout) (v1.Descriptor, error) {
	diffID, desc, err := l.writeLayer(Layer{Entries: []Entry{Dir("etc"), File("etc/here", "here\n")}}, Gzip, false)
	if err != nil {
		return v1.Descriptor{}, err
	}
	far := v1.Descriptor{
		MediaType: "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
		Digest:    digest.FromString("foreign layer"), Size: 1234, URLs: []string{"https://layers.example/foreign.tar.gz"},
	}
	config := v1.Image{Created: &Epoch, Platform: v1.Platform{OS: "linux", Architecture: "amd64"}, RootFS: v1.RootFS{
		Type: "layers", DiffIDs: []digest.Digest{digest.FromString("foreign tar"), diffID},
	}, History: []v1.History{{CreatedBy: "ADD base"}, {CreatedBy: "ADD etc"}}}
	m := manifestOf(v1.MediaTypeImageConfig)
	m.Layers = []v1.Descriptor{far, desc}
	if m.Config, err = l.writeJSON(v1.MediaTypeImageConfig, config); err != nil {
		return v1.Descriptor{}, err
	}
	return l.writeJSON(m.MediaType, m)
}
