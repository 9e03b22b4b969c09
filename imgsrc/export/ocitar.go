package export

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// OCITar returns an image layout in a tar (oci-archive), with the one image in it: what it refers to, each blob once, and
// then index.json. That has a name, which may change, so it comes last, as in DockerTar. It is the first of the names that
// is a reference with a registry and a tag, or the first of all: readers that are not told which image they are to take
// refuse a layout that lists one twice. Made is the time of the archive's members.
func OCITar(o *OCI, names []string, made time.Time) (*Archive, error) {
	a := &Archive{}
	sec := headerTime(made)
	a.file(v1.ImageLayoutFile, sec, []byte(LayoutFile))
	a.dir("blobs/", sec)
	dirs := map[digest.Algorithm]bool{}
	for b := range o.All() {
		d := b.Desc.Digest
		if b.Open == nil {
			continue // it need not be there
		}
		if !dirs[d.Algorithm()] {
			dirs[d.Algorithm()] = true
			a.dir("blobs/"+d.Algorithm().String()+"/", sec)
		}
		a.body("blobs/"+d.Algorithm().String()+"/"+d.Encoded(), sec, b.Desc.Size, b.read)
		if b.From.Kind == Manifest || b.From.Kind == Original {
			a.memory += b.Desc.Size
		}
	}
	if full := tagged(names); len(full) > 0 {
		names = full
	}
	index, err := IndexJSON([]Entry{{Desc: o.Desc, Names: names[:min(1, len(names))]}})
	if err != nil {
		return nil, fmt.Errorf("making index.json: %w", err)
	}
	a.file(v1.ImageIndexFile, sec, index)
	if err := a.finish(); err != nil {
		return nil, err
	}
	return a, nil
}

// read is a Reader of the blob. Opening it anew each time is the business of who gave it its Open.
func (b Blob) read(ctx context.Context, p []byte, off int64) (n int, err error) {
	c, err := b.Open(ctx)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	return c.ReadAt(ctx, p, off)
}
