package fs

import (
	"context"
	"slices"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/export"
	"github.com/imgfs/imgfs/imgsrc/layer"
)

// dockerTar puts docker.tar together. It reads no layer, but for the size of one whose tar has to be made.
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
	gzip, err := img.hasGzip(ctx, e, r)
	if err != nil {
		return nil, err
	}
	for n, l := range r.facts.Layers {
		if _, err := imgsrc.LayerDiffID(r.facts, n); err != nil {
			return nil, err
		}
		one := export.DockerLayer{Digest: l.DiffID, Ending: ".tar"}
		file := layerFile{img: img, r: r, n: n, row: rowOf(contentDiff)}
		if gzip {
			one.Digest, one.Ending = l.Digest, ".tar.gz" // as crane calls it
			file.row = rowOf(contentBlob)
		}
		if one.Size, err = file.size(ctx, false); err != nil {
			return nil, err
		}
		one.Read = file.content().reader()
		d.Layers = append(d.Layers, one)
	}
	return export.DockerTar(d)
}

// hasGzip says whether docker.tar has the layers as the source has them: then its size is known, and it begins at once. That
// is so if all of them are compressed with gzip. Docker 20.10 does not load zstd, nor does crane, and containerd neither
// bzip2 nor xz; and some readers look only at the first layer to tell whether they are compressed.
//
// What can be looked at tells the compression; what is in a registry has to be taken at its media type's word, also when it
// has been fetched, and be it another one that the layers are read from: the archive is the same then.
func (img *image) hasGzip(ctx context.Context, e *imgsrc.Entry, r *rendered) (bool, error) {
	near, from := img.nearest(e), img.blobsOf(e)
	if _, far := near.Image.(imgsrc.Remote); !far && near.Desc().Digest != from.Desc().Digest {
		return false, nil // another form of it is at hand, and this one is not
	}
	for n, l := range r.facts.Layers {
		if l.Digest == l.DiffID {
			return false, nil
		}
		p, err := img.probe(ctx, r, n, contentBlob)
		if err != nil || !p.ok {
			return false, err
		}
		kind := layer.CompressionOf(l.MediaType)
		if near, ok := from.Image.(imgsrc.Peeker); ok {
			head := make([]byte, layer.HeadLen)
			k, err := near.Peek(ctx, n, head)
			if err != nil {
				return false, err
			}
			kind = layer.Detect(head[:k])
		}
		if kind != layer.Gzip {
			return false, nil
		}
	}
	return true, nil
}

// rowOf is the row of layerTable that is a layer's bytes.
func rowOf(kind contentKind) *layerRow {
	return &layerTable[slices.IndexFunc(layerTable, func(r layerRow) bool { return r.content == kind })]
}

// reader reads a layer's bytes.
func (b layerBytes) reader() export.Reader {
	return func(ctx context.Context, p []byte, off int64) (int, error) {
		c, err := b.get(ctx)
		if err != nil {
			return 0, err
		}
		defer c.release()
		return c.it.ReadAt(ctx, p, off)
	}
}
