package ops

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"

	"go.podman.io/image/v5/docker/reference"
	istorage "go.podman.io/image/v5/storage"
	"go.podman.io/storage"

	"github.com/imgfs/imgfs/imgsrc"
)

// A storeOpener is storage.GetStore, or something around it; nil is the former.
type storeOpener func(storage.StoreOptions) (storage.Store, error)

// A storeName is a name in containers-storage.
type storeName struct {
	spec    string // "[driver@graphroot+runroot:options]" as it was typed; empty: the user's default store
	options storage.StoreOptions
	named   reference.NamedTagged
}

// parseStore parses [[DRIVER@]GRAPHROOT[+RUNROOT][:OPTIONS]]NAME, the outer brackets being part of the syntax. Nothing is
// opened for it, because opening a store makes what is missing of it.
func parseStore(rest string, resolve pathResolver) (destination, error) {
	d := &storeName{}
	if strings.HasPrefix(rest, "[") {
		spec, name, ok := strings.Cut(rest[1:], "]")
		if !ok {
			return nil, fail(imgsrc.ErrInvalid, "%s: the ] after the store is missing", quote(rest))
		}
		d.spec, rest = "["+spec+"]", name
		if driver, roots, ok := strings.Cut(spec, "@"); ok {
			d.options.GraphDriverName, spec = driver, roots
		}
		roots, options, _ := strings.Cut(spec, ":")
		if options != "" {
			d.options.GraphDriverOptions = strings.Split(options, ",")
		}
		graph, run, _ := strings.Cut(roots, "+")
		for _, root := range []struct {
			typed string
			to    *string
		}{{graph, &d.options.GraphRoot}, {run, &d.options.RunRoot}} {
			if root.typed == "" {
				continue
			}
			if !filepath.IsAbs(root.typed) {
				return nil, fail(imgsrc.ErrInvalid, "%s: the paths of a store must be absolute", quote(d.spec))
			}
			path, err := resolve(root.typed)
			if err != nil {
				return nil, err
			}
			*root.to = path
		}
		if d.options.GraphRoot == "" {
			return nil, fail(imgsrc.ErrInvalid, "%s names no store", quote(d.spec))
		}
	}
	var err error
	d.named, err = parseTagged(rest)
	return d, err
}

func (d *storeName) kind() *kind           { return storeKind }
func (d *storeName) String() string        { return "containers-storage:" + d.spec + d.named.String() }
func (d *storeName) check() error          { return nil }
func (d *storeName) hint(err error) string { return localHint(err) }

// open opens the store for writing. It stays open: the library keeps one of each, and others in this process may use it.
func (d *storeName) open(open storeOpener) (storage.Store, error) {
	options := d.options
	if d.spec == "" {
		var err error
		if options, err = storage.DefaultStoreOptions(); err != nil {
			return nil, err
		}
	}
	// Without this the overlay driver leaves a bind mount of its directory behind. Other drivers pass over it.
	options.GraphDriverOptions = append(slices.Clone(options.GraphDriverOptions), "overlay.skip_mount_home=true")
	if open == nil {
		open = storage.GetStore
	}
	return open(options)
}

func (d *storeName) stage(s staging) (staged, error) {
	if s.openReceiver != nil {
		return d.stageApart(s.openReceiver)
	}
	store, err := d.open(s.openStore)
	if err != nil {
		return staged{}, err
	}
	ref, err := istorage.Transport.NewStoreReference(store, d.named, "")
	return staged{ref: ref}, err
}

// addName gives the image the name if the store has this very image, and reports whether it did. Copying it once more
// would replace the manifest that it has by one that says the same of uncompressed layers, and so change its digest.
func (d *storeName) addName(ctx context.Context, img imgsrc.Desc, opt Options) (bool, error) {
	if opt.OpenReceiver != nil {
		return d.addNameApart(ctx, img, opt.OpenReceiver)
	}
	store, err := d.open(opt.OpenStore)
	if err != nil {
		return false, err
	}
	have, err := store.Image(img.ID)
	if errors.Is(err, storage.ErrImageUnknown) {
		return false, nil
	}
	if err != nil || have.ID != img.ID || have.Digest != img.Digest && !slices.Contains(have.Digests, img.Digest) {
		return false, err
	}
	return true, store.AddNames(have.ID, []string{d.named.String()})
}
