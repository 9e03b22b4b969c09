package imgsrc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"
)

// Kind is what a manifest describes.
type Kind int

// The kinds of manifests.
const (
	KindImage    Kind = iota // a container image: it has an image config, or is of schema 1
	KindIndex                // a list of manifests
	KindArtifact             // blobs with a config that is no image config, or none
)

// String returns "image", "index" or "artifact".
func (k Kind) String() string {
	switch k {
	case KindImage:
		return "image"
	case KindIndex:
		return "index"
	case KindArtifact:
		return "artifact"
	}
	return fmt.Sprintf("Kind(%d)", int(k))
}

// Facts is what an image's manifest and config say: read once by Load, immutable, and safe for several goroutines. The
// functions that take it do no I/O; each returns an error that wraps ErrAbsent where the image has no such value, and
// ErrDamaged where the value cannot be told from the bytes.
type Facts struct {
	Desc
	Kind Kind

	// ManifestErr is why the manifest says nothing: it could not be read (Manifest is nil), or the bytes that the digest
	// promises are no manifest (Manifest holds them).
	ManifestErr error
	Manifest    []byte // the manifest's exact bytes

	// ConfigErr is why the config says nothing: ErrAbsent if there is none, otherwise as with ManifestErr. A config in
	// which one value is damaged says the others.
	ConfigErr error
	Config    []byte // the config's exact bytes

	// Layers are the image's layers, base first, or the artifact's blobs. Empty if the manifest says nothing.
	Layers []LayerFacts

	mediaType   string          // the manifest's own, else the source's, else the one that its fields show
	docker      bool            // the config is Docker's, not OCI's
	sizes       []int64         // of config and layers, -1 where the manifest does not say
	annotations json.RawMessage // of the manifest

	// ArtifactType says what an artifact is: the manifest's artifactType, else its config's media type. Empty if neither
	// is there. Of an image or an index, only the former.
	ArtifactType string
	// Subject is the digest of the manifest that this one is about; empty if there is none.
	Subject digest.Digest
	// Children are what an index lists, in its order. An entry that is no descriptor is left out.
	Children []Child

	config       *descriptor     // the manifest's; nil if it names none
	v1Config     []byte          // of schema 1: see schema1.config
	schema1      bool            // there is no config because the manifest is of Docker's schema 1
	givenDiffIDs []digest.Digest // of schema 1, when they have been found out
	sketched     bool            // these are a sketch's: what is not here, the image may have

	cfg        configDoc
	cfgErr     error          // why cfg says nothing
	exec       execDoc        // the config's config
	execErr    error          // why exec says nothing
	history    []historyEntry // oldest first; nil: historyErr says why
	historyErr error
	diffErr    error // why the layers have no diff ids
}

// LayerFacts is what manifest and config say of one layer, or of one of an artifact's blobs.
type LayerFacts struct {
	Digest      digest.Digest     // as in the manifest
	DiffID      digest.Digest     // of the uncompressed tar; empty if unknown
	MediaType   string            // empty if unknown (schema 1)
	Size        int64             // bytes, as the manifest says; -1 if unknown (schema 1)
	CreatedBy   string            // the command of the layer's history entry; empty if unknown
	Title       string            // the annotation org.opencontainers.image.title, the file name of an artifact's blob
	Annotations map[string]string // of the descriptor; nil if there are none

	entry int // the layer's entry in Facts.history, -1 if there is none
}

// Load reads an image's manifest and config. Damage does not make it fail: it is in ManifestErr and ConfigErr, and in
// the results of the functions that need what is damaged. Errors: ctx's, and ErrNotFound if the image is gone.
func Load(ctx context.Context, img Image) (*Facts, error) {
	f := &Facts{Desc: img.Desc()}
	read := func(what string, from func(context.Context) ([]byte, error)) ([]byte, error, error) {
		b, err := from(ctx)
		switch {
		case err == nil && len(b) > MaxManifest:
			return nil, fmt.Errorf("reading the %s of image %s: %d bytes, more than %d: %w", what, f.ID, len(b), MaxManifest, ErrDamaged), nil
		case err == nil:
			return b, nil, nil
		}
		err = fmt.Errorf("reading the %s of image %s: %w", what, f.ID, err)
		// The source's own error may be one that ended ctx brought about, whatever it looks like.
		if ctx.Err() != nil {
			return nil, nil, fmt.Errorf("reading the %s of image %s: %w", what, f.ID, ctx.Err())
		}
		if errors.Is(err, ErrNotFound) {
			return nil, nil, err
		}
		return nil, err, nil
	}
	var gone error
	if f.Manifest, f.ManifestErr, gone = read("manifest", img.Manifest); gone != nil {
		return nil, gone
	}
	if f.Config, f.ConfigErr, gone = read("config", img.Config); gone != nil {
		return nil, gone
	}
	if f.ManifestErr == nil && f.Digest == "" { // the source cannot say it without the bytes
		f.Digest, f.Size = digest.FromBytes(f.Manifest), int64(len(f.Manifest))
	}
	f.parse()
	return f, nil
}

func (f *Facts) parse() {
	f.mediaType = f.MediaType
	f.Kind, f.docker = kindOf(f.MediaType), f.MediaType == typeDockerManifest
	var v1 *schema1
	if f.ManifestErr == nil {
		var err error
		if v1, err = f.parseManifest(); err != nil {
			f.Layers, f.sizes = nil, nil
			f.ManifestErr = fmt.Errorf("reading manifest %s: %w: %w", f.Digest, plain(err), ErrDamaged)
		}
	}
	switch {
	case f.Kind != KindImage:
		f.cfgErr = fmt.Errorf("image %s is an %s: no image config: %w", f.ID, f.Kind, ErrAbsent)
	case f.ConfigErr == nil:
		f.parseConfig(f.Config)
		f.ConfigErr = f.cfgErr
	case v1 != nil && errors.Is(f.ConfigErr, ErrAbsent):
		f.v1Config = v1.config
		f.parseConfig(v1.config)
	default:
		f.cfgErr = f.ConfigErr
	}
	f.parseExec()
	f.parseDiffIDs()
	f.parseHistory(v1)
}

// Created is when the image says that it was made; false if it does not say, or not as a time.
func (f *Facts) Created() (time.Time, bool) {
	var t timeText
	err := f.decode("time of creation", f.cfg.Created, f.cfgErr, &t)
	return t.time, err == nil
}

// absent is the error for a value that the image does not have.
func (f *Facts) absent(what string) error {
	if f.sketched {
		return fmt.Errorf("the %s of image %s: %w", what, f.ID, ErrUnsure)
	}
	return fmt.Errorf("image %s has no %s: %w", f.ID, what, ErrAbsent)
}

// damaged is the error for a value that cannot be read.
func (f *Facts) damaged(what string, err error) error {
	return fmt.Errorf("reading the %s of image %s: %w: %w", what, f.ID, plain(err), ErrDamaged)
}
