package ops

import (
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"
)

// knownBlobs is what this mount has sent where, and what became of layers when they were compressed.
type knownBlobs struct {
	mu       sync.Mutex
	variants map[variantKey]compressed
	repos    map[blobPlace][]string
}

// A variantKey is a layer as a source offers it, and how it is to be compressed.
type variantKey struct {
	digest    digest.Digest
	algorithm string // its name
}

// A compressed layer.
type compressed struct {
	digest      digest.Digest
	annotations map[string]string // of zstd:chunked: where in it its table of contents is
}

type blobPlace struct {
	host   string
	digest digest.Digest
}

// maxKnown bounds what is remembered; past it everything is forgotten.
const maxKnown = 100_000

// isIn says that a repository of a registry has a blob.
func (k *knownBlobs) isIn(host, repo string, d digest.Digest) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.bound()
	at := blobPlace{host, d}
	if repos := k.repos[at]; !slices.Contains(repos, repo) && len(repos) < maxFrom {
		k.repos[at] = append(repos, repo)
	}
}

// became says what a layer is when it is compressed with an algorithm. Where one of them is unknown nothing is said.
func (k *knownBlobs) became(offered digest.Digest, algorithm string, as compressed) {
	if offered == "" || algorithm == "" || as.digest == offered {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.bound()
	k.variants[variantKey{offered, algorithm}] = as
}

// bound makes room. mu is held.
func (k *knownBlobs) bound() {
	if k.repos == nil || len(k.repos) >= maxKnown || len(k.variants) >= maxKnown {
		k.variants, k.repos = map[variantKey]compressed{}, map[blobPlace][]string{}
	}
}

// compressed returns what a layer is when it is compressed with an algorithm; empty if that is not known.
func (k *knownBlobs) compressed(offered digest.Digest, algorithm string) compressed {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.variants[variantKey{offered, algorithm}]
}

func (k *knownBlobs) places(host string, d digest.Digest) []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.repos[blobPlace{host, d}])
}
