package layout

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
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

// A Source is one layout.
type Source struct {
	dir   string // absolute
	ref   string
	root  *os.Root
	cache *layer.Cache
	log   *slog.Logger

	ctx    context.Context // of the hashing
	cancel context.CancelFunc
	jobs   sync.WaitGroup
	slots  chan struct{} // one for each blob that may be hashed at a time

	mu     sync.Mutex
	known  map[digest.Digest]*manifest // from the last List
	checks map[digest.Digest]*check
	closed bool

	// damaged is set when the last List found a manifest missing, also one that only an index lists, or damaged: then the
	// blobs count for the stamp, so that a repaired one is seen.
	damaged atomic.Bool

	lastFacts atomic.Pointer[imgsrc.Facts] // of the image whose layers were opened last
}

var _ imgsrc.Tagger = (*Source)(nil)

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
	root, err := os.OpenRoot(dir)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
			return nil, fmt.Errorf("opening layout: %w: %s is not a directory", imgsrc.ErrNoSource, dir)
		}
		return nil, fmt.Errorf("opening layout: %w", err)
	}
	s := &Source{
		dir: dir, ref: o.Ref, root: root, cache: o.Cache, log: o.Log,
		slots:  make(chan struct{}, runtime.GOMAXPROCS(0)),
		checks: map[digest.Digest]*check{},
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	if err := s.check(ctx); err != nil {
		s.Close()
		return nil, fmt.Errorf("opening layout %s: %w", dir, err)
	}
	return s, nil
}

// check fails if there is nothing here that can be listed.
func (s *Source) check(ctx context.Context) error {
	b, _, err := s.readFile(v1.ImageLayoutFile, imgsrc.MaxManifest)
	if errors.Is(err, fs.ErrNotExist) {
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

// Name returns oci:DIR or oci:DIR:REF.
func (s *Source) Name() string {
	if s.ref != "" {
		return "oci:" + s.dir + ":" + s.ref
	}
	return "oci:" + s.dir
}

// Stamp is the identity of index.json.
func (s *Source) Stamp() imgsrc.Stamp {
	fi, err := s.root.Stat(v1.ImageIndexFile)
	if err != nil {
		return "none"
	}
	stamp := imgsrc.Stamp(identify(fi).String())
	if s.damaged.Load() {
		if fi, err := s.root.Stat(v1.ImageBlobsDir + "/" + digest.SHA256.String()); err == nil {
			stamp += imgsrc.Stamp(" " + identify(fi).String())
		}
	}
	return stamp
}

// Close stops the hashing that is under way. Contents that are open stay readable as far as they are verified.
func (s *Source) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	s.jobs.Wait()
	return s.root.Close()
}

// An identity changes when somebody writes to a file or replaces it.
type identity struct {
	dev, ino     uint64
	size         int64
	mtime, ctime syscall.Timespec
}

func identify(fi fs.FileInfo) identity {
	st := fi.Sys().(*syscall.Stat_t)
	return identity{uint64(st.Dev), st.Ino, st.Size, st.Mtim, st.Ctim}
}

func (id identity) String() string {
	return fmt.Sprintf("%d:%d %d %d.%09d %d.%09d", id.dev, id.ino, id.size, id.mtime.Sec, id.mtime.Nsec, id.ctime.Sec, id.ctime.Nsec)
}

// open opens a regular file of the layout. A FIFO does not make it wait.
func (s *Source) open(path string) (*os.File, fs.FileInfo, error) {
	f, err := s.root.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		if strings.Contains(err.Error(), "escapes from parent") { // os.Root has no error value for it
			err = fmt.Errorf("%w: %s leads out of the layout", imgsrc.ErrDamaged, path)
		}
		return nil, nil, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = fmt.Errorf("%w: %s is not a regular file", imgsrc.ErrDamaged, path)
	}
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, fi, nil
}

// readFile reads a file of at most limit bytes. With an error of the reading itself there is a FileInfo too.
func (s *Source) readFile(path string, limit int64) ([]byte, fs.FileInfo, error) {
	f, fi, err := s.open(path)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	if fi.Size() > limit {
		return nil, nil, fmt.Errorf("%w: %s has %d bytes, more than %d", imgsrc.ErrDamaged, path, fi.Size(), limit)
	}
	b := make([]byte, fi.Size())
	if _, err := io.ReadFull(f, b); err != nil {
		return nil, fi, fmt.Errorf("reading %s: %w", path, err)
	}
	return b, fi, nil
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
