package fs

import (
	"context"
	"sort"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// mapView is annotations/ or labels/: a file for each key, holding the value as it is.
type mapView struct {
	f  *FS
	of func(*rendered) (keys []keyed, row *row)
}

func annotationsOf(r *rendered) ([]keyed, *row) { return r.annotations, rowByView[viewAnnotations] }

func labelsOf(r *rendered) ([]keyed, *row) { return r.labels, rowByView[viewLabels] }

func (v mapView) keys(ctx context.Context, n node) (*image, *rendered, []keyed, *row, error) {
	img := v.f.image(n.image())
	r, err := img.renderFor(ctx, rowByView[n.view()])
	if err != nil {
		return nil, nil, nil, nil, err
	}
	keys, row := v.of(r)
	if int(n.entry()) > len(keys) {
		return nil, nil, nil, nil, orNoEntry(ignoreAbsent(r.noKeys[n.view()]))
	}
	return img, r, keys, row, nil
}

func (v mapView) attr(ctx context.Context, n node, cheap bool) (attr, error) {
	img, r, keys, row, err := v.keys(ctx, n)
	if err != nil {
		return attr{}, err
	}
	dir := img.ino.nth(uint64(row.id))
	if n.entry() == 0 {
		return dirAttr(dir, img.mended(r.created), r.damaged), nil
	}
	k := keys[n.entry()-1]
	a := fileAttr(dir.under(k.name), int64(len(k.value)), r.created)
	a.live = r.damaged
	return a, nil
}

func (v mapView) lookup(ctx context.Context, dir node, name string) (found, error) {
	_, r, keys, _, err := v.keys(ctx, dir)
	if err != nil {
		return found{}, err
	}
	i := sort.Search(len(keys), func(i int) bool { return keys[i].name >= name })
	if i == len(keys) || keys[i].name != name {
		return found{}, orNoEntry(ignoreAbsent(r.noKeys[dir.view()]))
	}
	return found{node: makeNode(dir.image(), dir.view(), uint32(i)+1)}, nil
}

func (v mapView) list(ctx context.Context, dir node, from uint64, emit func(dirent) bool) error {
	img, _, keys, row, err := v.keys(ctx, dir)
	if err != nil {
		return err
	}
	di := img.ino.nth(uint64(row.id))
	for i := int(min(from, uint64(len(keys)))); i < len(keys); i++ {
		n := makeNode(dir.image(), dir.view(), uint32(i)+1)
		if !emit(dirent{name: keys[i].name, node: n, ino: di.under(keys[i].name), mode: syscall.S_IFREG, cookie: uint64(i) + 1}) {
			return nil
		}
	}
	return nil
}

func (v mapView) read(ctx context.Context, n node, dest []byte, off int64) (fuse.ReadResult, error) {
	_, _, keys, _, err := v.keys(ctx, n)
	if err != nil {
		return nil, err
	}
	if n.entry() == 0 {
		return nil, syscall.EISDIR
	}
	return readBytes(keys[n.entry()-1].value, dest, off), nil
}

func (v mapView) readlink(context.Context, node) ([]byte, error) { return nil, syscall.EINVAL }
