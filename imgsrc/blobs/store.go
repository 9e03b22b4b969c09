package blobs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/layer"
)

// Options are what a Store needs.
type Options struct {
	// Dir is where the files are. The store closes it.
	Dir Dir
	// Path says where the bytes of a valid digest are.
	Path func(d digest.Digest) string
	// Name is the source's, for the log.
	Name string
	// Cache holds decompressed layers; it stays open when the store is closed. Nil: Diff of a compressed layer is
	// ErrUnsupported.
	Cache *layer.Cache
	// Log gets damage that is found while reading. Nil discards it.
	Log *slog.Logger
}

// A Store is files that are known by their digests.
type Store struct {
	Options

	ctx    context.Context // of the hashing
	cancel context.CancelFunc
	jobs   sync.WaitGroup
	slots  chan struct{} // one for each blob that may be hashed at a time
	urgent chan struct{} // as many more, for those that a reader waits for

	mu      sync.Mutex
	checks  map[digest.Digest]*check
	lasting int // how many there were when those of files that are gone were last dropped
	closed  bool

	lastFacts atomic.Pointer[imgsrc.Facts] // of the image whose layers were opened last
}

// New returns a store.
func New(o Options) *Store {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	n := runtime.GOMAXPROCS(0)
	s := &Store{Options: o, slots: make(chan struct{}, n), urgent: make(chan struct{}, n), checks: map[digest.Digest]*check{}}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// Close stops the hashing that is under way. Contents that are open stay readable as far as they are verified.
func (s *Store) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	s.jobs.Wait()
	return s.Dir.Close()
}

// Read reads a manifest or config and verifies it; size is the descriptor's, -1 if it has none. An identity is returned
// for a file that could be read, whatever its bytes. Errors: imgsrc.ErrDamaged, with fs.ErrNotExist if it is missing.
func (s *Store) Read(d digest.Digest, size int64) ([]byte, Identity, error) {
	path := s.Path(d)
	b, id, err := ReadFile(s.Dir, path, imgsrc.MaxManifest)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, Identity{}, missing(path, err)
	case err != nil:
		return nil, id, err
	case size >= 0 && int64(len(b)) != size:
		return nil, id, fmt.Errorf("%w: %s has %d bytes, and its descriptor says %d", imgsrc.ErrDamaged, path, len(b), size)
	}
	if got := d.Algorithm().FromBytes(b); got != d {
		return nil, id, fmt.Errorf("%w: the bytes of %s are %s", imgsrc.ErrDamaged, path, got)
	}
	return b, id, nil
}

// check looks at a layer's file, at the price of a stat(2). Error: as with open.
func (s *Store) check(d digest.Digest, size int64) error {
	path := s.Path(d)
	id, err := s.Dir.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return missing(path, err)
	case err != nil:
		return err
	case size >= 0 && id.size != size:
		return fmt.Errorf("%w: %s has %d bytes, and its descriptor says %d", imgsrc.ErrDamaged, path, id.size, size)
	}
	return nil
}

// missing is the error for a file that is not there, or perhaps was in what is missing of an archive.
func missing(path string, err error) error {
	if errors.Is(err, imgsrc.ErrDamaged) {
		return err
	}
	return fmt.Errorf("%w: %s is missing: %w", imgsrc.ErrDamaged, path, fs.ErrNotExist)
}

// open opens a layer's file. Its bytes are not verified yet, but for their number: size, unless that is -1. Error:
// imgsrc.ErrDamaged.
func (s *Store) open(d digest.Digest, size int64) (File, error) {
	path := s.Path(d)
	f, err := s.Dir.Open(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, missing(path, err)
	case err != nil:
		return nil, err
	}
	if now := f.Identity().size; size >= 0 && now != size {
		f.Close()
		return nil, fmt.Errorf("%w: %s has %d bytes, and its descriptor says %d", imgsrc.ErrDamaged, path, now, size)
	}
	return f, nil
}

// stream opens a layer's file to be read from its beginning.
func (s *Store) stream(d digest.Digest, size int64) (io.ReadCloser, error) {
	f, err := s.open(d, size)
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{io.NewSectionReader(f, 0, f.Identity().size), f}, nil
}

// Blob opens the bytes of a layer. Errors: imgsrc.ErrAbsent if the manifest names no such layer, or one whose bytes need
// not be there and are not; imgsrc.ErrDamaged if they are missing, then with fs.ErrNotExist, or not as many as they
// should be.
func (s *Store) Blob(f *imgsrc.Facts, d digest.Digest) (imgsrc.Content, error) {
	for _, l := range f.Layers {
		if l.Digest != d {
			continue
		}
		if err := s.usable(l); err != nil {
			return nil, err
		}
		if err := s.check(d, l.Size); err != nil {
			return nil, err
		}
		return &blob{store: s, digest: d, size: l.Size}, nil
	}
	return nil, fmt.Errorf("%w: manifest %s has no such layer", imgsrc.ErrAbsent, f.Digest)
}

// usable fails for a layer whose bytes cannot be had here: with imgsrc.ErrAbsent for one that need not be there, with
// imgsrc.ErrUnsupported for a digest that cannot be checked.
func (s *Store) usable(l imgsrc.LayerFacts) error {
	if err := l.Digest.Validate(); err != nil {
		return fmt.Errorf("%w: %w", imgsrc.ErrUnsupported, err)
	}
	if !strings.Contains(l.MediaType, ".nondistributable.") && !strings.Contains(l.MediaType, ".foreign.") {
		return nil
	}
	if _, err := s.Dir.Stat(s.Path(l.Digest)); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: a layer of type %s, which is not there", imgsrc.ErrAbsent, l.MediaType)
	}
	return nil
}

// Diff opens layer n of an image as an uncompressed tar. Errors: as with imgsrc.Image.
func (s *Store) Diff(f *imgsrc.Facts, n int) (imgsrc.Content, error) {
	switch {
	case f.Kind != imgsrc.KindImage:
		return nil, fmt.Errorf("%w: an %s has no layers", imgsrc.ErrAbsent, f.Kind)
	case n < 0 || n >= len(f.Layers):
		return nil, fmt.Errorf("%w: there are %d", imgsrc.ErrAbsent, len(f.Layers))
	}
	l := f.Layers[n]
	if err := layer.CheckMediaType(l.MediaType); err != nil {
		return nil, err
	}
	if _, err := imgsrc.LayerDiffID(f, n); err != nil && !errors.Is(err, imgsrc.ErrAbsent) {
		return nil, err // which bytes these should be is not known
	}
	if err := s.usable(l); err != nil {
		return nil, err
	}
	if err := l.DiffID.Validate(); l.DiffID != "" && err != nil {
		return nil, fmt.Errorf("%w: diff id %q: %w", imgsrc.ErrUnsupported, l.DiffID, err)
	}
	kind, err := s.compression(l)
	if err != nil {
		return nil, err
	}
	if kind == layer.None {
		switch {
		case l.DiffID == "" || l.DiffID == l.Digest:
			return &blob{store: s, digest: l.Digest, size: l.Size}, nil
		case l.DiffID.Algorithm() == l.Digest.Algorithm():
			return nil, fmt.Errorf("%w: %s is not compressed, and its diff id is another, %s", imgsrc.ErrDamaged, l.Digest, l.DiffID)
		}
	}
	if s.Cache == nil {
		return nil, fmt.Errorf("%w: a layer with %s compression, without a cache", imgsrc.ErrUnsupported, kind)
	}
	return s.Cache.Diff(l.Digest, l.DiffID, func(context.Context) (io.ReadCloser, error) { return s.stream(l.Digest, l.Size) }), nil
}

// Files opens layer n of an image as the entries of the tar that Diff opens.
func (s *Store) Files(f *imgsrc.Facts, n int) (imgsrc.Files, error) {
	c, err := s.Diff(f, n)
	if err != nil {
		return nil, err
	}
	l := f.Layers[n]
	key := imgsrc.FilesKey{Form: layer.TarForm, Digest: l.DiffID}
	if key.Digest == "" {
		key.Digest = l.Digest
	}
	return layer.TarFiles(c, key, func(context.Context) (io.ReadCloser, error) { return s.stream(l.Digest, l.Size) }), nil
}

// compression tells a layer's compression from its first bytes.
func (s *Store) compression(l imgsrc.LayerFacts) (layer.Compression, error) {
	head := make([]byte, layer.HeadLen)
	n, err := s.peek(l, head)
	if err != nil {
		return "", err
	}
	return layer.Detect(head[:n]), nil
}

// peek reads a layer's first bytes.
func (s *Store) peek(l imgsrc.LayerFacts, p []byte) (int, error) {
	f, err := s.open(l.Digest, l.Size)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	n, err := f.ReadAt(p, 0)
	if err != nil && err != io.EOF {
		return 0, fmt.Errorf("reading %s: %w", s.Path(l.Digest), err)
	}
	return n, nil
}
