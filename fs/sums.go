package fs

import (
	"bytes"
	"context"
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
)

// sums is SHA256SUMS: what sha256sum -c in an image's directory checks. It names the files whose content the image's manifest,
// config or digest says, by the digests that these say, so that a file that cannot be read, or is another, is found. Files whose
// digest is of another algorithm are not in it, nor is diff.tar where nobody says what it should be.
//
// Of an image in a registry it names the blobs, as the listing does, and never diff.tar, which is listed when a layer is here: to
// read an image changes none of its files.
type sums struct {
	bytes.Buffer
}

// add adds a file. None of the names here has a character that sha256sum would escape.
func (b *sums) add(d digest.Digest, name string) {
	if d.Validate() == nil && d.Algorithm() == digest.SHA256 {
		fmt.Fprintf(b, "%s  %s\n", d.Encoded(), name)
	}
}

// addDocument adds a file of which the bytes are at hand, or the error of reading them. Those were verified by the source; their
// own SHA-256 may be another than their digest (a signed manifest of schema 1, another algorithm).
func (b *sums) addDocument(d digest.Digest, text []byte, name string) {
	if text != nil {
		d = digest.FromBytes(text)
	}
	b.add(d, name)
}

func sha256Sums(ctx context.Context, s *standing) ([]byte, error) {
	var b sums
	f := s.facts
	name := "manifest.json"
	if f.Kind == imgsrc.KindIndex {
		name = "index.json"
	}
	b.addDocument(f.Digest, f.Manifest, name)
	if f.Desc.Config != "" || f.Config != nil {
		b.addDocument(f.Desc.Config, f.Config, "config.json")
	}
	for n := range f.Layers {
		if err := s.sumsOfLayer(ctx, &b, n); err != nil {
			return nil, err
		}
	}
	for _, h := range further(s.e) {
		d := h.Desc()
		var text []byte
		if strings.HasSuffix(d.MediaType, "+prettyjws") {
			text, _ = h.Manifest(ctx) // sha256sum hears why it cannot be read
		}
		b.addDocument(d.Digest, text, manifestName(d.Digest))
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if b.Len() == 0 {
		return nil, imgsrc.ErrAbsent
	}
	return b.Bytes(), nil
}

func (s *standing) sumsOfLayer(ctx context.Context, b *sums, n int) error {
	l := s.facts.Layers[n]
	dir := "layers/" + layerName(n, len(s.facts.Layers)) + "/"
	blob, err := s.img.probe(ctx, s.r, n, contentBlob)
	if err != nil {
		return err
	}
	if blob.ok {
		b.add(l.Digest, dir+"blob")
	}
	if s.img.isRemote() || l.DiffID == "" {
		return nil
	}
	diff, err := s.img.probe(ctx, s.r, n, contentDiff)
	if err != nil {
		return err
	}
	if diff.ok {
		b.add(l.DiffID, dir+"diff.tar")
	}
	return nil
}
