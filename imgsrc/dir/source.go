package dir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/manifest"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/blobs"
	"github.com/imgfs/imgfs/imgsrc/layer"
)

// Options are what Open needs.
type Options struct {
	// Dir is the directory's path.
	Dir string
	// Cache holds decompressed layers; it stays open when the source is closed.
	Cache *layer.Cache
	// Log gets damage that is found while reading. Nil discards it.
	Log *slog.Logger
}

// The directory's files beside the blobs.
const (
	manifestFile = "manifest.json"
	versionFile  = "version"
)

// maxDepth is how many indexes may stand above a manifest.
const maxDepth = 8

// A Source is one directory.
type Source struct {
	name, dir string
	store     *blobs.Store
}

var _ imgsrc.Placed = (*Source)(nil)

// Files implements [imgsrc.Placed].
func (s *Source) Files() []string { return []string{s.dir} }

// Is says whether a directory looks like one of these: it has the files version and manifest.json.
func Is(dir string) bool {
	for _, name := range []string{manifestFile, versionFile} {
		if fi, err := os.Stat(filepath.Join(dir, name)); err != nil || !fi.Mode().IsRegular() {
			return false
		}
	}
	return true
}

// Open opens a directory. Errors: imgsrc.ErrNoSource if there is none, or it has no manifest.json.
func Open(_ context.Context, o Options) (*Source, error) {
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("opening directory %s: %w", o.Dir, err)
	}
	root, err := os.OpenRoot(dir + "/") // as a directory, so that a FIFO does not make it wait
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
			return nil, fmt.Errorf("opening directory: %w: %s is not a directory", imgsrc.ErrNoSource, dir)
		}
		return nil, fmt.Errorf("opening directory: %w", err)
	}
	s := &Source{name: "dir:" + dir, dir: dir}
	s.store = blobs.New(blobs.Options{Dir: blobs.NewOSDir(root), Path: pathOf, Name: s.name, Cache: o.Cache, Log: o.Log})
	if _, err := s.store.Dir.Stat(manifestFile); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%w: it has no manifest.json", imgsrc.ErrNoSource)
		}
		return nil, errors.Join(fmt.Errorf("opening directory %s: %w", dir, err), s.Close())
	}
	return s, nil
}

// pathOf is where a blob is.
func pathOf(d digest.Digest) string {
	if d.Algorithm() == digest.Canonical {
		return d.Encoded()
	}
	return d.Algorithm().String() + "-" + d.Encoded()
}

// Name implements [imgsrc.Source].
func (s *Source) Name() string { return s.name }

// Stamp implements [imgsrc.Source]: it is manifest.json's identity, and the directory's, for blobs that come and go.
func (s *Source) Stamp() imgsrc.Stamp {
	stamp := imgsrc.Stamp("")
	for _, path := range []string{manifestFile, "."} {
		id, err := s.store.Dir.Stat(path)
		if err != nil {
			return "none"
		}
		stamp += imgsrc.Stamp(id.String() + " ")
	}
	return stamp
}

// Watch implements [imgsrc.Source]. Manifests that an index lists may come one after the other.
func (s *Source) Watch(ctx context.Context, changed func()) error {
	isManifest := func(name string) bool { return strings.HasSuffix(name, manifestFile) }
	if err := blobs.Watch(ctx, s.dir, isManifest, changed); err != nil {
		return fmt.Errorf("watching %s: %w", s.name, err)
	}
	return nil
}

// Close implements [imgsrc.Source].
func (s *Source) Close() error { return s.store.Close() }

// List implements [imgsrc.Source].
func (s *Source) List(ctx context.Context) (*imgsrc.Listing, error) {
	b, id, err := blobs.ReadFile(s.store.Dir, manifestFile, imgsrc.MaxManifest)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: manifest.json is gone: %w", imgsrc.ErrNotFound, err)
	}
	if err != nil {
		return nil, fmt.Errorf("listing %s: %w", s.name, err)
	}
	// The digest of a signed manifest of schema 1 leaves its signatures out.
	d, err := manifest.Digest(b)
	if err != nil {
		d = digest.FromBytes(b)
	}
	l := &imgsrc.Listing{ModTime: id.ModTime()}
	w := &walk{s: s, listing: l, seen: map[digest.Digest]bool{d: true}}
	w.add(ctx, imgsrc.Desc{Digest: d}, b, s.manifestIn(manifestFile, func(context.Context) ([]byte, error) { return s.manifest(d) }), 0)
	return l, ctx.Err()
}

// manifestIn is a manifest that is a file of the directory.
func (s *Source) manifestIn(file string, read func(context.Context) ([]byte, error)) blobs.Manifest {
	return blobs.Manifest{Bytes: read, Here: func() bool {
		_, err := s.store.Dir.Stat(file)
		return err == nil
	}}
}

// manifest reads manifest.json, which must be the one that was listed.
func (s *Source) manifest(want digest.Digest) ([]byte, error) {
	b, _, err := blobs.ReadFile(s.store.Dir, manifestFile, imgsrc.MaxManifest)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%w: manifest.json is gone: %w", imgsrc.ErrNotFound, err)
	case err != nil:
		return nil, err
	}
	if ok, err := manifest.MatchesDigest(b, want); err == nil && ok || digest.FromBytes(b) == want {
		return b, nil
	}
	return nil, fmt.Errorf("%w: manifest.json is another now", imgsrc.ErrNotFound)
}

// A walk lists a manifest and what is below it, each once.
type walk struct {
	s       *Source
	listing *imgsrc.Listing
	seen    map[digest.Digest]bool
}

func (w *walk) add(ctx context.Context, desc imgsrc.Desc, b []byte, from blobs.Manifest, depth int) {
	facts := imgsrc.Describe(&desc, b)
	listed := imgsrc.Listed{Image: blobs.NewImage(w.s.store, desc, facts.ConfigSize(), from)}
	for _, l := range facts.Layers {
		listed.Layers = append(listed.Layers, string(l.Digest))
	}
	w.listing.Images = append(w.listing.Images, listed)
	for _, c := range facts.Children {
		if ctx.Err() != nil || depth == maxDepth || w.seen[c.Digest] || c.Digest.Validate() != nil {
			continue
		}
		w.seen[c.Digest] = true
		file := pathOf(c.Digest) + "." + manifestFile
		read := func(context.Context) ([]byte, error) { return w.s.child(file, c.Digest) }
		b, err := read(ctx)
		switch {
		case errors.Is(err, fs.ErrNotExist): // not every platform need be there
		case err != nil:
			w.listing.Problems = append(w.listing.Problems, fmt.Errorf("reading manifest %s: %w", c.Digest, err))
		default:
			w.add(ctx, imgsrc.Desc{Digest: c.Digest, MediaType: c.MediaType}, b, w.s.manifestIn(file, read), depth+1)
		}
	}
}

// child reads a manifest that an index lists.
func (s *Source) child(file string, d digest.Digest) ([]byte, error) {
	b, _, err := blobs.ReadFile(s.store.Dir, file, imgsrc.MaxManifest)
	if err != nil {
		return nil, err
	}
	if ok, err := manifest.MatchesDigest(b, d); err != nil || !ok {
		return nil, fmt.Errorf("%w: the bytes of %s are not %s", imgsrc.ErrDamaged, file, d)
	}
	return b, nil
}
