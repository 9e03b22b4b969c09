package images

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/storage/pkg/chunked/compressor"
)

// Stargz adds localhost/app:gzip, and localhost/app:stargz and localhost/app:chunked, which are the same with eStargz and
// zstd:chunked layers.
func Stargz(l *Layout) error { return lazily(l, "localhost/app", App()) }

// Lazy adds localhost/lazy:gzip, :stargz and :chunked, the same image of some 11 MiB: files that do not compress away, small
// ones in directories, and one large. And localhost/odd:stargz, whose tables of contents cannot say its names.
func Lazy(l *Layout) error {
	data := Big(10 << 20).Layers[0].Entries[0].Data
	base := Layer{CreatedBy: "many files", Entries: []Entry{Dir("srv")}}
	for i := range 600 {
		if i%100 == 0 {
			base.Entries = append(base.Entries, Dir(fmt.Sprintf("srv/%d", i/100)))
		}
		base.Entries = append(base.Entries, File(fmt.Sprintf("srv/%d/%02d", i/100, i%100), string(data[i*10_000:(i+1)*10_000])))
	}
	top := Layer{CreatedBy: "one large, and changes", Entries: []Entry{
		Dir("srv"), File("srv/large", string(data[6<<20:])), File("srv/zeros", string(make([]byte, 1<<20))), Dir("srv/1"), Opaque("srv/1"),
		Whiteout("srv/2/00"), File("srv/hello", "hello\n").WithOwner(1000, 1000), Link("srv/hello-again", "srv/hello"),
	}}
	odd := Odd()
	odd.Compression = EStargz
	_, err := l.Add(odd, "localhost/odd:stargz")
	return errors.Join(err, lazily(l, "localhost/lazy", Image{Layers: []Layer{base, top}}))
}

// lazily adds an image with each kind of layers, tagged gzip, stargz and chunked.
func lazily(l *Layout, name string, img Image) error {
	for _, how := range []struct {
		tag string
		Compression
	}{{"gzip", Gzip}, {"stargz", EStargz}, {"chunked", ZstdChunked}} {
		img.Compression = how.Compression
		if _, err := l.Add(img, name+":"+how.tag); err != nil {
			return err
		}
	}
	return nil
}

// StargzChunk is how many bytes of a file are a chunk in the eStargz layers that are made here.
const StargzChunk = 64 << 10

// writeStargz writes a layer as eStargz: a gzip member for each file or chunk of one, one for the table of contents, which
// is a file of the tar, and an empty one that says where that is.
func (l *Layout) writeStargz(layer Layer) (digest.Digest, v1.Descriptor, error) {
	entries := append([]Entry{File(estargz.NoPrefetchLandmark, "\x0f")}, layer.Entries...)
	blob, diffID, annotations, err := EStargzBlob(0, entries)
	if err != nil {
		return "", v1.Descriptor{}, err
	}
	desc, err := l.WriteBlob(v1.MediaTypeImageLayerGzip, blob)
	desc.Annotations = annotations
	return diffID, desc, err
}

// EStargzBlob makes an eStargz layer, and the annotations of its descriptor. Files share a gzip member until that has at
// least as many bytes as together says.
func EStargzBlob(together int, entries []Entry) (blob []byte, diffID digest.Digest, annotations map[string]string, err error) {
	var plain, out bytes.Buffer
	if err := WriteTar(&plain, unsparse(entries)); err != nil {
		return nil, "", nil, err
	}
	w := estargz.NewWriter(&out)
	w.ChunkSize, w.MinChunkSize = StargzChunk, together
	if err := w.AppendTar(&plain); err != nil {
		return nil, "", nil, err
	}
	toc, err := w.Close()
	return out.Bytes(), digest.Digest(w.DiffID()), map[string]string{estargz.TOCJSONDigestAnnotation: toc.String()}, err
}

// writeChunked writes a layer as zstd:chunked.
func (l *Layout) writeChunked(layer Layer) (digest.Digest, v1.Descriptor, error) {
	blob, diffID, annotations, err := ChunkedBlob(layer.Entries)
	if err != nil {
		return "", v1.Descriptor{}, err
	}
	desc, err := l.WriteBlob(v1.MediaTypeImageLayerZstd, blob)
	desc.Annotations = annotations
	return diffID, desc, err
}

// ChunkedBlob makes a zstd:chunked layer, and the annotations of its descriptor.
func ChunkedBlob(entries []Entry) (blob []byte, diffID digest.Digest, annotations map[string]string, err error) {
	var plain, out bytes.Buffer
	if err := WriteTar(&plain, unsparse(entries)); err != nil {
		return nil, "", nil, err
	}
	annotations = map[string]string{}
	diffID = digest.FromBytes(plain.Bytes())
	w, err := compressor.ZstdCompressor(&out, annotations, nil)
	if err == nil {
		_, err = w.Write(plain.Bytes())
		err = errors.Join(err, w.Close())
	}
	return out.Bytes(), diffID, annotations, err
}

// unsparse fills the holes of sparse files: neither form has them.
func unsparse(entries []Entry) []Entry {
	entries = slices.Clone(entries)
	for i := range entries {
		e := &entries[i]
		if e.Extents == nil {
			continue
		}
		data, at := make([]byte, e.Size), int64(0)
		for _, x := range e.Extents {
			copy(data[x.Offset:x.Offset+x.Length], e.Data[at:])
			at += x.Length
		}
		e.Data, e.Extents = data, nil
	}
	return entries
}
