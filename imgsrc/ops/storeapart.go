package ops

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"go.podman.io/image/v5/types"
	"go.podman.io/storage"

	"github.com/imgfs/imgfs/imgsrc"
)

// A receiverOpener opens a store that this process does not write to itself; nil: it does.
type receiverOpener func(context.Context, storage.StoreOptions) (Receiver, error)

func (d *storeName) openApart(ctx context.Context, open receiverOpener) (Receiver, error) {
	if len(d.options.GraphDriverOptions) > 0 {
		return nil, fail(imgsrc.ErrUnsupported, "only root can give options to a store: write them into storage.conf, in place of %s", strings.Join(d.options.GraphDriverOptions, ","))
	}
	src, err := open(ctx, d.options)
	if errors.Is(err, imgsrc.ErrNoSource) {
		err = fail(imgsrc.ErrNotFound, "%s", err)
	}
	return src, err
}

// stageApart has the store receive an image for as long as it is copied.
func (d *storeName) stageApart(open receiverOpener) (staged, error) {
	ctx, cancel := context.WithCancel(context.Background())
	to, err := d.openApart(ctx, open)
	if err != nil {
		cancel()
		return staged{}, err
	}
	refs, copied, received := make(chan types.ImageReference, 1), make(chan error, 1), make(chan error, 1)
	go func() {
		err := to.Receive(ctx, d.named.String(), "", func(ref types.ImageReference) error {
			refs <- ref
			return <-copied
		})
		cancel()
		_ = to.Close() // what it held is of no use any more
		received <- err
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
			ref:     ref,
			commit:  func(context.Context) error { return end(nil) },
			discard: func() { _ = end(context.Canceled) },
		}, nil
	case err := <-received:
		return staged{}, err
	}
}

// addNameApart is addName in such a store.
func (d *storeName) addNameApart(ctx context.Context, img imgsrc.Desc, open receiverOpener) (bool, error) {
	src, err := d.openApart(ctx, open)
	if err != nil {
		return false, err
	}
	defer func() { _ = src.Close() }()
	tagger, ok := src.(imgsrc.Tagger)
	if !ok {
		return false, nil
	}
	list, err := src.List(ctx)
	if err != nil {
		return false, fmt.Errorf("looking for the image in %s: %w", src.Name(), err)
	}
	for _, have := range list.Images {
		if desc := have.Desc(); desc.ID == img.ID && desc.Digest == img.Digest {
			return true, tagger.Tag(ctx, desc, []string{d.named.String()}, nil)
		}
	}
	return false, nil
}
