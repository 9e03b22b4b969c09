package ops

import (
	"maps"
	"strings"

	"github.com/opencontainers/go-digest"
	compressiontypes "go.podman.io/image/v5/pkg/compression/types"
	"go.podman.io/image/v5/types"
	"go.podman.io/storage/pkg/chunked/toc"
)

// annotate gives layers that are to become zstd:chunked the annotations that they had when they did before: where a
// registry has that blob, nobody else can say them. One that is compressed anew gets others.
func (s *source) annotate(infos []types.BlobInfo) (changed bool) {
	if s.chunked == nil {
		return false
	}
	for i, info := range infos {
		more := s.chunked(info.Digest)
		if len(more) == 0 || strings.HasSuffix(info.MediaType, "zstd") {
			continue // which would be taken for what it is to become
		}
		infos[i].Annotations = maps.Clone(info.Annotations)
		if infos[i].Annotations == nil {
			infos[i].Annotations = map[string]string{}
		}
		maps.Copy(infos[i].Annotations, more)
		changed = true
	}
	return changed
}

// offers returns the layers that were last asked for, as they are offered.
func (s *source) offers() []types.BlobInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.offered
}

// original returns what the manifest names for the layer of a diff id that is offered in its place, and how that is
// compressed; otherwise nothing.
func (s *source) original(diffID digest.Digest) (d digest.Digest, algorithm string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	blob := s.diffs[diffID].blob
	if blob.Digest.Validate() != nil {
		return "", ""
	}
	return blob.Digest, algorithmOf(blob.MediaType, blob.Annotations)
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
