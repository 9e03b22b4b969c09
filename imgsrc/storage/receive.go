package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/manifest"
	istorage "go.podman.io/image/v5/storage"
	"go.podman.io/image/v5/types"
	cs "go.podman.io/storage"
	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
)

// openMu guards the library's list of the stores that this process has open, whose Free takes no lock itself.
var openMu sync.Mutex

// openReal opens the store for writing. The library keeps what it opens for the process, and would give it to all who write
// at the same time: what could not be written for one of them, on a full disk, would stay in its memory and be written for
// another. So it is dropped at once, and each has his own, as two processes have. Nothing is unmounted: shutting the store
// down would unmount what another process has mounted.
func (s *Source) openReal() (cs.Store, error) {
	openMu.Lock()
	defer openMu.Unlock()
	store, err := cs.GetStore(s.writable())
	if err != nil {
		return nil, writeError(err)
	}
	store.Free()
	return store, nil
}

// MayReceive says why the store takes no images; nil if it does, as far as can be told without opening it.
func (s *Source) MayReceive() error {
	err := unix.Access(s.imagesDir(0), unix.W_OK)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return writeError(err)
	}
	if s.opener != nil { // where the one can be had the other can
		return s.opener.check()
	}
	return nil
}

// Receive has copy copy one image into the store, to the reference that it is given: as name, a full reference as
// CheckName returns them or one with a digest; without a name as id, which is then the config's hash. Nothing else may be
// copied to that reference.
//
// The library puts each layer into the store as it comes, under the store's lock as podman pull does, and lists the image
// last of all. Nobody else ever sees a part of it. If copy fails the layers that it has made are kept for the next try,
// and for other processes that may count on them: see strays. A layer that is being unpacked stops when ctx ends.
//
// Errors: those of copy; [imgsrc.ErrUnsupported], [imgsrc.ErrReadOnly]; ENOSPC also where only a text of the library's
// says so.
func (s *Source) Receive(ctx context.Context, name, id string, copy func(to types.ImageReference) error) error {
	return s.ReceiveAs(ctx, name, id, nil, copy)
}

// ReceiveAs is Receive of an image whose manifest, in the store, is to be another than the one that is copied: one of the
// same config, whose layers are the same but for their compression, which a store does not keep. nil: the one that is
// copied.
func (s *Source) ReceiveAs(ctx context.Context, name, id string, text []byte, copy func(to types.ImageReference) error) (err error) {
	if err := s.MayReceive(); err != nil {
		return err
	}
	if err := s.strays.begin(ctx); err != nil {
		return err
	}
	receive := s.receive
	if s.writer != nil {
		receive = s.writer.receive
	}
	return s.unlocked(ctx, func(ctx context.Context) (err error) {
		var made []string
		defer func() { s.strays.end(made, err) }() // also of a copy that panics
		made, err = receive(ctx, name, id, text, copy)
		if err != nil && !errors.Is(err, syscall.ENOSPC) && strings.Contains(err.Error(), syscall.ENOSPC.Error()) {
			err = fmt.Errorf("%w: %w", err, syscall.ENOSPC) // said by the process that unpacks
		}
		return err
	})
}

// receive returns the layers that it made also if it fails, a parent before its children.
func (s *Source) receive(ctx context.Context, name, id string, text []byte, copy func(to types.ImageReference) error) (made []string, err error) {
	var named reference.Named
	if name != "" {
		if named, err = reference.ParseNamed(name); err != nil {
			return nil, invalid(name, err)
		}
		id = ""
	}
	probeFirst(s.writable(), s.log)
	real, err := s.openReal()
	if err != nil {
		return nil, err
	}
	if ctx.Err() != nil { // it has waited for who had it locked
		return nil, context.Cause(ctx)
	}
	temp, clean, err := tempDir()
	if err != nil {
		return nil, err
	}
	defer clean()
	store := &receiving{Store: real, source: s, ctx: ctx, manifest: text}
	ref, err := istorage.Transport.NewStoreReference(store, named, id)
	if err != nil {
		return nil, invalid(name, err)
	}
	err = copy(&destination{ref, temp, store})
	return store.layers, foreignIDs(err, nil) // nobody makes any more
}

// AddIndex stores an index as podman stores a list of images: as an image of its own, without layers, that has the
// name. Images are the ids of those of its images that the store has, by the digests of their manifests; the others
// stay with the registry that the index is from, which from names ("docker://quay.io/a/b"; empty: nobody knows).
func (s *Source) AddIndex(ctx context.Context, name string, text []byte, images map[digest.Digest]string, from string) (id string, err error) {
	if err := s.MayReceive(); err != nil {
		return "", err
	}
	made := "" // not id, which whoever is left behind must not touch
	err = s.unlocked(ctx, func(ctx context.Context) error {
		if s.writer != nil {
			return s.writer.call(ctx, methodAddIndex, addIndexArgs{name, text, images, from}, &made)
		}
		store, err := s.openReal()
		if err != nil {
			return err
		}
		if err := s.roomToAdd([]cs.ImageBigDataOption{{Data: text}}); err != nil {
			return err
		}
		awaitLocks(store)
		if err := mayCreate(ctx); err != nil {
			return err
		}
		made, err = addIndex(store, name, text, images, from)
		return err
	})
	if err != nil {
		return "", err
	}
	return made, nil
}

// A receiving store is the real one for one image that is received: it keeps the ids of the layers that were made for
// it, and stops unpacking when ctx ends.
type receiving struct {
	cs.Store
	source   *Source
	ctx      context.Context
	manifest []byte // instead of the image's own; nil: that one

	mu     sync.Mutex
	layers []string // a parent before its children; guarded by mu
	image  string   // its id, when it was made or was there already; guarded by mu
}

func (r *receiving) PutLayer(id, parent string, names []string, mountLabel string, writeable bool, options *cs.LayerOptions, diff io.Reader) (*cs.Layer, int64, error) {
	if diff != nil {
		diff = &ctxReader{r.ctx, diff}
	}
	awaitLocks(r.Store)
	if r.ctx.Err() != nil {
		return nil, -1, context.Cause(r.ctx)
	}
	layer, size, err := r.Store.PutLayer(id, parent, names, mountLabel, writeable, options, diff)
	if err == nil {
		r.made(layer)
	} else if r.ctx.Err() != nil && !errors.Is(err, cs.ErrDuplicateID) {
		err = context.Cause(r.ctx)
	}
	return layer, size, err
}

func (r *receiving) ApplyStagedLayer(args cs.ApplyStagedLayerOptions) (*cs.Layer, error) {
	if r.ctx.Err() != nil {
		return nil, context.Cause(r.ctx)
	}
	layer, err := r.Store.ApplyStagedLayer(args)
	if err == nil {
		r.made(layer)
	}
	return layer, err
}

// CreateImage is the last step but the name.
func (r *receiving) CreateImage(id string, names []string, layer, metadata string, options *cs.ImageOptions) (*cs.Image, error) {
	if r.ctx.Err() != nil {
		return nil, context.Cause(r.ctx)
	}
	if r.manifest != nil && options != nil {
		own, err := withManifest(options, r.manifest)
		if err != nil {
			return nil, err
		}
		options = own
	}
	if options != nil {
		if err := r.source.roomToAdd(options.BigData); err != nil {
			return nil, err
		}
	}
	awaitLocks(r.Store)
	if err := mayCreate(r.ctx); err != nil {
		return nil, err
	}
	img, err := r.Store.CreateImage(id, names, layer, metadata, options)
	if err == nil {
		id = img.ID
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.image = id
	return img, err
}

// SetImageBigData is how the image gets its data where it is there already, by another of its manifests.
func (r *receiving) SetImageBigData(id, key string, data []byte, digestManifest func([]byte) (digest.Digest, error)) error {
	if r.manifest != nil && (key == manifestKeyName || strings.HasPrefix(key, manifestPrefix)) {
		d, err := manifest.Digest(r.manifest)
		if err != nil {
			return fmt.Errorf("reading the original manifest: %w: %w", err, imgsrc.ErrDamaged)
		}
		if data = r.manifest; key != manifestKeyName {
			key = manifestPrefix + d.String()
		}
	}
	return r.Store.SetImageBigData(id, key, data, digestManifest)
}

// withManifest returns the options of an image that has another manifest. What else there is of it stays.
func withManifest(options *cs.ImageOptions, text []byte) (*cs.ImageOptions, error) {
	d, err := manifest.Digest(text)
	if err != nil {
		return nil, fmt.Errorf("reading the original manifest: %w: %w", err, imgsrc.ErrDamaged)
	}
	own := *options
	own.BigData = slices.DeleteFunc(slices.Clone(own.BigData), func(b cs.ImageBigDataOption) bool {
		return b.Key == manifestKeyName || strings.HasPrefix(b.Key, manifestPrefix)
	})
	for _, key := range []string{manifestKeyName, manifestPrefix + d.String()} {
		own.BigData = append(own.BigData, cs.ImageBigDataOption{Key: key, Data: text, Digest: d})
	}
	return &own, nil
}

func (r *receiving) made(layer *cs.Layer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.layers = append(r.layers, layer.ID)
}

// A ctxReader fails when its context ends.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *ctxReader) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}

// A destination is a reference in the store whose blobs wait in a directory of ours.
type destination struct {
	types.ImageReference
	temp  string
	store *receiving
}

// Received returns the id of the image that was made; empty if there is none.
func (d *destination) Received() string {
	d.store.mu.Lock()
	defer d.store.mu.Unlock()
	return d.store.image
}

func (d *destination) NewImageDestination(ctx context.Context, sys *types.SystemContext) (types.ImageDestination, error) {
	own := types.SystemContext{}
	if sys != nil {
		own = *sys
	}
	own.BigFilesTemporaryDir = d.temp
	return d.ImageReference.NewImageDestination(ctx, &own)
}
