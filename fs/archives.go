package fs

import (
	"context"
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/export"
	"github.com/imgfs/imgfs/imgsrc/layer"
)

// archiveBytes is how much memory the archives that nobody reads may take: their headers, and where the files of a
// rootfs.tar begin.
const archiveBytes = 8 << 20

type archiveKey struct{ slot, entry uint32 }

// An archive is an image as a file in one state of the catalog. What it has of the image's names is at its end, so that
// somebody who reads it while they change has not read anything that has moved.
type archive struct {
	*export.Archive
	generation uint64
	entry      *imgsrc.Entry
	at         time.Time // when it last said something else
}

// archive returns oci.tar or docker.tar.
func (img *image) archive(ctx context.Context, entry uint32) (*archive, error) {
	e, err := img.current()
	if err != nil {
		return nil, err
	}
	s := img.f.state.Load()
	key := archiveKey{img.slot, entry}
	if a, ok := img.f.archives.get(key); ok && a.generation == s.snap.Generation && a.entry == e {
		return a, nil
	}
	res, err := img.shared(ctx, fmt.Sprintf("archive %d %d %d", img.slot, entry, s.snap.Generation), func(ctx context.Context) (any, error) {
		a := &archive{generation: s.snap.Generation, entry: e}
		switch entry {
		case exportDocker:
			a.Archive, err = img.dockerTar(ctx, e)
		default:
			err = syscall.ENOENT
		}
		if err != nil {
			return nil, err
		}
		a.at = img.changedAt(1<<16|entry, a.Sum(), s)
		img.f.archives.put(key, a, a.Memory())
		return a, nil
	})
	if err != nil {
		return nil, err
	}
	return res.(*archive), nil
}

// exportNames are the names that an archive gives the image.
func exportNames(e *imgsrc.Entry) []string { return slices.Concat(e.Names, e.RemoteNames) }

// dockerTar puts docker.tar together. It reads no layer but for its size, where only reading tells it.
func (img *image) dockerTar(ctx context.Context, e *imgsrc.Entry) (*export.Archive, error) {
	r, err := img.render(ctx)
	if err != nil {
		return nil, err
	}
	if r.facts.LacksDiffIDs() {
		if r, err = img.withDiffIDs(ctx, r); err != nil {
			return nil, err
		}
	}
	d := &export.DockerImage{Names: exportNames(e), Made: r.created}
	if d.Config, err = imgsrc.ConfigDocker(r.facts); err != nil {
		return nil, err
	}
	for n := range r.facts.Layers {
		if _, err := imgsrc.LayerDiffID(r.facts, n); err != nil {
			return nil, err
		}
		size, err := (layerFile{img: img, r: r, n: n, row: diffTarRow}).size(ctx, false)
		if err != nil {
			return nil, err
		}
		d.Layers = append(d.Layers, export.DockerLayer{DiffID: r.facts.Layers[n].DiffID, Size: size, Read: img.diffReader(n)})
	}
	return export.DockerTar(d)
}

// diffTarRow is the row of layerTable that is a layer's tar.
var diffTarRow = &layerTable[slices.IndexFunc(layerTable, func(r layerRow) bool { return r.content == contentDiff })]

// diffReader reads a layer's tar, which stays open from one read to the next.
func (img *image) diffReader(n int) export.Reader {
	return func(ctx context.Context, p []byte, off int64) (int, error) {
		c, err := img.f.contents.get(contentKey{img.slot, n, contentDiff}, func() (imgsrc.Content, error) {
			e, err := img.current()
			if err != nil {
				return nil, err
			}
			return e.Nearest().Diff(ctx, n)
		})
		if err != nil {
			return 0, err
		}
		defer c.release()
		return c.it.ReadAt(ctx, p, off)
	}
}

// A rootfsTar is the layout of an image's rootfs.tar.
type rootfsTar struct {
	*export.RootfsTar
	keys []imgsrc.FilesKey // of the layers that it is of
}

func (img *image) rootfsTar(ctx context.Context) (*rootfsTar, error) {
	key := img.slot
	if t, ok := img.f.rootfsTars.get(key); ok {
		return t, nil
	}
	res, err := img.shared(ctx, fmt.Sprintf("rootfs.tar %d", key), func(ctx context.Context) (any, error) {
		t, err := img.tree(ctx, viewRootfs)
		if err != nil {
			return nil, err
		}
		layout, err := export.LayOutRootfs(ctx, t.Tree, t.mtime)
		if err != nil {
			return nil, fmt.Errorf("laying out export/rootfs.tar of image %s: %w", img.id, err)
		}
		rt := &rootfsTar{layout, t.keys}
		img.f.rootfsTars.put(key, rt, rt.Memory())
		return rt, nil
	})
	if err != nil {
		return nil, err
	}
	return res.(*rootfsTar), nil
}

func (img *image) readRootfsTar(ctx context.Context, dest []byte, off int64) (int, error) {
	rt, err := img.rootfsTar(ctx)
	if err != nil {
		return 0, err
	}
	t, err := img.tree(ctx, viewRootfs)
	if err != nil {
		return 0, err
	}
	if !slices.Equal(rt.keys, t.keys) {
		img.f.renew(img)
		return 0, fmt.Errorf("the layers of image %s are read otherwise now than before: %w", img.id, syscall.EAGAIN)
	}
	return rt.ReadAt(ctx, t.Tree, func(ctx context.Context, p layer.Place, b []byte, off int64) (int, error) {
		return t.read(ctx, p, b, off)
	}, dest, off)
}
