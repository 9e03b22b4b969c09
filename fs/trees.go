package fs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"syscall"
	"time"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/layer"
)

const (
	// treeBytes is how much memory the trees that nobody is reading may take, in bytes.
	treeBytes = 32 << 20
	// listBytes likewise, for lists of changes.
	listBytes = 4 << 20
)

// A treeKey names a tree: an image's rootfs/ or one of its diff/.
type treeKey struct {
	slot uint32
	view uint16
}

// A tree is a tree of files out of layers. It is immutable, but for what it remembers of its readers.
type tree struct {
	*layer.Tree
	img   *image
	view  uint16
	base  int               // the image's layer that is the tree's first
	keys  []imgsrc.FilesKey // of the tree's layers: how their bodies are found
	ino   ino               // of the root
	mtime time.Time
	ahead treeAhead
}

// hasRootfs says whether the files of all the image's layers can be had, be they damaged.
func (img *image) hasRootfs(ctx context.Context, r *rendered) (bool, error) {
	if r.facts.Kind != imgsrc.KindImage || len(r.facts.Layers) > maxDiffs {
		return false, nil
	}
	if err := r.noManifest(); err != nil {
		return false, err
	}
	for n := range r.facts.Layers {
		if p, err := img.probe(ctx, r, n, contentFiles); err != nil || !p.ok {
			return false, err
		}
	}
	return true, nil
}

// tree returns one of the image's trees. It is made once for all who ask at the same time, and the making goes on if the
// one who asked leaves.
func (img *image) tree(ctx context.Context, view uint16) (*tree, error) {
	key := treeKey{img.slot, view}
	if t, ok := img.f.trees.get(key); ok {
		return t, nil
	}
	res, err := img.shared(ctx, fmt.Sprintf("tree %d %d", img.slot, view), func(ctx context.Context) (any, error) {
		t, err := img.makeTree(ctx, view)
		if err != nil {
			return nil, err
		}
		img.f.trees.put(key, t, t.Memory())
		return t, nil
	})
	if err != nil {
		return nil, err
	}
	return res.(*tree), nil
}

// shared does work once for all who ask at the same time, in the mount's context.
func (img *image) shared(ctx context.Context, key string, work func(context.Context) (any, error)) (any, error) {
	return img.f.shared(ctx, key, work)
}

func (f *FS) shared(ctx context.Context, key string, work func(context.Context) (any, error)) (any, error) {
	done := f.flights.DoChan(key, func() (res any, err error) {
		defer func() { // a panic here would end the mount
			if r := recover(); r != nil {
				res, err = nil, fmt.Errorf("panic: %v", r)
			}
		}()
		return work(f.ctx)
	})
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case res := <-done:
		return res.Val, res.Err
	}
}

func (img *image) makeTree(ctx context.Context, view uint16) (*tree, error) {
	r, err := img.render(ctx)
	if err != nil {
		return nil, err
	}
	count := len(r.facts.Layers)
	t := &tree{img: img, view: view, mtime: since1970(r.created)}
	if view == viewRootfs {
		t.ino = img.ino.nth(uint64(rowByView[viewRootfs].id))
		indexes, keys, err := img.indexes(ctx, 0, count)
		if err != nil {
			return nil, r.byFacts(err)
		}
		t.keys = keys
		if t.Tree, err = layer.Merge(ctx, indexes); err != nil {
			return nil, fmt.Errorf("merging the layers of image %s: %w", img.id, err)
		}
	} else {
		n := int(view) - firstDiff
		if n >= count {
			return nil, syscall.ENOENT
		}
		t.ino = img.ino.nth(uint64(rowByView[viewLayers].id)).nth(uint64(n)).nth(uint64(diffRow.id))
		indexes, keys, err := img.indexes(ctx, n, n+1)
		if err != nil {
			return nil, r.byFacts(err)
		}
		var below []*layer.Index
		t.keys = keys
		if indexes[0].LinksOut() {
			if below, keys, err = img.indexes(ctx, 0, n); err != nil {
				return nil, err
			}
			t.keys = append(keys, t.keys...)
		}
		t.Tree = layer.NewTree(below, indexes[0])
		t.base = n + 1 - t.Layers()
	}
	t.ahead.init(t.Len())
	return t, nil
}

// diffRow is the row of layerTable that is a tree.
var diffRow = &layerTable[slices.IndexFunc(layerTable, func(r layerRow) bool { return r.diff })]

// indexes returns what the image's layers from first to end hold. A source may find only while it reads a layer that it must
// do so in another way: then it is asked again.
func (img *image) indexes(ctx context.Context, first, end int) (all []*layer.Index, keys []imgsrc.FilesKey, err error) {
	for range end - first + 1 {
		if all, keys, err = img.tryIndexes(ctx, first, end); !errors.Is(err, syscall.EAGAIN) {
			break
		}
	}
	return all, keys, err
}

func (img *image) tryIndexes(ctx context.Context, first, end int) ([]*layer.Index, []imgsrc.FilesKey, error) {
	r, err := img.render(ctx)
	if err != nil {
		return nil, nil, err
	}
	var layers []layer.Layer
	var keys []imgsrc.FilesKey
	for n := first; n < end; n++ {
		files, err := img.openFiles(ctx, n)
		if err != nil {
			return nil, nil, err
		}
		key := files.Key()
		if err := files.Close(); err != nil {
			return nil, nil, err
		}
		keys = append(keys, key)
		layers = append(layers, layer.Layer{Key: key, From: r.facts.Layers[n].Digest, Open: func(ctx context.Context) (imgsrc.Files, error) { return img.openFiles(ctx, n) }})
	}
	all, err := img.f.layers.Indexes(ctx, layers)
	return all, keys, err
}

// since1970 is the time of what no layer says, in a tree where times before 1970 are shown.
func since1970(t time.Time) time.Time {
	if epoch := time.Unix(0, 0); t.Before(epoch) {
		return epoch
	}
	return t
}

// inoOf is the inode number of a node: a hash of its path.
func (t *tree) inoOf(n uint32) ino {
	if n == 0 {
		return t.ino
	}
	return t.inoOf(t.Parent(n)).under(t.Name(n))
}

func (t *tree) node(n uint32) node { return makeNode(t.img.slot, t.view, n) }

// attr describes a node whose number is that of its inode.
func (t *tree) attr(n uint32, i ino) (attr, error) {
	a, err := t.Attr(n)
	if err != nil {
		return attr{}, err
	}
	out := attr{
		ino: i, mode: a.Mode, nlink: a.Nlink, size: a.Size, mtime: time.Unix(a.Sec, int64(a.Nsec)),
		layered: true, uid: a.UID, gid: a.GID, rdev: a.Rdev, stored: a.Stored,
	}
	if out.mode&syscall.S_IFMT == syscall.S_IFLNK {
		out.mode = syscall.S_IFLNK | 0o777 // no file system of Linux has others, whatever the tar says
	}
	if a.Implicit {
		out.mtime = t.mtime
	}
	return out, nil
}

// read reads a file at off into dest; fewer bytes than that only at the end.
func (t *tree) read(ctx context.Context, p layer.Place, dest []byte, off int64) (int, error) {
	if off < 0 || off >= p.Size {
		return 0, nil
	}
	dest = dest[:min(int64(len(dest)), p.Size-off)]
	n := t.base + p.Layer
	files, err := t.img.f.files.get(contentKey{slot: t.img.slot, layer: n, kind: contentFiles}, func() (imgsrc.Files, error) { return t.img.openFiles(ctx, n) })
	if err != nil {
		return 0, err
	}
	defer files.release()
	if key := files.it.Key(); key != t.keys[p.Layer] {
		t.img.f.renew(t.img) // what the kernel knows of the tree is another's
		return 0, fmt.Errorf("layer %d of image %s is %s now and was %s: %w", n, t.img.id, key.Form, t.keys[p.Layer].Form, syscall.EAGAIN)
	}
	if p.Extents == nil {
		return readFull(ctx, files.it, p.Body, dest, off)
	}
	clear(dest)
	at := int64(0) // where the extent's bytes are in the body
	for _, x := range p.Extents {
		if x.Off >= off+int64(len(dest)) {
			break
		}
		from, to := max(off, x.Off), min(off+int64(len(dest)), x.Off+x.Len)
		if from < to {
			if _, err := readFull(ctx, files.it, p.Body, dest[from-off:to-off], at+from-x.Off); err != nil {
				return 0, err
			}
		}
		at += x.Len
	}
	return len(dest), nil
}

func readFull(ctx context.Context, files imgsrc.Files, b imgsrc.Body, p []byte, off int64) (int, error) {
	n, err := files.ReadBody(ctx, b, p, off)
	if n == len(p) || err == nil {
		return n, nil
	}
	if errors.Is(err, io.EOF) {
		err = fmt.Errorf("%w: the body ends after %d bytes", imgsrc.ErrDamaged, off+int64(n))
	}
	return n, err
}

// closeLayers lets go of the layers of an image that is gone, and of all that was computed from it.
func (f *FS) closeLayers(slot uint32) {
	f.rendered.forget(slot)
	f.sketches.forget(slot)
	f.derived.forget(func(k derivedKey) bool { return k.slot == slot })
	f.contents.forget(slot)
	f.files.forget(slot)
	ours := func(k treeKey) bool { return k.slot == slot }
	f.trees.forget(ours)
	f.lists.forget(ours)
	f.batches.forget(ours)
	f.archives.forget(func(k archiveKey) bool { return k.slot == slot })
	f.rootfsTars.forget(func(k uint32) bool { return k == slot })
}
