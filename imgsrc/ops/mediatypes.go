package ops

import (
	"context"
	"encoding/json"

	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/manifest"
)

// ociLayerTypes are OCI's media types for what Docker's stand for.
var ociLayerTypes = map[string]string{
	manifest.DockerV2Schema2LayerMediaType:            imgspecv1.MediaTypeImageLayerGzip,
	manifest.DockerV2SchemaLayerMediaTypeUncompressed: imgspecv1.MediaTypeImageLayer,
	manifest.DockerV2SchemaLayerMediaTypeZstd:         imgspecv1.MediaTypeImageLayerZstd,
	manifest.DockerV2Schema2ConfigMediaType:           imgspecv1.MediaTypeImageConfig,
}

// changeable returns a manifest that the library can change. Docker's engine with the containerd image store makes OCI
// manifests over layers with its own media types, which the library only copies as they are. Such a manifest gets OCI's if it
// will be changed in any case: if a layer is offered in another form, or will be stored in another.
func (s *source) changeable(ctx context.Context, text []byte, mediaType string) []byte {
	if mediaType != imgspecv1.MediaTypeImageManifest {
		return text
	}
	oci, changed := withOCITypes(text)
	if !changed || !s.plain && !s.recompressed && s.hasAllBlobs(ctx, text, mediaType) {
		return text
	}
	return oci
}

// hasAllBlobs reports whether the source keeps all layers in the form that the manifest names.
func (s *source) hasAllBlobs(ctx context.Context, text []byte, mediaType string) bool {
	m, err := manifest.FromBlob(text, mediaType)
	if err != nil {
		return false
	}
	for _, l := range m.LayerInfos() {
		if ok, _ := s.hasBlob(ctx, s.held, l.Digest); !ok { // why not is said when it is opened
			return false
		}
	}
	return true
}

// withOCITypes gives config and layers OCI's media types, and keeps all else that the manifest says.
func withOCITypes(text []byte) (_ []byte, changed bool) {
	var m, config map[string]json.RawMessage
	var layers []map[string]json.RawMessage
	if json.Unmarshal(text, &m) != nil || json.Unmarshal(m["config"], &config) != nil || json.Unmarshal(m["layers"], &layers) != nil {
		return nil, false
	}
	for _, d := range append(layers, config) {
		var has string
		if json.Unmarshal(d["mediaType"], &has) != nil {
			continue
		}
		if want, ok := ociLayerTypes[has]; ok {
			d["mediaType"], _ = json.Marshal(want) // a string
			changed = true
		}
	}
	if !changed {
		return nil, false
	}
	var err error
	if m["config"], err = json.Marshal(config); err != nil {
		return nil, false
	}
	if m["layers"], err = json.Marshal(layers); err != nil {
		return nil, false
	}
	text, err = json.Marshal(m)
	return text, err == nil
}
