package layer

import (
	"fmt"
	"strings"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/imgfs/imgfs/imgsrc"
)

// mediaTypes are how the media types of layers begin. What follows is the compression, which is told by the bytes.
var mediaTypes = []string{
	v1.MediaTypeImageLayer,
	"application/vnd.oci.image.layer.nondistributable.v1.tar",
	"application/vnd.docker.image.rootfs.diff.tar",
	"application/vnd.docker.image.rootfs.foreign.diff.tar",
}

// CheckMediaType fails with imgsrc.ErrUnsupported if a layer of this media type is not a tar. Schema 1 gives none.
func CheckMediaType(mediaType string) error {
	if strings.HasSuffix(mediaType, "+encrypted") {
		return fmt.Errorf("%w: the layer is encrypted", imgsrc.ErrUnsupported)
	}
	for _, t := range mediaTypes {
		if mediaType == "" || strings.HasPrefix(mediaType, t) {
			return nil
		}
	}
	return fmt.Errorf("%w: a layer of type %q", imgsrc.ErrUnsupported, mediaType)
}

// CompressionOf returns what a media type says of the compression of a layer that is not at hand; empty if it says none that
// is known.
func CompressionOf(mediaType string) Compression {
	if mediaType == "" { // of schema 1
		return Gzip
	}
	for _, t := range mediaTypes {
		switch strings.TrimPrefix(mediaType, t) {
		case "":
			return None
		case ".gzip", "+gzip":
			return Gzip
		case ".zstd", "+zstd":
			return Zstd
		}
	}
	return ""
}
