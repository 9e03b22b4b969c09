package images

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Stargz adds localhost/app:gzip, and localhost/app:stargz, which is the same with eStargz layers.
func Stargz(l *Layout) error {
	app, stargz := App(), App()
	stargz.Compression = EStargz
	_, err1 := l.Add(app, "localhost/app:gzip")
	_, err2 := l.Add(stargz, "localhost/app:stargz")
	return errors.Join(err1, err2)
}

// tocAnnotation is where a manifest says the digest of an eStargz layer's table of contents.
const tocAnnotation = "containerd.io/snapshot/stargz/toc.digest"

// writeStargz writes a layer as eStargz: a gzip member for each entry, one for the table of contents, which is a file of the tar, and
// an empty one that says where that is.
func (l *Layout) writeStargz(layer Layer) (digest.Digest, v1.Descriptor, error) {
	var blob, plain bytes.Buffer
	member := func(b []byte) error {
		plain.Write(b)
		zw := gzip.NewWriter(&blob)
		_, err := zw.Write(b)
		return errors.Join(err, zw.Close())
	}
	type tocEntry struct {
		Name   string `json:"name"`
		Size   int64  `json:"size,omitempty"`
		Offset int64  `json:"offset,omitempty"`
	}
	toc := struct {
		Version int        `json:"version"`
		Entries []tocEntry `json:"entries"`
	}{Version: 1}
	entries := append([]Entry{File(".no.prefetch.landmark", "\xf0")}, layer.Entries...)
	for _, e := range entries {
		toc.Entries = append(toc.Entries, tocEntry{e.Name, e.Size, int64(blob.Len())})
		b, err := tarOf(e)
		if err != nil {
			return "", v1.Descriptor{}, err
		}
		if err := member(b[:len(b)-1024]); err != nil { // without the trailer
			return "", v1.Descriptor{}, err
		}
	}
	table, err := json.Marshal(toc)
	if err != nil {
		return "", v1.Descriptor{}, err
	}
	at := blob.Len()
	last, err := tarOf(File("stargz.index.json", string(table)))
	if err == nil {
		err = member(last)
	}
	if err != nil {
		return "", v1.Descriptor{}, err
	}
	zw := gzip.NewWriter(&blob)
	zw.Extra = append([]byte{'S', 'G', 22, 0}, fmt.Sprintf("%016xSTARGZ", at)...)
	if err := zw.Close(); err != nil {
		return "", v1.Descriptor{}, err
	}
	desc, err := l.WriteBlob(v1.MediaTypeImageLayerGzip, blob.Bytes())
	desc.Annotations = map[string]string{tocAnnotation: digest.FromBytes(table).String()}
	return digest.FromBytes(plain.Bytes()), desc, err
}

func tarOf(e Entry) ([]byte, error) {
	var b bytes.Buffer
	err := WriteTar(&b, []Entry{e})
	return b.Bytes(), err
}
