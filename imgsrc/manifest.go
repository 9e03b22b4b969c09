package imgsrc

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// The media types of the Docker formats
// (https://github.com/distribution/distribution/blob/v2.8.3/docs/spec/manifest-v2-2.md), and of the artifact manifest
// that the OCI image specification had before 1.1.
const (
	typeDockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	typeDockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	typeDockerConfig   = "application/vnd.docker.container.image.v1+json"
	typeSchema1        = "application/vnd.docker.distribution.manifest.v1+json"
	typeSchema1Signed  = "application/vnd.docker.distribution.manifest.v1+prettyjws"
	typeOldOCIArtifact = "application/vnd.oci.artifact.manifest.v1+json"
)

// dockerConfigTypes are what a schema 2 manifest may call an image config: the right type, and what registries and
// clients of 2016 put there instead. Docker takes them all.
var dockerConfigTypes = []string{typeDockerConfig, "", "application/octet-stream", "application/json", "text/html"}

// manifestDoc is a manifest of any format, undecoded: its fields say which.
type manifestDoc struct {
	MediaType   json.RawMessage `json:"mediaType"`
	Config      json.RawMessage `json:"config"`
	Layers      json.RawMessage `json:"layers"`
	Manifests   json.RawMessage `json:"manifests"`
	Blobs       json.RawMessage `json:"blobs"`
	FSLayers    json.RawMessage `json:"fsLayers"`
	History     json.RawMessage `json:"history"`
	Signatures  json.RawMessage `json:"signatures"`
	Annotations json.RawMessage `json:"annotations"`

	ArtifactType json.RawMessage `json:"artifactType"`
	Subject      json.RawMessage `json:"subject"`
}

type descriptor struct {
	MediaType   string        `json:"mediaType"`
	Digest      digest.Digest `json:"digest"`
	Size        *int64        `json:"size"`
	Annotations stringMap     `json:"annotations"`
}

// size is the descriptor's, or -1 if it has none.
func (d descriptor) size() (int64, error) {
	if d.Size == nil {
		return -1, nil
	}
	if *d.Size < 0 {
		return 0, fmt.Errorf("size %d of %s", *d.Size, d.Digest)
	}
	return *d.Size, nil
}

// kindOf is what a media type alone says.
func kindOf(mediaType string) Kind {
	switch mediaType {
	case v1.MediaTypeImageIndex, typeDockerList:
		return KindIndex
	case typeOldOCIArtifact:
		return KindArtifact
	}
	return KindImage
}

// parseManifest fills in what the manifest says. The fields decide which format it is. A manifest of two formats at
// once is refused, as is one whose media type says another: readers would not agree about what it is (the OCI image
// specification asks for this). For schema 1, what it has instead of a config is returned.
func (f *Facts) parseManifest() (*schema1, error) {
	var doc manifestDoc
	if err := json.Unmarshal(f.Manifest, &doc); err != nil {
		return nil, err
	}
	if given(doc.MediaType) {
		var own string
		if err := json.Unmarshal(doc.MediaType, &own); err != nil {
			return nil, fmt.Errorf("mediaType: %w", err)
		}
		if own != "" {
			f.mediaType = own
		}
	}
	f.annotations = doc.Annotations
	f.parseReference(doc)

	var forms []string
	if len(doc.Manifests) > 0 { // also null: an index without entries, as podman writes it
		forms = append(forms, "index")
	}
	if given(doc.Config) || given(doc.Layers) {
		forms = append(forms, "manifest")
	}
	if given(doc.FSLayers) {
		forms = append(forms, "schema 1 manifest")
	}
	if given(doc.Blobs) {
		forms = append(forms, "artifact manifest")
	}
	switch {
	case len(forms) == 0:
		return nil, errors.New("neither manifests nor config, layers, blobs or fsLayers")
	case len(forms) > 1:
		return nil, fmt.Errorf("the fields of several formats: %s", strings.Join(forms, ", "))
	}
	if want := formOf(f.mediaType); want != "" && want != forms[0] {
		return nil, fmt.Errorf("the media type %s promises the fields of: %s, there are those of: %s", f.mediaType, want, forms[0])
	}

	switch forms[0] {
	case "index":
		f.Kind = KindIndex
		f.setMediaType(v1.MediaTypeImageIndex)
		return nil, f.parseIndex(doc)
	case "artifact manifest":
		f.Kind = KindArtifact
		f.setMediaType(typeOldOCIArtifact)
		return nil, f.parseLayers(doc.Blobs)
	case "schema 1 manifest":
		f.Kind, f.docker = KindImage, true
		if given(doc.Signatures) {
			f.setMediaType(typeSchema1Signed)
		}
		f.setMediaType(typeSchema1)
		return f.parseSchema1(doc)
	}
	return nil, f.parseImage(doc)
}

// formOf is which of a manifest's forms a media type promises; empty if it is not known.
func formOf(mediaType string) string {
	switch mediaType {
	case v1.MediaTypeImageIndex, typeDockerList:
		return "index"
	case v1.MediaTypeImageManifest, typeDockerManifest:
		return "manifest"
	case typeOldOCIArtifact:
		return "artifact manifest"
	case typeSchema1, typeSchema1Signed:
		return "schema 1 manifest"
	}
	return ""
}

func (f *Facts) setMediaType(guess string) {
	if f.mediaType == "" {
		f.mediaType = guess
	}
}

// parseImage reads an OCI manifest or one of Docker's schema 2. Which of the two config formats it has is what the
// config's descriptor says; a config of any other type makes it an artifact.
func (f *Facts) parseImage(doc manifestDoc) error {
	var config *descriptor
	if err := json.Unmarshal(doc.Config, &config); err != nil {
		return fmt.Errorf("config: %w", err)
	}
	if config == nil {
		return errors.New("no config")
	}
	if err := checkDigest(config.Digest); err != nil {
		return fmt.Errorf("config: %w", err)
	}
	size, err := config.size()
	if err != nil {
		return fmt.Errorf("config: %w", err)
	}
	if config.MediaType == typeDockerConfig {
		f.setMediaType(typeDockerManifest)
	}
	f.setMediaType(v1.MediaTypeImageManifest)

	f.config = config
	f.Kind, f.docker = KindArtifact, false
	switch {
	case config.MediaType == v1.MediaTypeImageConfig:
		f.Kind = KindImage
	case config.MediaType == typeDockerConfig,
		f.mediaType == typeDockerManifest && slices.Contains(dockerConfigTypes, config.MediaType):
		f.Kind, f.docker = KindImage, true
	}
	if f.Kind == KindArtifact && f.ArtifactType == "" {
		f.ArtifactType = config.MediaType // as the image specification says
	}
	f.sizes = []int64{size}
	return f.parseLayers(doc.Layers)
}

// parseReference reads what the manifest says of its place among others. What is not as it should be is taken for not
// given: the manifest is complete without it.
func (f *Facts) parseReference(doc manifestDoc) {
	var subject descriptor
	if given(doc.Subject) && json.Unmarshal(doc.Subject, &subject) == nil && checkDigest(subject.Digest) == nil {
		f.Subject = subject.Digest
	}
	if given(doc.ArtifactType) && json.Unmarshal(doc.ArtifactType, &f.ArtifactType) != nil {
		f.ArtifactType = ""
	}
}

func (f *Facts) parseLayers(raw json.RawMessage) error {
	list, err := decodeList[descriptor](raw)
	if err != nil {
		return fmt.Errorf("layers: %w", err)
	}
	for i, d := range list {
		if err := checkDigest(d.Digest); err != nil {
			return fmt.Errorf("layer %d: %w", i, err)
		}
		l := LayerFacts{Digest: d.Digest, MediaType: d.MediaType, Title: d.Annotations[v1.AnnotationTitle], Annotations: d.Annotations, entry: -1}
		if l.Size, err = d.size(); err != nil {
			return fmt.Errorf("layer %d: %w", i, err)
		}
		f.Layers = append(f.Layers, l)
		f.sizes = append(f.sizes, l.Size)
	}
	return nil
}
