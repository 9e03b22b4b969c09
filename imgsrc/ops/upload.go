package ops

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/image/v5/pkg/compression"
	compressiontypes "go.podman.io/image/v5/pkg/compression/types"
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
	source     *source                     // what is pushed
	required   *compressiontypes.Algorithm // that layers are to have; nil: any, and gzip for those that have none
	desired    *types.LayerCompression     // nil: the transport's own
	reached    *atomic.Bool                // set when the registry has answered
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
	sent    []sentBlob
	useless []string // the repositories that nothing is mounted from
}

func (d *uploadDestination) Reference() types.ImageReference { return d.ImageDestination.Reference() }

func (d *uploadDestination) DesiredLayerCompression() types.LayerCompression {
	if d.desired != nil {
		return *d.desired
	}
	return d.ImageDestination.DesiredLayerCompression()
}

// A sentBlob is one that the registry did not have.
type sentBlob struct {
	digest     digest.Digest
	compressed bool // on the way
}

func (d *uploadDestination) PutBlob(ctx context.Context, stream io.Reader, info types.BlobInfo, cache types.BlobInfoCache, isConfig bool) (types.BlobInfo, error) {
	got, err := d.ImageDestination.PutBlob(ctx, stream, info, cache, isConfig)
	if err == nil {
		compressed := info.Digest == "" && !isConfig && d.DesiredLayerCompression() == types.Compress
		d.mu.Lock()
		d.cache, d.sent = cache, append(d.sent, sentBlob{got.Digest, compressed})
		d.mu.Unlock()
	}
	return got, err
}

// TryReusingBlob looks for the blob, unless it is to have another compression, and for what it is when it is compressed.
func (d *uploadDestination) TryReusingBlob(ctx context.Context, info types.BlobInfo, cache types.BlobInfoCache, canSubstitute bool) (bool, types.BlobInfo, error) {
	if fits(info, d.required) {
		if ok, got, err := d.reuse(ctx, info, cache); ok || err != nil {
			return ok, got, err
		}
	}
	if !canSubstitute || d.DesiredLayerCompression() != types.Compress {
		return false, types.BlobInfo{}, nil
	}
	algorithm := d.algorithm()
	candidates := []compressed{d.known.compressed(info.Digest, algorithm.Name())}
	if original, its := d.source.original(info.Digest); its == algorithm.Name() {
		candidates = append(candidates, original)
	}
	for _, as := range candidates {
		if as.digest == "" || as.digest == info.Digest || info.Annotations == nil && len(as.annotations) > 0 {
			continue
		}
		if ok, got, err := d.reuse(ctx, types.BlobInfo{Digest: as.digest, Size: -1}, cache); ok || err != nil {
			if ok {
				say(info, as.annotations)
			}
			got.CompressionOperation, got.CompressionAlgorithm = types.Compress, &algorithm
			return ok, got, err
		}
	}
	return false, types.BlobInfo{}, nil
}

// fits says whether a blob can stay as it is: it has the compression that is required, or is nothing that is compressed. A
// nil one is none.
func fits(info types.BlobInfo, required *compressiontypes.Algorithm) bool {
	if has := info.CompressionAlgorithm; required != nil && has != nil {
		return has.Name() == required.Name() || has.BaseVariantName() == required.Name()
	}
	noLayer := info.CompressionOperation == types.PreserveOriginal && info.MediaType != ""
	return required == nil || noLayer
}

// algorithm is what layers are compressed with.
func (u *upload) algorithm() compressiontypes.Algorithm {
	if u.required == nil {
		return compression.Gzip
	}
	return *u.required
}

// PutManifest remembers what the layers have become: they are in the order in which they were offered. The main manifest,
// with which the name is there, is stored only if somebody still wants it. Errors: imgsrc.Commit's as well.
func (d *uploadDestination) PutManifest(ctx context.Context, text []byte, instance *digest.Digest) error {
	if m, err := manifest.FromBlob(text, manifest.GuessMIMEType(text)); err == nil {
		layers, offered := m.LayerInfos(), d.source.offers()
		for i, l := range layers {
			if len(layers) != len(offered) || l.Digest == offered[i].Digest {
				continue
			}
			d.known.became(offered[i].Digest, algorithmOf(l.MediaType, l.Annotations), compressed{l.Digest, l.Annotations})
		}
	}
	if instance == nil {
		if err := imgsrc.Commit(ctx); err != nil {
			return err
		}
	}
	return d.ImageDestination.PutManifest(ctx, text, instance)
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
		d.known.isIn(d.host, d.repo, sent.digest)
		its := d.algorithm().Name()
		if its != compressiontypes.ZstdChunkedAlgorithmName && sent.compressed { // see PutManifest
			d.known.became(d.cache.UncompressedDigest(sent.digest), its, compressed{digest: sent.digest})
		}
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
				its := algorithmOf(l.MediaType, l.Annotations)
				if its == "" || l.Digest.Validate() != nil || l.DiffID.Validate() != nil {
					continue
				}
				o.known.became(l.DiffID, its, compressed{l.Digest, chunkedAnnotations(l.Annotations)})
				for _, repo := range repos {
					o.known.isIn(host, repo, l.Digest)
				}
			}
		}
	}
}
