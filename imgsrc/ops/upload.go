package ops

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/pkg/compression"
	"go.podman.io/image/v5/types"

	"github.com/imgfs/imgfs/imgsrc"
)

// A Mounter is a registry that can be asked to give a repository a blob of another one of its own.
type Mounter interface {
	// Mount fails with imgsrc.ErrNotFound where the other repository does not have the blob, and with
	// imgsrc.ErrUnsupported where the registry wants the bytes.
	Mount(ctx context.Context, repo, from string, d digest.Digest) error
	Close()
}

// An upload is a push to a registry, which is not given what it has. The library looks for blobs in the destination's
// repository; this one looks for what has become of layers when they were compressed, by an earlier push or where they
// were pulled from, and has blobs mounted from the image's other repositories in the same registry.
type upload struct {
	types.ImageReference
	host, repo string
	known      *knownBlobs
	mounter    Mounter // nil: nothing is mounted
	from       []string
	original   func(diffID digest.Digest) digest.Digest // the gzipped layer that the manifest names; empty: none
	desired    *types.LayerCompression                  // nil: the transport's own
	reached    *atomic.Bool                             // set when the registry has answered
	log        *slog.Logger
}

// maxFrom is how many repositories are asked for a blob.
const maxFrom = 4

// repositories returns the repositories of a registry that have the image, by its names.
func repositories(e *imgsrc.Entry, host string) []string {
	var all []string
	for _, h := range e.Held {
		for _, name := range slices.Concat(h.RemoteNames, h.RepoDigests, h.Names) {
			named, err := reference.ParseNormalizedNamed(name)
			if err != nil || reference.Domain(named) != host {
				continue
			}
			if path := reference.Path(named); !slices.Contains(all, path) && len(all) < maxFrom {
				all = append(all, path)
			}
		}
	}
	return all
}

func (u *upload) NewImageDestination(ctx context.Context, sys *types.SystemContext) (types.ImageDestination, error) {
	dest, err := u.ImageReference.NewImageDestination(ctx, sys)
	if err != nil {
		return nil, err
	}
	return &uploadDestination{ImageDestination: dest, upload: u}, nil
}

type uploadDestination struct {
	types.ImageDestination
	*upload

	mu      sync.Mutex
	cache   types.BlobInfoCache // the copy's own, which learns what a blob is without its compression
	sent    []digest.Digest
	useless []string // the repositories that nothing is mounted from
}

func (d *uploadDestination) Reference() types.ImageReference { return d.ImageDestination.Reference() }

func (d *uploadDestination) DesiredLayerCompression() types.LayerCompression {
	if d.desired != nil {
		return *d.desired
	}
	return d.ImageDestination.DesiredLayerCompression()
}

func (d *uploadDestination) PutBlob(ctx context.Context, stream io.Reader, info types.BlobInfo, cache types.BlobInfoCache, isConfig bool) (types.BlobInfo, error) {
	got, err := d.ImageDestination.PutBlob(ctx, stream, info, cache, isConfig)
	if err == nil {
		d.mu.Lock()
		d.cache, d.sent = cache, append(d.sent, got.Digest)
		d.mu.Unlock()
	}
	return got, err
}

// TryReusingBlob looks for the blob, and for what it is when it is compressed.
func (d *uploadDestination) TryReusingBlob(ctx context.Context, info types.BlobInfo, cache types.BlobInfoCache, canSubstitute bool) (bool, types.BlobInfo, error) {
	ok, got, err := d.reuse(ctx, info, cache)
	if ok || err != nil || !canSubstitute || d.DesiredLayerCompression() != types.Compress {
		return ok, got, err
	}
	for _, compressed := range []digest.Digest{d.known.compressed(info.Digest), d.original(info.Digest)} {
		if compressed == "" || compressed == info.Digest {
			continue
		}
		if ok, got, err := d.reuse(ctx, types.BlobInfo{Digest: compressed, Size: -1}, cache); ok || err != nil {
			got.CompressionOperation, got.CompressionAlgorithm = types.Compress, &compression.Gzip
			return ok, got, err
		}
	}
	return false, types.BlobInfo{}, nil
}

// reuse looks for exactly this blob, in the repository and then in others of the registry.
func (d *uploadDestination) reuse(ctx context.Context, info types.BlobInfo, cache types.BlobInfoCache) (bool, types.BlobInfo, error) {
	ok, got, err := d.ImageDestination.TryReusingBlob(ctx, info, cache, false)
	if err == nil {
		d.reached.Store(true)
	}
	if ok || err != nil || d.mounter == nil {
		return ok, got, err
	}
	for _, from := range slices.Concat(d.known.places(d.host, info.Digest), d.from) {
		if !d.mounts(ctx, from, info.Digest) {
			continue
		}
		if ok, got, err := d.ImageDestination.TryReusingBlob(ctx, info, cache, false); ok || err != nil {
			return ok, got, err
		}
	}
	return false, types.BlobInfo{}, nil
}

// mounts has a blob mounted from another repository. Why it cannot be is not of interest: it can be sent.
func (d *uploadDestination) mounts(ctx context.Context, from string, blob digest.Digest) bool {
	d.mu.Lock()
	useless := from == d.repo || slices.Contains(d.useless, from)
	d.mu.Unlock()
	if useless {
		return false
	}
	err := d.mounter.Mount(ctx, d.repo, from, blob)
	if err == nil {
		return true
	}
	d.log.Debug("mounting blob", "blob", blob, "from", from, "to", d.repo, "error", redact(err.Error()))
	if !errors.Is(err, imgsrc.ErrNotFound) {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.useless = append(d.useless, from)
	}
	return false
}

// Close remembers what was sent, also of a push that failed: it will be tried again.
func (d *uploadDestination) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, sent := range d.sent {
		d.known.add(d.host, d.repo, sent, d.cache.UncompressedDigest(sent))
	}
	return d.ImageDestination.Close()
}

// maxBases is how many images are looked at for layers that a registry may have of them.
const maxBases = 16

// learn finds out what the registry may have of the image's lower layers: other images of the same source begin with the
// same layer, and have been pulled from there. A source that has unpacked a layer has seen that it is what the config says;
// of any other, two digests that a manifest and a config put side by side prove nothing.
func (o *Ops) learn(ctx context.Context, p pushJob, host string) {
	looked := 0
	for _, e := range p.snapshot.Entries {
		for _, h := range e.Held {
			if e == p.entry || h.Source != p.held.Source || h.Unpacked == 0 || len(h.Layers) == 0 || len(p.held.Layers) == 0 || h.Layers[0] != p.held.Layers[0] {
				continue
			}
			repos := repositories(e, host)
			if len(repos) == 0 || looked == maxBases {
				continue
			}
			looked++
			facts, err := imgsrc.Load(ctx, h)
			if err != nil || facts.ManifestErr != nil {
				continue
			}
			for _, l := range facts.Layers {
				if !strings.HasSuffix(l.MediaType, "gzip") || l.Digest.Validate() != nil || l.DiffID.Validate() != nil {
					continue
				}
				for _, repo := range repos {
					o.known.add(host, repo, l.Digest, l.DiffID)
				}
			}
		}
	}
}

// knownBlobs is what this mount has sent where, and what became of layers when they were compressed with gzip.
type knownBlobs struct {
	mu      sync.Mutex
	gzipped map[digest.Digest]digest.Digest // by diff id
	repos   map[blobPlace][]string
}

type blobPlace struct {
	host   string
	digest digest.Digest
}

// maxKnown bounds what is remembered; past it everything is forgotten.
const maxKnown = 100_000

func (k *knownBlobs) add(host, repo string, d, diffID digest.Digest) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.repos == nil || len(k.repos) >= maxKnown {
		k.gzipped, k.repos = map[digest.Digest]digest.Digest{}, map[blobPlace][]string{}
	}
	if diffID != "" && diffID != d {
		k.gzipped[diffID] = d
	}
	at := blobPlace{host, d}
	if repos := k.repos[at]; !slices.Contains(repos, repo) && len(repos) < maxFrom {
		k.repos[at] = append(repos, repo)
	}
}

func (k *knownBlobs) compressed(diffID digest.Digest) digest.Digest {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.gzipped[diffID]
}

func (k *knownBlobs) places(host string, d digest.Digest) []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.repos[blobPlace{host, d}])
}
