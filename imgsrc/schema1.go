package imgsrc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/manifest"
)

// schema1 is what a manifest of Docker's schema 1 has in place of a config: for each layer the JSON of an image of
// Docker before 1.10, as a string.
type schema1 struct {
	config  []byte // the newest layer's: Docker's config without rootfs and history
	history []historyEntry
	err     error // why there is no history
}

// parseSchema1 reads the layers, which this format lists newest first, each with its history entry. An entry that calls
// itself throwaway has changed no file: its blob, an empty tar, is no layer for any reader of the format. Nor is one
// that only says again what the entry before it says.
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
	}
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
	below := ""
	for i, h := range slices.Backward(history) {
		var e struct {
			historyEntry
			ID              string `json:"id"`
			Throwaway       bool   `json:"throwaway"`
			ContainerConfig struct {
				Cmd words `json:"Cmd"`
			} `json:"container_config"`
		}
		if err := json.Unmarshal([]byte(h.V1Compatibility), &e); err != nil {
			v.err = errors.Join(v.err, fmt.Errorf("v1Compatibility %d: %w", i, err))
			e.ID, e.Throwaway = "", false
		}
		if e.ID != "" && e.ID == below {
			continue
		}
		below = e.ID
		e.CreatedBy, e.EmptyLayer = nil, e.Throwaway
		if e.ContainerConfig.Cmd != nil {
			cmd := strings.Join(e.ContainerConfig.Cmd, " ")
			e.CreatedBy = &cmd
		}
		v.history = append(v.history, e.historyEntry)
		if !e.Throwaway {
			f.Layers = append(f.Layers, LayerFacts{Digest: layers[i].BlobSum, Size: -1, entry: -1})
			f.sizes = append(f.sizes, -1)
		}
	}
	if v.err != nil {
		v.history = nil
	}
	f.schema1 = true
	return v, nil
}

// convertSchema1 makes a Docker schema 2 config of a manifest of schema 1, with the diff ids that are known.
func (f *Facts) convertSchema1() ([]byte, error) {
	if f.ManifestErr != nil {
		return nil, f.ManifestErr
	}
	m, err := manifest.Schema1FromManifest(f.Manifest)
	if err != nil {
		return nil, f.damaged("manifest of schema 1", err)
	}
	b, err := m.ToSchema2Config(f.givenDiffIDs)
	if err != nil {
		return nil, f.damaged("manifest of schema 1", err)
	}
	return b, nil
}

// LacksDiffIDs says whether the image has layers whose diff ids no config says, so that only the layers' bytes do: it is
// of schema 1.
func (f *Facts) LacksDiffIDs() bool { return f.schema1 && f.givenDiffIDs == nil && len(f.Layers) > 0 }

// WithDiffIDs returns the facts of an image whose layers' diff ids were found out, base first.
func (f *Facts) WithDiffIDs(ids []digest.Digest) *Facts {
	g := &Facts{
		Desc: f.Desc, Manifest: f.Manifest, ManifestErr: f.ManifestErr, Config: f.Config, ConfigErr: f.ConfigErr,
		givenDiffIDs: ids,
	}
	g.parse()
	return g
}

// A DiffIDer is an image whose source has recorded its layers' diff ids, base first.
type DiffIDer interface {
	Image
	DiffIDs(ctx context.Context) ([]digest.Digest, error)
}

// FindDiffIDs finds out the diff ids of an image's layers: from the source if it has recorded them, otherwise by reading
// every layer. Error: ErrAbsent if one of them cannot be had.
func FindDiffIDs(ctx context.Context, img Image, layers int) ([]digest.Digest, error) {
	if d, ok := img.(DiffIDer); ok {
		ids, err := d.DiffIDs(ctx)
		if err == nil && len(ids) != layers {
			err = fmt.Errorf("the source has %d diff ids for %d layers: %w", len(ids), layers, ErrAbsent)
		}
		return ids, err
	}
	ids := make([]digest.Digest, layers)
	for n := range ids {
		c, err := img.Diff(ctx, n)
		if err != nil {
			return nil, err
		}
		ids[n], err = digest.FromReader(contentReader{ctx, c, new(int64)})
		if err := errors.Join(err, c.Close()); err != nil {
			return nil, fmt.Errorf("reading layer %d of image %s: %w", n, img.Desc().ID, err)
		}
	}
	return ids, nil
}

// contentReader reads a Content from its beginning to its end.
type contentReader struct {
	ctx context.Context
	c   Content
	off *int64
}

func (r contentReader) Read(p []byte) (int, error) {
	n, err := r.c.ReadAt(r.ctx, p, *r.off)
	*r.off += int64(n)
	if err == nil && n == 0 && len(p) > 0 {
		err = io.ErrNoProgress
	}
	return n, err
}
