package layout

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/blobs"
	"github.com/imgfs/imgfs/imgsrc/indexjson"
	"github.com/imgfs/imgfs/imgsrc/layer"
)

// Options are what Open needs.
type Options struct {
	// Dir is the layout's directory.
	Dir string
	// Ref restricts the listing to the image of this name, and to what it holds if it is an index. Empty: all.
	Ref string
	// Cache holds decompressed layers; it stays open when the source is closed. Nil: Diff of a compressed layer is
	// ErrUnsupported.
	Cache *layer.Cache
	// Log gets damage that is found while reading. Nil discards it.
	Log *slog.Logger
}

// A Source is one layout in a directory.
type Source struct {
	images
	dir  string      // absolute
	info fs.FileInfo // of the directory, when it was opened
}

var (
	_ imgsrc.Tagger = (*Source)(nil)
	_ imgsrc.Placed = (*Source)(nil)
)

// Files implements [imgsrc.Placed].
func (s *Source) Files() []string { return []string{s.dir} }

// images are the images of a layout, wherever its files are.
type images struct {
	name  string
	ref   string
	store *blobs.Store
	log   *slog.Logger

	mu    sync.Mutex
	known map[variant]*manifest // from the last List

	// damaged is set when the last List found a manifest missing, also one that only an index lists, or damaged: then the
	// blobs count for the stamp, so that a repaired one is seen.
	damaged atomic.Bool
}

// Is says whether dir looks like a layout: it has a file oci-layout. It does not say whether Open will succeed.
func Is(dir string) bool {
	fi, err := os.Stat(filepath.Join(dir, v1.ImageLayoutFile))
	return err == nil && fi.Mode().IsRegular()
}

// Open opens the layout in a directory. Errors: imgsrc.ErrNoSource if there is no directory, it is no layout, of a
// version that is not known, or has no image of the name that is asked for; imgsrc.ErrDamaged if it is a layout that
// cannot be listed.
func Open(ctx context.Context, o Options) (*Source, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("opening layout %s: %w", o.Dir, err)
	}
	root, err := os.OpenRoot(dir + "/") // as a directory, so that a FIFO does not make it wait
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
			return nil, fmt.Errorf("opening layout: %w: %s is not a directory", imgsrc.ErrNoSource, dir)
		}
		return nil, fmt.Errorf("opening layout: %w", err)
	}
	info, err := root.Stat(".")
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening layout: %w", err), root.Close())
	}
	s := &Source{dir: dir, info: info, images: images{name: nameOf("oci:"+dir, o.Ref), ref: o.Ref, log: o.Log}}
	s.store = openStore(blobs.NewOSDir(root), s.name, o)
	if err := s.check(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("opening layout %s: %w", dir, err), s.Close())
	}
	return s, nil
}

// LayoutDir is the layout's directory. Whoever adds an image to it does so by the rules of package indexjson.
func (s *Source) LayoutDir() string { return s.dir }

// IsIn says whether a directory is the layout's. It asks no file system: one that has gone away would not answer.
func (s *Source) IsIn(dir fs.FileInfo) bool { return os.SameFile(s.info, dir) }

// VerifyBlob reads a blob to its end, unless that has been done since it was last written to, and returns how many bytes it
// has. size is how many it must have, -1 if any number will do. Errors: imgsrc.ErrDamaged if it is not what it should be,
// with fs.ErrNotExist if it is missing; imgsrc.ErrUnsupported for a digest that cannot be checked; ctx's; those of reading.
func (s *Source) VerifyBlob(ctx context.Context, d digest.Digest, size int64) (int64, error) {
	n, err := s.store.Verify(ctx, d, size)
	if err != nil {
		return 0, fmt.Errorf("verifying blob %s of %s: %w", d, s.Name(), err)
	}
	return n, nil
}

func nameOf(place, ref string) string {
	if ref != "" {
		return place + ":" + ref
	}
	return place
}

func openStore(dir blobs.Dir, name string, o Options) *blobs.Store {
	return blobs.New(blobs.Options{Dir: dir, Path: blobPath, Name: name, Cache: o.Cache, Log: o.Log})
}

// check fails if there is nothing here that can be listed.
func (s *images) check(ctx context.Context) error {
	b, _, err := s.readFile(v1.ImageLayoutFile)
	if errors.Is(err, fs.ErrNotExist) && !errors.Is(err, imgsrc.ErrDamaged) { // of an archive that is cut short it may be missing
		return fmt.Errorf("%w: it has no file oci-layout", imgsrc.ErrNoSource)
	}
	if err != nil {
		return err
	}
	var header v1.ImageLayout
	if err := json.Unmarshal(b, &header); err != nil {
		return damagedJSON(v1.ImageLayoutFile, err)
	}
	if !strings.HasPrefix(header.Version, "1.") {
		return fmt.Errorf("%w: oci-layout has version %q, and 1.x is known", imgsrc.ErrNoSource, header.Version)
	}
	ix, err := s.readIndex(ctx)
	if err != nil || s.ref == "" {
		return err
	}
	if !slices.ContainsFunc(ix.entries, func(e entry) bool { return e.isNamed(s.ref) }) {
		return fmt.Errorf("%w: no image is named %q there%s", imgsrc.ErrNoSource, s.ref, ix.someNames())
	}
	return nil
}

// Name returns oci:DIR or oci:DIR:REF, and oci-archive:FILE likewise.
func (s *images) Name() string { return s.name }

// Stamp is the identity of index.json.
func (s *images) Stamp() imgsrc.Stamp {
	id, err := s.store.Dir.Stat(v1.ImageIndexFile)
	if err != nil {
		return "none"
	}
	stamp := imgsrc.Stamp(id.String())
	if s.damaged.Load() {
		if id, err := s.store.Dir.Stat(v1.ImageBlobsDir + "/" + digest.SHA256.String()); err == nil {
			stamp += imgsrc.Stamp(" " + id.String())
		}
	}
	return stamp
}

// Close stops the hashing that is under way. Contents that are open stay readable as far as they are verified.
func (s *images) Close() error { return s.store.Close() }

// readFile reads oci-layout or index.json. With an error of the reading itself there is an identity too.
func (s *images) readFile(path string) ([]byte, blobs.Identity, error) {
	return blobs.ReadFile(s.store.Dir, path, indexjson.Max)
}

// blobPath is where the layout keeps the bytes of d, which must be a valid digest.
func blobPath(d digest.Digest) string {
	return v1.ImageBlobsDir + "/" + d.Algorithm().String() + "/" + d.Encoded()
}

// damagedJSON says where in a file the JSON is broken.
func damagedJSON(file string, err error) error {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		return fmt.Errorf("%w: %s is not JSON: %w, at byte %d", imgsrc.ErrDamaged, file, err, syntax.Offset)
	case errors.As(err, &kind):
		return fmt.Errorf("%w: %s: a JSON %s has no place in %q, at byte %d", imgsrc.ErrDamaged, file, kind.Value, kind.Field, kind.Offset)
	}
	return fmt.Errorf("%w: %s: %w", imgsrc.ErrDamaged, file, err)
}
