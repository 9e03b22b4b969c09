package storage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/manifest"

	"github.com/imgfs/imgfs/imgsrc"
)

// A manifestKey stands for one manifest of one image record.
type manifestKey struct {
	store          int
	id, key, layer string
	digest         digest.Digest // as recorded
}

// cached is an image of the last listing, with the states of the files that its description was read from.
type cached struct {
	img              *image
	manifest, config identity // zero for a file that could not be looked at
}

// List implements [imgsrc.Source]. It reads the lists of images and of containers, and the manifests that have come or
// changed since the last time. An image's manifests follow each other, the main one first, and have its names, its
// digests and its containers in common.
func (s *Source) List(ctx context.Context) (*imgsrc.Listing, error) {
	s.listMu.Lock()
	defer s.listMu.Unlock()
	s.bodies.drop()
	out := &imgsrc.Listing{}
	containers, problems := s.containers()
	out.Problems = problems
	all, err := s.readStores()
	if err != nil {
		return nil, fmt.Errorf("listing %s: %w", s.Name(), err)
	}
	out.ModTime = all.modTime
	out.Problems = append(out.Problems, all.problems...)
	seen := map[manifestKey]*cached{}
	for _, r := range all.images {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		keys := r.manifests()
		listed := imgsrc.Listed{
			Names: r.Names, RepoDigests: repoDigests(&r.record, keys), Containers: containers[r.ID], NamesHistory: r.NamesHistory,
		}
		if r.Digest.Validate() == nil {
			listed.RecordedDigest = r.Digest
		}
		listed.Layers, listed.Unpacked = s.layersOf(&r.record)
		for _, key := range keys {
			k := manifestKey{s.home(r.ID, key), r.ID, key, r.Layer, r.digestOf(key)}
			c := s.describe(k)
			seen[k] = c
			listed.Image = c.img
			out.Images = append(out.Images, listed)
		}
	}
	s.listed = seen
	return out, nil
}

// describe returns a manifest's image, the one of the last listing if nothing has changed. It is called with listMu held.
func (s *Source) describe(k manifestKey) *cached {
	file := s.dataPath(k.store, k.id, k.key)
	state := stateOf(file)
	if c := s.listed[k]; c != nil && c.manifest == state &&
		(c.img.desc.Config == "" || c.config == stateOf(s.dataFile(k.id, string(c.img.desc.Config)))) {
		return c
	}
	c := &cached{manifest: state, img: &image{s: s, at: k}}
	desc := &c.img.desc
	desc.ID, desc.Digest, desc.Size = k.id, k.digest, state.size
	text, err := readData(file)
	if err == nil {
		err = describe(desc, text)
	}
	if err == nil && desc.Config != "" {
		config := s.dataFile(k.id, string(desc.Config))
		c.config = stateOf(config)
		switch {
		case c.config == identity{}:
			err = fmt.Errorf("the config %s is missing: %w", desc.Config, imgsrc.ErrDamaged)
		case c.config.size > imgsrc.MaxManifest:
			err = fmt.Errorf("the config %s has more than %d bytes: %w", desc.Config, imgsrc.MaxManifest, imgsrc.ErrDamaged)
		}
	}
	switch {
	case errors.Is(err, fs.ErrNotExist) && !exists(filepath.Dir(file)):
		desc.Damaged = fmt.Errorf("the store knows the name of image %s and nothing else: bring back the additional store that it was in, or pull it again: %w", k.id, imgsrc.ErrDamaged)
	case errors.Is(err, fs.ErrNotExist):
		desc.Damaged = fmt.Errorf("the store has no manifest for image %s: %w", k.id, imgsrc.ErrDamaged)
	case err != nil:
		desc.Damaged = fmt.Errorf("reading the manifest of image %s: %w", k.id, err)
	}
	return c
}

func stateOf(file string) identity {
	info, err := os.Lstat(file)
	if err != nil {
		return identity{}
	}
	return identityIn(info)
}

// describe fills desc from a manifest. desc.Digest is the one that the store has recorded, or empty.
func describe(desc *imgsrc.Desc, text []byte) error {
	desc.Size = int64(len(text))
	m, err := parseManifest(text)
	if err != nil {
		return err
	}
	if desc.Digest == "" {
		if desc.Digest, err = manifest.Digest(text); err != nil {
			return fmt.Errorf("%w: %w", err, imgsrc.ErrDamaged)
		}
	} else if ok, err := manifest.MatchesDigest(text, desc.Digest); err != nil || !ok {
		return fmt.Errorf("its digest is not %s: %w", desc.Digest, imgsrc.ErrDamaged)
	}
	desc.MediaType, desc.Config = m.MediaType, m.Config.Digest
	var related struct {
		Subject   struct{ Digest digest.Digest }   `json:"subject"`
		Manifests []struct{ Digest digest.Digest } `json:"manifests"`
	}
	if json.Unmarshal(text, &related) != nil {
		return nil //nolint:nilerr // it is complete without them, and damaged for whoever reads them
	}
	if related.Subject.Digest.Validate() == nil {
		desc.Subject = related.Subject.Digest
	}
	for _, entry := range related.Manifests {
		desc.Lists = append(desc.Lists, entry.Digest)
	}
	return nil
}

// layersOf returns the ids of an image's layers, base first, and the bytes that they take with the image's big data. Both
// are none if that is not to be had: whoever opens a layer hears why.
func (s *Source) layersOf(r *record) (ids []string, unpacked int64) {
	chain, err := s.chain(r.Layer)
	if err != nil {
		return nil, 0
	}
	for _, l := range chain {
		ids = append(ids, l.ID)
		if l.DiffID == "" || l.Size < 0 {
			unpacked = -1
		}
		if unpacked >= 0 {
			unpacked += l.Size
		}
	}
	if unpacked < 0 {
		return ids, 0
	}
	for _, n := range r.DataSizes {
		unpacked += n
	}
	return ids, unpacked
}

// parsed is what is needed of a manifest.
type parsed struct {
	MediaType string `json:"mediaType"`
	Config    struct {
		Digest digest.Digest `json:"digest"`
	} `json:"config"`
	Layers []struct {
		Digest digest.Digest `json:"digest"`
	} `json:"layers"`
}

func parseManifest(text []byte) (*parsed, error) {
	m := &parsed{}
	if err := json.Unmarshal(text, m); err != nil {
		return nil, fmt.Errorf("it is not a manifest: %w: %w", err, imgsrc.ErrDamaged)
	}
	if m.MediaType == "" {
		m.MediaType = manifest.GuessMIMEType(text)
	}
	if m.MediaType == "" {
		return nil, fmt.Errorf("it is not a manifest of any known kind: %w", imgsrc.ErrDamaged)
	}
	if m.Config.Digest != "" && m.Config.Digest.Validate() != nil {
		return nil, fmt.Errorf("%.100q is no digest of a config: %w", string(m.Config.Digest), imgsrc.ErrDamaged)
	}
	return m, nil
}

// repoDigests pairs the repositories of an image's names with the digests of its manifests, as podman shows them: sorted.
func repoDigests(r *record, keys []string) []string {
	var digests []digest.Digest
	if r.Digest.Validate() == nil {
		digests = append(digests, r.Digest)
	}
	for _, key := range keys {
		if d := r.digestOf(key); d != "" && !slices.Contains(digests, d) {
			digests = append(digests, d)
		}
	}
	var out []string
	seen := map[string]bool{}
	for _, name := range r.Names {
		named, err := reference.ParseNormalizedNamed(name)
		if err != nil || seen[named.Name()] {
			continue
		}
		seen[named.Name()] = true
		for _, d := range digests {
			out = append(out, named.Name()+"@"+d.String())
		}
	}
	slices.Sort(out)
	return out
}
