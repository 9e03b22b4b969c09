package storage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/manifest"

	"github.com/imgfs/imgfs/imgsrc"
)

// image is one manifest of an image in the store.
type image struct {
	s    *Source
	at   manifestKey
	desc imgsrc.Desc

	diffIDs atomic.Pointer[[]digest.Digest] // as the config has them, once they were asked for
}

var _ imgsrc.DiffIDer = (*image)(nil)

// Desc implements [imgsrc.Image].
func (m *image) Desc() imgsrc.Desc { return m.desc }

// Manifest implements [imgsrc.Image].
func (m *image) Manifest(ctx context.Context) ([]byte, error) {
	return m.data(ctx, "manifest", m.at.key, m.desc.Digest)
}

// Config implements [imgsrc.Image].
func (m *image) Config(ctx context.Context) ([]byte, error) {
	if m.desc.Config == "" {
		if m.desc.Damaged != nil {
			return nil, m.desc.Damaged
		}
		return nil, fmt.Errorf("image %s has no config: %w", m.desc.ID, imgsrc.ErrAbsent)
	}
	return m.data(ctx, "config", string(m.desc.Config), m.desc.Config)
}

// data returns big data whose digest is want.
func (m *image) data(ctx context.Context, what, key string, want digest.Digest) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	text, err := readData(m.s.dataFile(m.at.id, key))
	switch {
	case errors.Is(err, fs.ErrNotExist) && m.s.isGone(m.at.id):
		err = fmt.Errorf("it has been removed: %w", imgsrc.ErrNotFound)
	case errors.Is(err, fs.ErrNotExist) && m.desc.Damaged != nil:
		return nil, m.desc.Damaged // the listing knows more of what is missing
	case errors.Is(err, fs.ErrNotExist):
		err = fmt.Errorf("the store does not have it: %w", imgsrc.ErrDamaged)
	case err != nil:
	case want == "":
		err = imgsrc.ErrDamaged // listed without a digest: there was no manifest
	default:
		// A manifest of schema 1 has a digest that leaves its signatures out.
		if ok, matchErr := manifest.MatchesDigest(text, want); matchErr != nil || !ok {
			err = m.mismatch(key, want)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("reading the %s %s of image %s: %w", what, want, m.desc.ID, err)
	}
	return text, nil
}

// mismatch says what it means that big data has another digest: a list of images that was changed keeps its id, and the
// image that was listed is not there any more.
func (m *image) mismatch(key string, want digest.Digest) error {
	all, err := m.s.readStores()
	if err != nil {
		return err
	}
	r := all.byID[m.at.id]
	if r == nil {
		return fmt.Errorf("it has been removed: %w", imgsrc.ErrNotFound)
	}
	if now := r.digestOf(key); key == manifestKeyName && now != "" && now != want {
		return fmt.Errorf("it is %s now: %w", now, imgsrc.ErrNotFound)
	}
	return fmt.Errorf("the store's bytes have another digest: %w", imgsrc.ErrDamaged)
}

// Blob implements [imgsrc.Image]. The store unpacks layers and keeps none of their compressed blobs.
func (m *image) Blob(ctx context.Context, d digest.Digest) (imgsrc.Content, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	chain, err := m.chain(ctx)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(chain, func(l *layer) bool { return l != nil && l.DiffID == d })
	if i < 0 && !m.s.isGone(m.at.id) { // without a look at the manifest
		return nil, fmt.Errorf("opening layer %s of image %s: containers-storage keeps no compressed blobs: %w", d, m.desc.ID, imgsrc.ErrAbsent)
	}
	text, err := m.Manifest(ctx)
	if err != nil {
		return nil, err
	}
	parsed, err := parseManifest(text)
	if err != nil {
		return nil, fmt.Errorf("reading the manifest of image %s: %w", m.desc.ID, err)
	}
	for _, blob := range parsed.Layers {
		if blob.Digest == d && i >= 0 {
			c, err := m.s.newDiff(chain[i], d)
			if err != nil {
				return nil, m.lacks(chain[i], err)
			}
			return c, nil
		}
	}
	return nil, fmt.Errorf("opening blob %s of image %s: the manifest names no such layer: %w", d, m.desc.ID, imgsrc.ErrAbsent)
}

// Diff implements [imgsrc.Image].
func (m *image) Diff(ctx context.Context, n int) (imgsrc.Content, error) {
	return openLayer(ctx, m, n, func(l *layer, diffID digest.Digest) (imgsrc.Content, error) { return m.s.newDiff(l, diffID) })
}

// openLayer opens layer n of an image, in one of the forms that it has.
func openLayer[T any](ctx context.Context, m *image, n int, open func(l *layer, diffID digest.Digest) (T, error)) (T, error) {
	var none T
	if err := ctx.Err(); err != nil {
		return none, err
	}
	chain, err := m.chain(ctx)
	if err != nil {
		return none, err
	}
	if n < 0 || n >= len(chain) {
		return none, fmt.Errorf("opening layer %d of image %s: it has %d: %w", n, m.desc.ID, len(chain), imgsrc.ErrAbsent)
	}
	if chain[n] == nil {
		return none, fmt.Errorf("opening layer %d of image %s: the store has lost it, or one above it: %w", n, m.desc.ID, imgsrc.ErrDamaged)
	}
	opened, err := open(chain[n], m.diffID(ctx, n))
	if err != nil {
		return none, fmt.Errorf("opening layer %d of image %s: %w", n, m.desc.ID, m.lacks(chain[n], err))
	}
	return opened, nil
}

// lacks makes of a layer that is gone what that means: the image was removed, or it is not whole.
func (m *image) lacks(l *layer, err error) error {
	if !errors.Is(err, imgsrc.ErrNotFound) || m.s.isGone(m.at.id) {
		return err
	}
	return fmt.Errorf("%w: the files of layer %s (%s) are missing in the store: %w", imgsrc.ErrDamaged, l.ID, l.DiffID, fs.ErrNotExist)
}

// chain returns the image's layers, base first; nil in the place of one that the store does not know any more, and of those below it.
// A list of images has none of its own.
func (m *image) chain(ctx context.Context) ([]*layer, error) {
	if m.at.layer == "" || manifest.MIMETypeIsMultiImage(m.desc.MediaType) {
		return nil, nil
	}
	chain, err := m.s.chain(m.at.layer)
	if err != nil && m.s.isGone(m.at.id) {
		return nil, fmt.Errorf("opening the layers of image %s: it has been removed: %w", m.desc.ID, imgsrc.ErrNotFound)
	}
	if err != nil && len(chain) > 0 {
		if lost := len(m.configDiffIDs(ctx)) - len(chain); lost > 0 {
			return append(make([]*layer, lost), chain...), nil
		}
	}
	if err != nil {
		return nil, fmt.Errorf("opening the layers of image %s: %w", m.desc.ID, err)
	}
	return chain, nil
}

// DiffIDs implements [imgsrc.DiffIDer].
func (m *image) DiffIDs(ctx context.Context) ([]digest.Digest, error) {
	chain, err := m.chain(ctx)
	if err != nil {
		return nil, err
	}
	ids := make([]digest.Digest, len(chain))
	for i, l := range chain {
		if l == nil {
			return nil, fmt.Errorf("the store has lost layer %d: %w", i, imgsrc.ErrDamaged)
		}
		if l.DiffID == "" {
			return nil, fmt.Errorf("the store does not know the diff id of layer %s: %w", l.ID, imgsrc.ErrAbsent)
		}
		ids[i] = l.DiffID
	}
	return ids, nil
}

// diffID is the diff id of layer n as the config has it, empty if that is not to be had.
func (m *image) diffID(ctx context.Context, n int) digest.Digest {
	if ids := m.configDiffIDs(ctx); n < len(ids) {
		return ids[n]
	}
	return ""
}

// configDiffIDs are the diff ids of the layers as the config has them; none if they are not to be had.
func (m *image) configDiffIDs(ctx context.Context) []digest.Digest {
	if ids := m.diffIDs.Load(); ids != nil {
		return *ids
	}
	text, err := m.Config(ctx)
	if err != nil {
		return nil
	}
	var config struct {
		RootFS struct {
			DiffIDs []digest.Digest `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if json.Unmarshal(text, &config) != nil {
		return nil
	}
	m.diffIDs.Store(&config.RootFS.DiffIDs)
	return config.RootFS.DiffIDs
}
