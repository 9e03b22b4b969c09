package imgsrc

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
)

// schema1 is what a manifest of Docker's schema 1 has in place of a config: for each layer the JSON of an image of
// Docker before 1.10, as a string.
type schema1 struct {
	config  []byte // the newest layer's: Docker's config without rootfs and history
	history []historyEntry
	err     error // why there is no history
}

// parseSchema1 reads the layers, which this format lists newest first, each with its history entry. A layer that the
// history calls throwaway is a layer nevertheless: the manifest names a blob for it, an empty tar.
func (f *Facts) parseSchema1(doc manifestDoc) (*schema1, error) {
	layers, err := decodeList[struct {
		BlobSum digest.Digest `json:"blobSum"`
	}](doc.FSLayers)
	if err != nil {
		return nil, fmt.Errorf("fsLayers: %w", err)
	}
	for i, l := range layers {
		if err := checkDigest(l.BlobSum); err != nil {
			return nil, fmt.Errorf("fsLayers, entry %d: %w", i, err)
		}
		f.Layers = append(f.Layers, LayerFacts{Digest: l.BlobSum, Size: -1, entry: -1})
		f.sizes = append(f.sizes, -1)
	}
	slices.Reverse(f.Layers)

	history, err := decodeList[struct {
		V1Compatibility string `json:"v1Compatibility"`
	}](doc.History)
	if err != nil {
		return nil, fmt.Errorf("history: %w", err)
	}
	if len(history) != len(layers) {
		return nil, fmt.Errorf("%d history entries for %d layers", len(history), len(layers))
	}
	v := &schema1{config: []byte("{}")}
	if len(history) > 0 {
		v.config = []byte(history[0].V1Compatibility)
	}
	for i, h := range slices.Backward(history) {
		var e struct {
			historyEntry
			ContainerConfig struct {
				Cmd words `json:"Cmd"`
			} `json:"container_config"`
		}
		if err := json.Unmarshal([]byte(h.V1Compatibility), &e); err != nil {
			v.history, v.err = nil, fmt.Errorf("v1Compatibility %d: %w", i, err)
			return v, nil
		}
		e.CreatedBy, e.EmptyLayer = nil, false // schema 2's, not this format's
		if e.ContainerConfig.Cmd != nil {
			cmd := strings.Join(e.ContainerConfig.Cmd, " ")
			e.CreatedBy = &cmd
		}
		v.history = append(v.history, e.historyEntry)
	}
	return v, nil
}
