package daemon

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/cachefile"
)

// The directory of records, below Options.CacheDir. The format is append-only: another one goes to another directory.
const recordsDir = "docker-daemon/v2"

const (
	maxRecords = 4096
	maxRecord  = 12<<20 + 64<<10 // bytes of a file: a config and a manifest of 4 MiB, in base64, and sizes
	partAge    = time.Hour       // after which a file that was being written has been given up
)

// records keep documents in files, an image's under its id, so that the next mount needs no save to show them. A file is
// 64 hex digits, the SHA-256 of "<id>\n" and of what follows them, a newline, and JSON. It may be removed at any time.
type records struct {
	dir *os.Root // nil: nothing can be kept
	log *slog.Logger

	mu      sync.Mutex
	pending int                  // written since the files were last counted
	memory  map[string]*document // those that could not be written
}

// A record is the JSON of a file.
type record struct {
	Config   []byte  `json:"config"`
	Sizes    []int64 `json:"sizes"`
	Manifest []byte  `json:"manifest,omitempty"` // if the engine keeps one
}

// openRecords opens the directory, which is made if it is missing. If it cannot be used, records are kept in memory.
func openRecords(cacheDir string, log *slog.Logger) *records {
	r := &records{log: log, memory: map[string]*document{}, pending: maxRecords}
	if cacheDir == "" {
		return r
	}
	dir, err := openOwnDir(filepath.Join(cacheDir, recordsDir))
	if err != nil {
		log.Warn("keeping manifests in the cache is not possible; keeping them in memory", "error", err)
		return r
	}
	r.dir = dir
	return r
}

// openOwnDir opens a directory that nobody else can have put files into: the sizes in a record are not verified against
// the image.
func openOwnDir(dir string) (*os.Root, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	fi, err := root.Stat(".")
	if err == nil {
		st := fi.Sys().(*syscall.Stat_t)
		if int(st.Uid) != os.Geteuid() || fi.Mode().Perm()&0o022 != 0 {
			err = fmt.Errorf("%w: %s belongs to uid %d and has mode %04o: only its owner may write there", fs.ErrPermission, dir, st.Uid, fi.Mode().Perm())
		}
	}
	if err != nil {
		return nil, errors.Join(err, root.Close())
	}
	return root, nil
}

func (r *records) close() error {
	if r.dir == nil {
		return nil
	}
	return r.dir.Close()
}

// load returns the document of an image, or nil if there is none that is sound.
func (r *records) load(id string) *document {
	r.mu.Lock()
	d := r.memory[id]
	r.mu.Unlock()
	if d != nil || r.dir == nil {
		return d
	}
	d, err := r.read(id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		r.log.Warn("discarding cache file", "path", recordsDir+"/"+id, "error", err)
		_ = r.dir.Remove(id) // what cannot be removed is replaced, or found damaged again
		return nil
	}
	now := time.Now()
	_ = r.dir.Chtimes(id, now, now) // on a read-only file system nothing is removed either
	return d
}

func (r *records) read(id string) (*document, error) {
	f, err := r.dir.OpenFile(id, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxRecord+1))
	if err != nil {
		return nil, err
	}
	const header = 2*sha256.Size + 1
	if len(b) > maxRecord || len(b) < header || string(b[:header]) != recordSum(id, b[header:])+"\n" {
		return nil, errors.New("it was cut short or edited, or has another's name")
	}
	var rec record
	if err := json.Unmarshal(b[header:], &rec); err != nil {
		return nil, err
	}
	ids, err := diffIDsOf(rec.Config)
	if err != nil {
		return nil, err
	}
	if rec.Manifest != nil {
		return storedDocument(rec.Manifest, rec.Config, ids, rec.Sizes)
	}
	return newDocument(rec.Config, ids, rec.Sizes)
}

func recordSum(id string, b []byte) string {
	h := sha256.New()
	h.Write([]byte(id + "\n"))
	h.Write(b)
	return hex.EncodeToString(h.Sum(nil))
}

// store keeps a document.
func (r *records) store(id string, d *document) {
	if err := r.write(id, d); err != nil {
		r.log.Warn("keeping a manifest in the cache", "image", id, "error", err)
		r.mu.Lock()
		r.memory[id] = d
		r.mu.Unlock()
		return
	}
	r.mu.Lock()
	r.pending++
	count := r.pending >= maxRecords/16
	if count {
		r.pending = 0
	}
	r.mu.Unlock()
	if count {
		r.evict()
	}
}

func (r *records) write(id string, d *document) error {
	if r.dir == nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.memory[id] = d
		return nil
	}
	rec := record{Config: d.config, Sizes: d.sizes}
	if d.stored {
		rec.Manifest = d.manifest
	}
	b, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	if len(b) > maxRecord-2*sha256.Size-1 {
		return fmt.Errorf("%w: a record of %d bytes", imgsrc.ErrUnsupported, len(b))
	}
	part := fmt.Sprintf("part-%016x", rand.Uint64())
	f, err := r.dir.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(slices.Concat([]byte(recordSum(id, b)), []byte("\n"), b))
	if err = errors.Join(err, f.Close()); err == nil {
		err = r.dir.Rename(part, id)
	}
	if err != nil {
		return errors.Join(err, r.dir.Remove(part))
	}
	return nil
}

// evict removes the records that were not used for longest, when there are too many, and what processes that died have
// left.
func (r *records) evict() {
	if r.dir == nil {
		return
	}
	files, err := fs.ReadDir(r.dir.FS(), ".")
	if err != nil {
		r.log.Debug("counting records", "error", err)
		return
	}
	var infos []fs.FileInfo
	for _, f := range files {
		fi, err := f.Info()
		switch {
		case err != nil:
		case strings.HasPrefix(f.Name(), "part-"):
			if time.Since(fi.ModTime()) > partAge {
				_ = r.dir.Remove(f.Name())
			}
		default:
			infos = append(infos, fi)
		}
	}
	slices.SortFunc(infos, func(a, b fs.FileInfo) int {
		return cmp.Or(a.ModTime().Compare(b.ModTime()), cmp.Compare(a.Name(), b.Name()))
	})
	for len(infos) > maxRecords {
		_ = r.dir.Remove(infos[0].Name())
		infos = infos[1:]
	}
}

// temp makes a file that has no name any more, where the cache is or, if that cannot be written, where temporary files
// go.
func (r *records) temp() (*os.File, error) {
	if r.dir != nil {
		name := fmt.Sprintf("part-save-%016x", rand.Uint64())
		f, err := r.dir.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err == nil {
			return unnamed(f, r.dir.Remove(name))
		}
		r.log.Warn("making a file in the cache is not possible; using a temporary file", "error", err)
	}
	return cachefile.Unnamed("imgfs-save-")
}

func unnamed(f *os.File, err error) (*os.File, error) {
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// isConfigOf says whether the engine calls the image by its config's digest, as all did before the containerd image
// store.
func isConfigOf(id string, config []byte) bool {
	return digest.FromBytes(config).Encoded() == id
}
