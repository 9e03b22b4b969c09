package images

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// writeSpoilt writes a layer, compressed with gzip, that is damaged on the way.
func (l *Layout) writeSpoilt(layer Layer) (digest.Digest, v1.Descriptor, error) {
	var plain, blob bytes.Buffer
	if err := WriteTar(&plain, layer.Entries); err != nil {
		return "", v1.Descriptor{}, err
	}
	tar := plain.Bytes()
	if layer.SpoilTar != nil {
		tar = layer.SpoilTar(tar)
	}
	zw := gzip.NewWriter(&blob)
	_, err := zw.Write(tar)
	if err := errors.Join(err, zw.Close()); err != nil {
		return "", v1.Descriptor{}, err
	}
	packed := blob.Bytes()
	if layer.SpoilBlob != nil {
		packed = layer.SpoilBlob(packed)
	}
	desc := v1.Descriptor{MediaType: v1.MediaTypeImageLayerGzip, Digest: digest.FromBytes(packed), Size: int64(len(packed))}
	return digest.FromBytes(tar), desc, os.WriteFile(l.path(desc.Digest), packed, 0o644)
}

// Damaged adds images of three layers each, of which the middle one is damaged: localhost/bad:gzip (cut off in the middle), bad:diffid (the
// config has another diff id), bad:size (a header that claims more than there is) and bad:garbage (no header where one should be). A sound one is
// localhost/good:1. The other layers of all are the same.
func Damaged(l *Layout) error {
	first := Layer{CreatedBy: "first", Entries: []Entry{Dir("etc"), File("etc/first", "first\n")}}
	last := Layer{CreatedBy: "last", Entries: []Entry{Dir("etc"), File("etc/last", "last\n")}}
	middle := Layer{CreatedBy: "middle", Entries: []Entry{
		Dir("srv"), File("srv/a", strings.Repeat("aaaa\n", 300)), File("srv/b", strings.Repeat("bbbb\n", 50000)), File("srv/c", "c\n"),
	}}
	cut, diffID, size, garbage := middle, middle, middle, middle
	cut.SpoilBlob = func(b []byte) []byte { return b[:len(b)/2] }
	diffID.WrongDiffID = true
	// Both have other bytes than the others, or whoever has those already would not look at these.
	cut.Entries = append(slices.Clone(cut.Entries), File("srv/e", ""))
	diffID.Entries = append(slices.Clone(diffID.Entries), File("srv/d", ""))
	size.SpoilTar = func(tar []byte) []byte {
		at := bytes.Index(tar, []byte("srv/c"))
		return setSize(tar, at, 1<<30)
	}
	garbage.SpoilTar = func(tar []byte) []byte {
		copy(tar[bytes.Index(tar, []byte("srv/c")):], bytes.Repeat([]byte("garbage "), 64))
		return tar
	}
	all := map[string]Layer{"good:1": middle, "bad:gzip": cut, "bad:diffid": diffID, "bad:size": size, "bad:garbage": garbage}
	for name, layer := range all {
		if _, err := l.Add(Image{Layers: []Layer{first, layer, last}, Author: name}, "localhost/"+name); err != nil {
			return err
		}
	}
	return nil
}

// setSize changes the size in the header at an offset of a tar, and its checksum.
func setSize(tar []byte, at int, size int64) []byte {
	h := tar[at : at+512]
	copy(h[124:136], fmt.Sprintf("%011o\x00", size))
	copy(h[148:156], "        ")
	sum := 0
	for _, b := range h {
		sum += int(b)
	}
	copy(h[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return tar
}
