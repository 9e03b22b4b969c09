package export_test

import (
	"context"
	"io"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/export"
	"github.com/imgfs/imgfs/test/images"
)

// hostile is an image of any bytes. Which of its layers are there, and in which form, is a matter of their digests.
type hostile struct {
	desc             imgsrc.Desc
	manifest, config []byte
	blobs, diffs     byte
}

func (h hostile) Desc() imgsrc.Desc                                { return h.desc }
func (h hostile) Manifest(context.Context) ([]byte, error)         { return h.manifest, nil }
func (h hostile) Files(context.Context, int) (imgsrc.Files, error) { return nil, imgsrc.ErrAbsent }

func (h hostile) Config(context.Context) ([]byte, error) {
	if h.config == nil {
		return nil, imgsrc.ErrAbsent
	}
	return h.config, nil
}

func (h hostile) Blob(_ context.Context, d digest.Digest) (imgsrc.Content, error) {
	if len(d) > 0 && d[len(d)-1]%16 < h.blobs%17 {
		return empty{}, nil
	}
	return nil, imgsrc.ErrAbsent
}

func (h hostile) Diff(_ context.Context, n int) (imgsrc.Content, error) {
	if n < int(h.diffs) {
		return empty{}, nil
	}
	return nil, imgsrc.ErrAbsent
}

type empty struct{}

func (empty) Size(context.Context) (int64, error)                { return 0, nil }
func (empty) ReadAt(context.Context, []byte, int64) (int, error) { return 0, io.EOF }
func (empty) Close() error                                       { return nil }

// What is made of any manifest is one that is read again as what it was, twice the same.
func FuzzConvert(f *testing.F) {
	src := open(f, made(f, images.Sample, images.Formats))
	list, err := src.List(f.Context())
	if err != nil {
		f.Fatal(err)
	}
	for _, img := range list.Images {
		manifest, err := img.Manifest(f.Context())
		if err != nil {
			continue
		}
		config, _ := img.Config(f.Context())
		f.Add(manifest, config, byte(16), byte(0))
		f.Add(manifest, config, byte(0), byte(255))
	}
	f.Fuzz(func(t *testing.T, manifest, config []byte, blobs, diffs byte) {
		h := hostile{manifest: manifest, config: config, blobs: blobs, diffs: diffs}
		h.desc = imgsrc.Desc{Digest: digest.FromBytes(manifest)}
		facts := imgsrc.Describe(&h.desc, manifest)
		if config != nil {
			var err error
			if facts, err = imgsrc.Load(t.Context(), h); err != nil {
				t.Fatal(err)
			}
		}
		child := func(_ context.Context, d digest.Digest) (*export.OCI, error) {
			if len(d)%2 == 0 && d[len(d)-1]%2 == 0 {
				return nil, imgsrc.ErrNotFound
			}
			o := &export.OCI{Manifest: []byte("{}")}
			o.Desc.Digest, o.Desc.Size = digest.FromBytes(o.Manifest), 2
			return o, nil
		}
		o, err := export.Convert(t.Context(), h, facts, child)
		if err != nil {
			return
		}
		again, err := export.Convert(t.Context(), h, facts, child)
		if err != nil || string(again.Manifest) != string(o.Manifest) {
			t.Fatalf("converted again: %v\n%s\n%s", err, o.Manifest, again.Manifest)
		}
		desc := imgsrc.Desc{Digest: o.Desc.Digest, MediaType: o.Desc.MediaType}
		is := imgsrc.Describe(&desc, o.Manifest)
		if is.ManifestErr != nil || is.Kind != facts.Kind {
			t.Errorf("%s became %s, %v:\n%s\n%s", facts.Kind, is.Kind, is.ManifestErr, manifest, o.Manifest)
		}
		if is.Kind == imgsrc.KindImage && len(is.Layers) != len(facts.Layers) {
			t.Errorf("%d layers became %d", len(facts.Layers), len(is.Layers))
		}
		for b := range o.All() {
			if b.Desc.Size < 0 || b.Desc.Digest.Validate() != nil {
				t.Errorf("a blob %+v", b.Desc)
			}
		}
	})
}
