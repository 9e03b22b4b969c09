package ops

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"

	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/types"
	"go.podman.io/storage"

	"github.com/imgfs/imgfs/imgsrc"
)

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

// A receiverOpener opens a store as a source that takes images, and says how to let go of it.
type receiverOpener func(context.Context, storage.StoreOptions) (to Receiver, done func(), err error)

// openStore opens a store to push to. If it is a source of this mount it is that one, which keeps what it has of an image that
// then did not come for the next try.
func (o *Ops) openStore(ctx context.Context, options storage.StoreOptions) (to Receiver, done func(), err error) {
	for _, src := range o.opt.Catalog.Sources() {
		if own, ok := src.(interface {
			Receiver
			IsStore(storage.StoreOptions) bool
		}); ok && own.IsStore(options) {
			return own, func() {}, nil
		}
	}
	if o.opt.OpenReceiver == nil {
		return nil, nil, fail(imgsrc.ErrUnsupported, "this mount opens no stores")
	}
	to, err = o.opt.OpenReceiver(ctx, options)
	if errors.Is(err, imgsrc.ErrNoSource) {
		err = fail(imgsrc.ErrNotFound, "%s", err)
	}
	if err != nil {
		return nil, nil, err
	}
	return to, func() { _ = to.Close() }, nil // what it held is of no use any more
}

// stage has the store receive an image for as long as it is copied.
func (d *storeName) stage(ctx context.Context, s staging) (staged, error) {
	to, done, err := s.openStore(ctx, d.options)
	if err != nil {
		return staged{}, err
	}
	refs, copied, received := make(chan types.ImageReference, 1), make(chan error, 1), make(chan error, 1)
	left := make(chan error, 1)
	go func() {
		err := s.guard(ctx, func(ctx context.Context) error { // which whoever has started the push cannot catch
			defer done()
			return to.Receive(ctx, d.named.String(), "", func(ref types.ImageReference) error {
				refs <- ref
				return <-copied
			})
		})
		received <- err
		left <- err
	}()
	select {
	case ref := <-refs:
		var once sync.Once
		end := func(result error) (err error) {
			once.Do(func() {
				copied <- result
				err = <-received
			})
			return err
		}
		return staged{
			ref:    ref,
			left:   left,
			commit: func(context.Context) error { return end(nil) },
			discard: func(why error) {
				if why == nil { // and it was not committed
					why = context.Canceled
				}
				_ = end(why) // on a full disk the store keeps nothing
			},
		}, nil
	case err := <-received:
		return staged{}, err
	}
}

// addName gives the image the name if the store has this very image, whole, and reports whether it did. Copying it once more
// would replace the manifest that it has by one that says the same of uncompressed layers, and so change its digest.
func (d *storeName) addName(ctx context.Context, img imgsrc.Desc, open receiverOpener) (bool, error) {
	src, done, err := open(ctx, d.options)
	if err != nil {
		return false, err
	}
	defer done()
	tagger, ok := src.(imgsrc.Tagger)
	if !ok {
		return false, nil
	}
	list, err := src.List(ctx)
	if err != nil {
		return false, fmt.Errorf("looking for the image in %s: %w", src.Name(), err)
	}
	for _, have := range list.Images {
		if desc := have.Desc(); desc.ID == img.ID && desc.Digest == img.Digest && isWhole(ctx, have.Image) {
			return true, tagger.Tag(ctx, desc, []string{d.named.String()}, nil)
		}
	}
	return false, nil
}

// isWhole says whether a source has all of an image, as far as that can be told without reading layers. What is not whole is
// made so by copying it once more.
func isWhole(ctx context.Context, img imgsrc.Image) bool {
	if img.Desc().Damaged != nil {
		return false
	}
	recorded, ok := img.(imgsrc.DiffIDer)
	if !ok {
		return true
	}
	_, err := recorded.DiffIDs(ctx)
	return err == nil || errors.Is(err, imgsrc.ErrAbsent)
}
