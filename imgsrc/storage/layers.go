package storage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"syscall"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/flight"
)

// indexBudget is how many bytes the indexes of the layers that were read last may occupy.
const indexBudget = 12 << 20

// A layer is what layers.json says of one.
type layer struct {
	ID     string        `json:"id"`
	Parent string        `json:"parent"`
	DiffID digest.Digest `json:"diff-digest"`
	Size   int64         `json:"diff-size"` // bytes of the uncompressed tar; 0 or less if not known

	store int // where it was found
}

func (l *layer) key() layerKey { return layerKey{l.store, l.ID, l.DiffID} }

// A layerKey stands for the bytes of one layer's tar.
type layerKey struct {
	store  int
	id     string
	diffID digest.Digest
}

// layerTable is the layers of all stores at one moment.
type layerTable struct {
	stamp string
	byID  map[string]*layer
}

// layerTable returns the layers as they are now.
func (s *Source) layerTable() (*layerTable, error) {
	s.layersMu.Lock()
	defer s.layersMu.Unlock()
	var stamp []byte
	for i := range s.stores {
		stamp = appendStamp(stamp, filepath.Join(s.layersDir(i), "layers.json"))
	}
	if s.layers != nil && s.layers.stamp == string(stamp) {
		return s.layers, nil
	}
	t := &layerTable{stamp: string(stamp), byID: map[string]*layer{}}
	for i := range s.stores {
		file := filepath.Join(s.layersDir(i), "layers.json")
		data, err := readList(file)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if len(data) == 0 {
			continue
		}
		var layers []*layer
		if err := json.Unmarshal(data, &layers); err != nil {
			return nil, fmt.Errorf("reading %s: %w: %w", file, err, imgsrc.ErrDamaged)
		}
		for _, l := range layers {
			if l != nil && t.byID[l.ID] == nil && isName(l.ID) {
				l.store = i
				t.byID[l.ID] = l
			}
		}
	}
	s.layers = t
	return t, nil
}

// isName says whether an id can stand for a file.
func isName(id string) bool {
	return id != "" && id != "." && filepath.IsLocal(id) && filepath.Base(id) == id
}

// chain returns the layers below and including top, base first. With the error that one is missing it returns those above that.
func (s *Source) chain(top string) ([]*layer, error) {
	t, err := s.layerTable()
	if err != nil {
		return nil, err
	}
	var chain []*layer
	for id := top; id != ""; {
		l := t.byID[id]
		if l == nil {
			slices.Reverse(chain)
			return chain, fmt.Errorf("layer %s is not in the store: %w", id, imgsrc.ErrDamaged)
		}
		if len(chain) == len(t.byID) {
			return nil, fmt.Errorf("layer %s is its own parent: %w", id, imgsrc.ErrDamaged)
		}
		chain = append(chain, l)
		id = l.Parent
	}
	slices.Reverse(chain)
	return chain, nil
}

// A layerIndex is an index with the place where the layer's files are.
type layerIndex struct {
	*index
	dir string // of the files

	seed     maphash.Seed
	verified []atomic.Uint64 // for each body, the fingerprint in which it was found right; 0 if not yet
}

// locate finds a layer's tar-split file and the directory with its files. Errors: [imgsrc.ErrAbsent] if its tar cannot
// be put together, with the directory if its files can be found there; [imgsrc.ErrNotFound] if the layer is gone:
// what that means for an image, image.lacks says.
func (s *Source) locate(l *layer) (tarSplit, dir string, err error) {
	// A store with a separate image store spreads a layer over both.
	for _, i := range append([]int{l.store}, indices(len(s.stores), l.store)...) {
		if file := filepath.Join(s.layersDir(i), l.ID+".tar-split.gz"); tarSplit == "" && exists(file) {
			tarSplit = file
		}
		if d := s.diffDir(i, l.ID); dir == "" && exists(d) {
			dir = d
		}
	}
	switch {
	case dir == "":
		return "", "", fmt.Errorf("layer %s is gone: %w", l.ID, imgsrc.ErrNotFound)
	case s.driver == "overlay" && exists(filepath.Join(filepath.Dir(dir), "composefs-data")):
		return "", "", fmt.Errorf("layer %s is a composefs layer: its files are not under their names: %w", l.ID, imgsrc.ErrAbsent)
	case l.DiffID == "":
		return "", dir, fmt.Errorf("layer %s was pulled in part, and the store does not know its tar's digest: %w", l.ID, imgsrc.ErrAbsent)
	case tarSplit == "":
		return "", dir, fmt.Errorf("layer %s has no tar-split file, so that its tar cannot be made again: %w", l.ID, imgsrc.ErrAbsent)
	}
	return tarSplit, dir, nil
}

// indices counts to n, leaving one out.
func indices(n, without int) []int {
	var all []int
	for i := range n {
		if i != without {
			all = append(all, i)
		}
	}
	return all
}

// exists also holds for what may not be looked at: opening it then says so.
func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil || !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR)
}

// index returns the index of a layer, building it if it is not there.
func (s *Source) index(ctx context.Context, l *layer) (*layerIndex, error) {
	key := l.key()
	s.indexMu.Lock()
	x, ok := s.indexes.get(key)
	s.indexMu.Unlock()
	if ok {
		return x, nil
	}
	return flight.Do(ctx, s.work, key, func(ctx context.Context) (*layerIndex, error) {
		x, err := s.buildIndex(ctx, l)
		if err != nil {
			return nil, err
		}
		s.indexMu.Lock()
		s.indexes.put(key, x, x.memory()+8*int64(x.bodies))
		s.indexMu.Unlock()
		return x, nil
	})
}

func (s *Source) buildIndex(ctx context.Context, l *layer) (*layerIndex, error) {
	tarSplit, dir, err := s.locate(l)
	if err != nil {
		return nil, err
	}
	f, err := openRegular(tarSplit)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	x, err := readTarSplit(ctx, f, l.Size)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", tarSplit, err)
	}
	return &layerIndex{index: x, dir: dir, seed: maphash.MakeSeed(), verified: make([]atomic.Uint64, x.bodies)}, nil
}

// readList returns a list of the store.
func readList(file string) ([]byte, error) {
	f, err := openRegular(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(f)
}

// openRegular opens a file of the store, and does not wait for a pipe that is in its place.
func openRegular(file string) (*os.File, error) {
	f, err := os.OpenFile(file, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if _, err := identityOf(f); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
