package ops

import (
	"maps"
	"strings"

	"github.com/opencontainers/go-digest"
	compressiontypes "go.podman.io/image/v5/pkg/compression/types"
	"go.podman.io/image/v5/types"
	"go.podman.io/storage/pkg/chunked/toc"
)

// annotate gives layers that have become others with annotations when they were compressed a map for them, for say to write
// to. The others are left alone: for the least difference the library would make another manifest.
func (s *source) annotate(infos []types.BlobInfo) (changed bool) {
	if s.became == nil || !s.recompressed {
		return false
	}
	for i, info := range infos {
		if info.Annotations == nil && len(s.became(info.Digest).annotations) > 0 {
			infos[i].Annotations, changed = map[string]string{}, true
		}
	}
	return changed
}

// say replaces the annotations of a layer by those of the blob that is taken for it. The library keeps those of the layer as it
// was offered, and lets no destination that stands in front of its own return others; but it reads them when the destination
// has answered, from the same map.
func say(info types.BlobInfo, annotations map[string]string) {
	clear(info.Annotations)
	maps.Copy(info.Annotations, annotations)
}

// offers returns the layers that were last asked for, as they are offered.
func (s *source) offers() []types.BlobInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.offered
}

// original returns what the manifest names for the layer of a diff id that is offered in its place, and how that is
// compressed; otherwise nothing.
func (s *source) original(diffID digest.Digest) (its compressed, algorithm string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	blob := s.diffs[diffID].blob
	if blob.Digest.Validate() != nil {
		return compressed{}, ""
	}
	return compressed{blob.Digest, blob.Annotations}, algorithmOf(blob.MediaType, blob.Annotations)
}

// algorithmOf is the name of what a layer is compressed with, as a manifest says; empty if it is not, or that is not known.
func algorithmOf(mediaType string, annotations map[string]string) string {
	switch {
	case strings.HasSuffix(mediaType, "gzip"):
		return compressiontypes.GzipAlgorithmName
	case strings.HasSuffix(mediaType, "zstd") && len(chunkedAnnotations(annotations)) > 0:
		return compressiontypes.ZstdChunkedAlgorithmName
	case strings.HasSuffix(mediaType, "zstd"):
		return compressiontypes.ZstdAlgorithmName
	}
	return ""
}

// chunkedAnnotations are those of a layer's annotations that say where in the compressed blob things are.
func chunkedAnnotations(annotations map[string]string) map[string]string {
	all := maps.Clone(annotations)
	maps.DeleteFunc(all, func(key, _ string) bool {
		_, ok := toc.ChunkedAnnotations[key]
		return !ok
	})
	return all
}
