package dockerarchive

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/docker/reference"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/blobs"
	"github.com/imgfs/imgfs/imgsrc/layer"
	"github.com/imgfs/imgfs/imgsrc/layout"
)

// Options are what Open needs.
type Options struct {
	// File is the archive's path.
	File string
	// Ref restricts the listing to the image of this name, or, as "@N", to the Nth one, counted from 0. Empty: all.
	Ref string
	// Cache holds decompressed layers; it stays open when the source is closed.
	Cache *layer.Cache
	// Log gets damage that is found while reading. Nil discards it.
	Log *slog.Logger
}

// manifestFile is the archive's list of images.
const manifestFile = "manifest.json"

// A Source is one archive.
type Source struct {
	name, ref string
	tar       *blobs.Tar
	store     *blobs.Store

	mu    sync.Mutex
	paths map[digest.Digest]string // of all that was ever listed
	known map[string]*described    // by entry, from the last List
	of    blobs.Identity           // of the archive that known is of
}

var _ imgsrc.Placed = (*Source)(nil)

// Files implements [imgsrc.Placed].
func (s *Source) Files() []string { return []string{s.tar.File()} }

// Open opens an archive. Errors: imgsrc.ErrNoSource if it is none, or has no image of the name that is asked for;
// imgsrc.ErrDamaged if its list of images cannot be read.
func Open(ctx context.Context, o Options) (imgsrc.Source, error) {
	file, err := filepath.Abs(o.File)
	if err != nil {
		return nil, fmt.Errorf("opening archive %s: %w", o.File, err)
	}
	t, err := blobs.OpenTar(ctx, file, o.Cache)
	if err != nil {
		return nil, fmt.Errorf("opening archive: %w", err)
	}
	return New(ctx, t, o)
}

// New is Open for an archive that is open already. The source closes it, also if there is none.
func New(ctx context.Context, t *blobs.Tar, o Options) (imgsrc.Source, error) {
	if hasLayout(t) && !strings.HasPrefix(o.Ref, "@") {
		return layout.NewArchive(ctx, "docker-archive", t, layout.Options{Ref: o.Ref, Cache: o.Cache, Log: o.Log})
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Source{name: "docker-archive:" + t.File(), ref: o.Ref, tar: t, paths: map[digest.Digest]string{}}
	if o.Ref != "" {
		s.name += ":" + o.Ref
	}
	s.store = blobs.New(blobs.Options{Dir: t, Path: s.path, Name: s.name, Cache: o.Cache, Log: o.Log})
	items, err := s.items()
	if err == nil && len(s.wanted(items)) == 0 && o.Ref != "" {
		err = fmt.Errorf("%w: no image is named %q there", imgsrc.ErrNoSource, o.Ref)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening archive %s: %w", t.File(), err), s.Close())
	}
	return s, nil
}

// hasLayout says whether an archive holds an OCI layout that lists something.
func hasLayout(d blobs.Dir) bool {
	if _, err := d.Stat(v1.ImageLayoutFile); err != nil {
		return false
	}
	b, _, err := blobs.ReadFile(d, v1.ImageIndexFile, imgsrc.MaxManifest)
	var index struct {
		Manifests []json.RawMessage `json:"manifests"`
	}
	return err == nil && json.Unmarshal(b, &index) == nil && len(index.Manifests) > 0
}

// An item is one entry of manifest.json.
type item struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// items reads manifest.json.
func (s *Source) items() ([]item, error) {
	b, _, err := blobs.ReadFile(s.tar, manifestFile, imgsrc.MaxManifest)
	if errors.Is(err, fs.ErrNotExist) && !errors.Is(err, imgsrc.ErrDamaged) { // of an archive that is cut short it may be missing
		return nil, imgsrc.Of(err, fmt.Errorf("%w: it has no manifest.json", imgsrc.ErrNoSource))
	}
	if err != nil {
		return nil, err
	}
	var items []item
	if err := json.Unmarshal(b, &items); err != nil {
		return nil, fmt.Errorf("%w: manifest.json: %w", imgsrc.ErrDamaged, err)
	}
	return items, nil
}

// wanted are the entries that the source's reference asks for.
func (s *Source) wanted(items []item) []item {
	if s.ref == "" {
		return items
	}
	if number, ok := strings.CutPrefix(s.ref, "@"); ok {
		n, err := strconv.Atoi(number)
		if err != nil || n < 0 || n >= len(items) {
			return nil
		}
		return items[n : n+1]
	}
	var list []item
	for _, it := range items {
		if slices.ContainsFunc(it.RepoTags, func(tag string) bool { return normal(tag) == normal(s.ref) }) {
			list = append(list, it)
		}
	}
	return list
}

// normal is a reference in full, or what is none as it stands.
func normal(name string) string {
	named, err := reference.ParseDockerRef(name)
	if err != nil {
		return name
	}
	return named.String()
}

// Name implements [imgsrc.Source].
func (s *Source) Name() string { return s.name }

// Stamp implements [imgsrc.Source]: it is the archive's identity.
func (s *Source) Stamp() imgsrc.Stamp {
	id, err := s.tar.Identity()
	if err != nil {
		return "none"
	}
	return imgsrc.Stamp(id.String())
}

// Watch implements [imgsrc.Source].
func (s *Source) Watch(ctx context.Context, changed func()) error {
	if err := blobs.WatchFile(ctx, s.tar.File(), changed); err != nil {
		return fmt.Errorf("watching %s: %w", s.name, err)
	}
	return nil
}

// Close implements [imgsrc.Source].
func (s *Source) Close() error { return s.store.Close() }

// path is where a blob lies: nowhere, if it was never listed.
func (s *Source) path(d digest.Digest) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.paths[d]
}

func (s *Source) lies(d digest.Digest, where string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.paths[d] = where
}

// List implements [imgsrc.Source].
func (s *Source) List(ctx context.Context) (*imgsrc.Listing, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	id, err := s.tar.Identity()
	if err != nil {
		return nil, fmt.Errorf("listing %s: %w: %w", s.name, imgsrc.ErrNotFound, err)
	}
	items, err := s.items()
	if err != nil {
		return nil, fmt.Errorf("listing %s: %w", s.name, err)
	}
	s.mu.Lock()
	known := s.known
	if s.of != id {
		known = nil
	}
	s.mu.Unlock()
	l := &imgsrc.Listing{ModTime: id.ModTime()}
	if err := s.tar.Problem(); err != nil {
		l.Problems = append(l.Problems, fmt.Errorf("%w: %w", imgsrc.ErrDamaged, err))
	}
	found, hashes := map[string]*described{}, map[string]digest.Digest{}
	listed, named := map[[2]string]int{}, map[taggedAs]bool{}
	for _, it := range s.wanted(items) {
		key := it.Config + "\x00" + strings.Join(it.Layers, "\x00")
		d := cmp.Or(found[key], known[key])
		if d == nil {
			if d, err = s.describe(ctx, it, hashes); err != nil {
				if ctx.Err() != nil {
					return nil, ctx.Err()
				}
				l.Problems = append(l.Problems, fmt.Errorf("image %q: %w", it.RepoTags, err))
				continue
			}
		}
		found[key] = d
		// Some builders write an entry for each name.
		desc := d.image.Desc()
		same := [2]string{desc.ID, desc.Digest.String()}
		at, ok := listed[same]
		if !ok {
			at = len(l.Images)
			listed[same] = at
			l.Images = append(l.Images, imgsrc.Listed{Image: d.image, Layers: d.layers})
		}
		for _, name := range it.RepoTags {
			if key := (taggedAs{at, name}); !named[key] {
				named[key] = true
				l.Images[at].Names = append(l.Images[at].Names, name)
			}
		}
	}
	s.mu.Lock()
	s.known, s.of = found, id
	s.mu.Unlock()
	return l, nil
}

// taggedAs is a name of an image, by its place in the listing.
type taggedAs struct {
	image int
	name  string
}

// described is an entry that was made sense of.
type described struct {
	image  *blobs.Image
	layers []string
}

// digestName is a file's name that holds the digest of what is in it.
func digestName(file string) digest.Digest {
	base, _, _ := strings.Cut(strings.TrimPrefix(path.Base(file), "sha256:"), ".")
	d := digest.NewDigestFromEncoded(digest.SHA256, base)
	if d.Validate() != nil {
		return ""
	}
	return d
}
