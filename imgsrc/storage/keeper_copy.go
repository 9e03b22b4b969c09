package storage

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/docker/reference"
	istorage "go.podman.io/image/v5/storage"
	"go.podman.io/image/v5/types"
	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
)

// receive is that of [Source] in the keeper.
func (k *keeper) receive(ctx context.Context, name, id string, text []byte, copy func(to types.ImageReference) error) (made []string, err error) {
	to := &keptReference{k: k, id: id}
	if name != "" {
		named, err := reference.ParseNamed(name)
		if err != nil {
			return nil, invalid(name, err)
		}
		to.named = named
	}
	a, err := k.begin(methodReceive, receiveArgs{name, id, text}, nil)
	if err != nil {
		return nil, err
	}
	to.receiving = a
	select {
	case is := <-a.ready:
		if err := decode(is, &to.is); err != nil {
			_, endErr := to.end(ctx, false)
			return nil, errors.Join(err, endErr)
		}
	case r := <-a.replied:
		return nil, r.Err.error()
	case <-ctx.Done():
		_, err := a.wait(ctx)
		return nil, err
	}
	if err := copy(to); err != nil {
		err = foreignIDs(err, k.alone())
		made, of := to.end(ctx, false)
		if errors.Is(of, errKeeperEnded) {
			err = of
		}
		return made, err
	}
	return to.end(ctx, true)
}

// A keptReference is a reference in the keeper. It is good for one image.
type keptReference struct {
	k         *keeper
	named     reference.Named // nil: by id
	id        string
	receiving *asked
	is        destinationIs
	used      atomic.Bool // there was a destination already

	mu   sync.Mutex
	made string // the id of the image; guarded by mu
}

// end closes the destination in the keeper, and returns the layers that were made.
func (r *keptReference) end(ctx context.Context, complete bool) (made []string, err error) {
	order := orderAbandon
	if complete {
		order = orderComplete
	}
	_ = r.receiving.send(message{Order: order}, nil) // an error is the reply's, too
	is, err := r.receiving.wait(context.WithoutCancel(ctx))
	if is == nil || len(is.Result) == 0 {
		return nil, err
	}
	return made, errors.Join(err, decode(is.Result, &made))
}

// SimpleSigningOnly says that signatures of other formats cannot be put here: the library's interface for them is its own.
func (r *keptReference) SimpleSigningOnly() {}

// Received returns the id of the image that was copied to the reference.
func (r *keptReference) Received() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.made
}

// Transport implements [types.ImageReference].
func (r *keptReference) Transport() types.ImageTransport { return istorage.Transport }

// StringWithinTransport implements [types.ImageReference].
func (r *keptReference) StringWithinTransport() string {
	text := fmt.Sprintf("[%s@%s+%s]", r.k.options.GraphDriverName, r.k.options.GraphRoot, r.k.options.RunRoot)
	if r.named == nil {
		return text + "@" + r.id
	}
	return text + r.named.String()
}

// DockerReference implements [types.ImageReference].
func (r *keptReference) DockerReference() reference.Named { return r.named }

// PolicyConfigurationIdentity implements [types.ImageReference].
func (r *keptReference) PolicyConfigurationIdentity() string { return r.StringWithinTransport() }

// PolicyConfigurationNamespaces implements [types.ImageReference].
func (r *keptReference) PolicyConfigurationNamespaces() []string { return nil }

var errWriteOnly = fmt.Errorf("an image that is being received can only be written: %w", imgsrc.ErrUnsupported)

// NewImage implements [types.ImageReference].
func (r *keptReference) NewImage(context.Context, *types.SystemContext) (types.ImageCloser, error) {
	return nil, errWriteOnly
}

// NewImageSource implements [types.ImageReference].
func (r *keptReference) NewImageSource(context.Context, *types.SystemContext) (types.ImageSource, error) {
	return nil, errWriteOnly
}

// DeleteImage implements [types.ImageReference].
func (r *keptReference) DeleteImage(context.Context, *types.SystemContext) error { return errWriteOnly }

// NewImageDestination implements [types.ImageReference]. A copy that is tried again has another destination.
func (r *keptReference) NewImageDestination(ctx context.Context, _ *types.SystemContext) (types.ImageDestination, error) {
	if r.used.Swap(true) {
		if err := r.k.call(ctx, methodAgain, manifestArgs{Receiving: r.receiving.number}, nil); err != nil {
			return nil, err
		}
	}
	return &keptDestination{r}, nil
}

// A keptDestination is a destination in the keeper.
type keptDestination struct{ r *keptReference }

var _ types.ImageDestination = (*keptDestination)(nil)

func (d *keptDestination) Reference() types.ImageReference { return d.r }

// Close leaves everything to the reference's end.
func (d *keptDestination) Close() error { return nil }

func (d *keptDestination) SupportedManifestMIMETypes() []string { return d.r.is.MIMETypes }
func (d *keptDestination) DesiredLayerCompression() types.LayerCompression {
	return d.r.is.Compression
}
func (d *keptDestination) AcceptsForeignLayerURLs() bool        { return d.r.is.ForeignURLs }
func (d *keptDestination) MustMatchRuntimeOS() bool             { return d.r.is.MatchesOS }
func (d *keptDestination) IgnoresEmbeddedDockerReference() bool { return d.r.is.IgnoresNames }
func (d *keptDestination) HasThreadSafePutBlob() bool           { return d.r.is.ThreadSafe }

func (d *keptDestination) SupportsSignatures(context.Context) error {
	return d.r.is.SignaturesErr.error()
}

func (d *keptDestination) PutBlob(ctx context.Context, stream io.Reader, info types.BlobInfo, _ types.BlobInfoCache, isConfig bool) (types.BlobInfo, error) {
	out, in, err := os.Pipe()
	if err != nil {
		return types.BlobInfo{}, err
	}
	defer in.Close()
	a, err := d.r.k.begin(methodPutBlob, blobArgs{Receiving: d.r.receiving.number, Blob: sendBlob(info), Config: isConfig}, out)
	out.Close()
	if err != nil {
		return types.BlobInfo{}, err
	}
	_, err = io.Copy(in, &ctxReader{ctx, stream})
	in.Close()
	if err != nil {
		_ = a.send(message{Order: orderAbandon}, nil)
		_, why := a.wait(context.WithoutCancel(ctx))
		if errors.Is(err, unix.EPIPE) { // the other end closed it first
			err = cmp.Or(why, err)
		}
		return types.BlobInfo{}, err
	}
	if err := a.send(message{Order: orderComplete}, nil); err != nil {
		return types.BlobInfo{}, err
	}
	r, err := a.wait(ctx)
	if err != nil {
		return types.BlobInfo{}, err
	}
	var reply blobReply
	if err := decode(r.Result, &reply); err != nil {
		return types.BlobInfo{}, err
	}
	return reply.Blob.info()
}

func (d *keptDestination) TryReusingBlob(ctx context.Context, info types.BlobInfo, _ types.BlobInfoCache, substitute bool) (bool, types.BlobInfo, error) {
	var reply blobReply
	err := d.r.k.call(ctx, methodReuseBlob, blobArgs{Receiving: d.r.receiving.number, Blob: sendBlob(info), Substitute: substitute}, &reply)
	if err != nil || !reply.Reused {
		return false, types.BlobInfo{}, err
	}
	got, err := reply.Blob.info()
	return err == nil, got, err
}

func (d *keptDestination) PutManifest(ctx context.Context, text []byte, instance *digest.Digest) error {
	return d.r.k.call(ctx, methodPutManifest, d.about(manifestArgs{Text: text}, instance), nil)
}

func (d *keptDestination) PutSignatures(ctx context.Context, signatures [][]byte, instance *digest.Digest) error {
	if len(signatures) == 0 {
		return nil
	}
	return d.r.k.call(ctx, methodPutSignatures, d.about(manifestArgs{Signatures: signatures}, instance), nil)
}

func (d *keptDestination) about(a manifestArgs, instance *digest.Digest) manifestArgs {
	a.Receiving = d.r.receiving.number
	if instance != nil {
		a.Instance = *instance
	}
	return a
}

func (d *keptDestination) Commit(ctx context.Context, top types.UnparsedImage) error {
	text, mediaType, err := top.Manifest(ctx)
	if err != nil {
		return err
	}
	var id string
	if err := d.r.k.call(ctx, methodCommit, manifestArgs{Receiving: d.r.receiving.number, Text: text, Type: mediaType}, &id); err != nil {
		return err
	}
	d.r.mu.Lock()
	defer d.r.mu.Unlock()
	d.r.made = id
	return nil
}
