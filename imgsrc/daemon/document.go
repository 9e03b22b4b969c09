package daemon

import (
	"container/list"
	"encoding/json"
	"fmt"
	"sync"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/manifest"

	"github.com/imgfs/imgfs/imgsrc"
)

// A document is what a save says of an image: its config, and its manifest, which is made for it if the engine keeps none.
type document struct {
	manifest     []byte
	stored       bool // the manifest is the engine's own
	mediaType    string
	digest       digest.Digest // the manifest's
	config       []byte
	configDigest digest.Digest
	diffIDs      []digest.Digest // base first
	sizes        []int64         // of the uncompressed layers
}

// diffIDsOf reads a config's layers. Error: imgsrc.ErrDamaged.
func diffIDsOf(config []byte) ([]digest.Digest, error) {
	var doc struct {
		RootFS *struct {
			DiffIDs []digest.Digest `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if err := json.Unmarshal(config, &doc); err != nil {
		return nil, fmt.Errorf("%w: the config is not JSON: %w", imgsrc.ErrDamaged, err)
	}
	if doc.RootFS == nil {
		return nil, fmt.Errorf("%w: the config has no rootfs", imgsrc.ErrDamaged)
	}
	for n, id := range doc.RootFS.DiffIDs {
		if err := id.Validate(); err != nil {
			return nil, fmt.Errorf("%w: diff id %q of layer %d: %w", imgsrc.ErrDamaged, id, n, err)
		}
	}
	return doc.RootFS.DiffIDs, nil
}

// newDocument makes the manifest, to the bytes that containers/image makes for docker-daemon: Docker's schema 2 over the
// config and the uncompressed layers, whose media type it nonetheless calls gzip.
func newDocument(config []byte, diffIDs []digest.Digest, sizes []int64) (*document, error) {
	if len(diffIDs) != len(sizes) {
		return nil, fmt.Errorf("%w: %d layers, and the config has %d diff ids", imgsrc.ErrDamaged, len(sizes), len(diffIDs))
	}
	d := &document{config: config, configDigest: digest.FromBytes(config), diffIDs: diffIDs, sizes: sizes}
	layers := make([]manifest.Schema2Descriptor, len(diffIDs))
	for n, id := range diffIDs {
		layers[n] = manifest.Schema2Descriptor{MediaType: manifest.DockerV2Schema2LayerMediaType, Size: sizes[n], Digest: id}
	}
	m := manifest.Schema2FromComponents(manifest.Schema2Descriptor{
		MediaType: manifest.DockerV2Schema2ConfigMediaType, Size: int64(len(config)), Digest: d.configDigest,
	}, layers)
	var err error
	if d.manifest, err = m.Serialize(); err != nil {
		return nil, fmt.Errorf("making the manifest: %w", err)
	}
	if len(d.manifest) > imgsrc.MaxManifest {
		return nil, fmt.Errorf("%w: a manifest of %d bytes, more than %d", imgsrc.ErrUnsupported, len(d.manifest), imgsrc.MaxManifest)
	}
	d.digest, d.mediaType = digest.FromBytes(d.manifest), m.MediaType
	return d, nil
}

// storedDocument is for an image of which the engine keeps the manifest. Error: imgsrc.ErrDamaged if that is not one over
// this config and as many layers.
func storedDocument(text, config []byte, diffIDs []digest.Digest, sizes []int64) (*document, error) {
	var m struct {
		MediaType string           `json:"mediaType"`
		Config    *v1.Descriptor   `json:"config"`
		Layers    []*v1.Descriptor `json:"layers"`
	}
	d := &document{
		manifest: text, stored: true, digest: digest.FromBytes(text),
		config: config, configDigest: digest.FromBytes(config), diffIDs: diffIDs, sizes: sizes,
	}
	err := json.Unmarshal(text, &m)
	if err != nil || m.Config == nil || m.Config.Digest != d.configDigest || len(m.Layers) != len(diffIDs) || len(sizes) != len(diffIDs) {
		return nil, fmt.Errorf("%w: %s is no manifest over the config %s and its %d layers", imgsrc.ErrDamaged, d.digest, d.configDigest, len(diffIDs))
	}
	if d.mediaType = m.MediaType; d.mediaType == "" {
		d.mediaType = v1.MediaTypeImageManifest // which need not say so
	}
	return d, nil
}

// recentDocuments is how many documents stay in memory that are in files too.
const recentDocuments = 32

// recent keeps the values that were used last.
type recent[T any] struct {
	mu    sync.Mutex
	limit int
	order *list.List // the most recent first
	byKey map[string]*list.Element
}

type recentEntry[T any] struct {
	key   string
	value T
}

func newRecent[T any](limit int) *recent[T] {
	return &recent[T]{limit: limit, order: list.New(), byKey: map[string]*list.Element{}}
}

func (r *recent[T]) get(key string) (value T, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.byKey[key]
	if e == nil {
		return value, false
	}
	r.order.MoveToFront(e)
	return e.Value.(recentEntry[T]).value, true
}

func (r *recent[T]) put(key string, value T) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e := r.byKey[key]; e != nil {
		r.order.Remove(e)
	}
	r.byKey[key] = r.order.PushFront(recentEntry[T]{key, value})
	for r.order.Len() > r.limit {
		last := r.order.Back()
		r.order.Remove(last)
		delete(r.byKey, last.Value.(recentEntry[T]).key)
	}
}
