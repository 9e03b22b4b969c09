package storage

import (
	"context"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/image/v5/pkg/blobinfocache/none"
	"go.podman.io/image/v5/pkg/compression"
	"go.podman.io/image/v5/types"

	"github.com/imgfs/imgfs/imgsrc"
)

// What follows has the library copy an image to a destination in the keeper: the copy runs outside, with its network,
// credentials and policy, and each of the destination's methods is a call. The bytes of a blob go through a pipe.

// The methods of a destination. Their arguments begin with the number of the call that receives.
const (
	methodPutBlob       = "putblob" // with a pipe for the bytes
	methodReuseBlob     = "reuseblob"
	methodPutManifest   = "putmanifest"
	methodPutSignatures = "putsignatures"
	methodCommit        = "commit"
	methodAgain         = "again" // another destination, to begin anew
)

type receiveArgs struct {
	Name, ID string
	Text     []byte // the manifest to keep; nil: its own
}

// A destinationIs is what is the same for all calls of a destination.
type destinationIs struct {
	MIMETypes                            []string
	Compression                          types.LayerCompression
	ForeignURLs, MatchesOS, IgnoresNames bool
	ThreadSafe                           bool
	SignaturesErr                        *sentError
}

type blobArgs struct {
	Receiving  uint64
	Blob       sentBlob
	Config     bool // it is one
	Substitute bool // another blob will do
}

type blobReply struct {
	Reused bool
	Blob   sentBlob
}

type manifestArgs struct {
	Receiving  uint64
	Text       []byte
	Instance   digest.Digest // empty: the main one
	Signatures [][]byte
	Type       string // of the text
}

// A sentBlob is a types.BlobInfo as it is sent.
type sentBlob struct {
	Digest      digest.Digest
	Size        int64
	URLs        []string
	Annotations map[string]string
	MediaType   string
	Operation   types.LayerCompression
	Algorithm   string
	Crypto      types.LayerCrypto
}

func sendBlob(b types.BlobInfo) sentBlob {
	s := sentBlob{b.Digest, b.Size, b.URLs, b.Annotations, b.MediaType, b.CompressionOperation, "", b.CryptoOperation}
	if b.CompressionAlgorithm != nil {
		s.Algorithm = b.CompressionAlgorithm.Name()
	}
	return s
}

func (s sentBlob) info() (types.BlobInfo, error) {
	b := types.BlobInfo{
		Digest: s.Digest, Size: s.Size, URLs: s.URLs, Annotations: s.Annotations, MediaType: s.MediaType,
		CompressionOperation: s.Operation, CryptoOperation: s.Crypto,
	}
	if s.Algorithm == "" {
		return b, nil
	}
	a, err := compression.AlgorithmByName(s.Algorithm)
	b.CompressionAlgorithm = &a
	return b, err
}

// A session is an image that is being received.
type session struct {
	ref  types.ImageReference
	to   types.ImageDestination
	made func() string // the id of the image
}

// receive opens a destination, and keeps it open until the parent says that the copy is complete. It returns the layers
// that were made, which are the parent's to remove.
func (s *keeping) receive(ctx context.Context, c *call) (made []string, err error) {
	var a receiveArgs
	if err := decode(c.args, &a); err != nil {
		return nil, err
	}
	return s.src.receive(ctx, a.Name, a.ID, a.Text, func(ref types.ImageReference) (err error) {
		to, err := ref.NewImageDestination(ctx, nil)
		if err != nil {
			return err
		}
		into := &session{ref: ref, to: to}
		defer func() { err = errors.Join(err, into.to.Close()) }()
		if r, ok := ref.(interface{ Received() string }); ok {
			into.made = r.Received
		}
		s.mu.Lock()
		c.into = into
		s.mu.Unlock()
		is, err := encode(destinationIs{
			to.SupportedManifestMIMETypes(), to.DesiredLayerCompression(), to.AcceptsForeignLayerURLs(), to.MustMatchRuntimeOS(),
			to.IgnoresEmbeddedDockerReference(), to.HasThreadSafePutBlob(), sent(to.SupportsSignatures(ctx)),
		})
		if err != nil {
			return err
		}
		c.answer(answer{Number: c.number, Ready: true, Result: is}, nil)
		select {
		case <-c.complete:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	})
}

// sessionMethods are those of a destination, here on the side of the store.
var sessionMethods = map[string]func(ctx context.Context, c *call, to *session) (any, error){
	methodPutBlob: func(ctx context.Context, c *call, to *session) (any, error) {
		a, info, err := blobOf(c)
		if err != nil {
			return nil, err
		}
		got, err := to.to.PutBlob(ctx, &wholeReader{ctx, c}, info, none.NoCache, a.Config)
		return blobReply{Blob: sendBlob(got)}, err
	},
	methodReuseBlob: func(ctx context.Context, c *call, to *session) (any, error) {
		a, info, err := blobOf(c)
		if err != nil {
			return nil, err
		}
		ok, got, err := to.to.TryReusingBlob(ctx, info, none.NoCache, a.Substitute)
		return blobReply{ok, sendBlob(got)}, err
	},
	methodPutManifest: func(ctx context.Context, c *call, to *session) (any, error) {
		var a manifestArgs
		if err := decode(c.args, &a); err != nil {
			return nil, err
		}
		return nil, to.to.PutManifest(ctx, a.Text, instanceOf(a))
	},
	methodPutSignatures: func(ctx context.Context, c *call, to *session) (any, error) {
		var a manifestArgs
		if err := decode(c.args, &a); err != nil {
			return nil, err
		}
		return nil, to.to.PutSignatures(ctx, a.Signatures, instanceOf(a))
	},
	methodAgain: func(ctx context.Context, _ *call, to *session) (any, error) {
		next, err := to.ref.NewImageDestination(ctx, nil)
		if err != nil {
			return nil, err
		}
		last := to.to
		to.to = next
		return nil, last.Close()
	},
	methodCommit: func(ctx context.Context, c *call, to *session) (any, error) {
		var a manifestArgs
		if err := decode(c.args, &a); err != nil {
			return nil, err
		}
		if err := to.to.Commit(ctx, &topLevel{text: a.Text, mediaType: a.Type}); err != nil {
			return nil, err
		}
		return to.made(), nil
	},
}

func (s *keeping) inSession(ctx context.Context, c *call, do func(ctx context.Context, c *call, to *session) (any, error)) (any, error) {
	var of struct{ Receiving uint64 } // what all their arguments have
	if err := decode(c.args, &of); err != nil {
		return nil, err
	}
	s.mu.Lock()
	receiving := s.calls[of.Receiving]
	s.mu.Unlock()
	if receiving == nil || receiving.into == nil {
		return nil, fmt.Errorf("no image is received by the number %d: %w", of.Receiving, imgsrc.ErrInvalid)
	}
	return do(ctx, c, receiving.into)
}

func blobOf(c *call) (a blobArgs, info types.BlobInfo, err error) {
	if err = decode(c.args, &a); err == nil {
		info, err = a.Blob.info()
	}
	return a, info, err
}

func instanceOf(a manifestArgs) *digest.Digest {
	if a.Instance == "" {
		return nil
	}
	return &a.Instance
}

// topLevel is what an image or index was before one was chosen of it: all that a destination asks of it is its manifest.
type topLevel struct {
	types.UnparsedImage
	text      []byte
	mediaType string
}

func (t *topLevel) Manifest(context.Context) ([]byte, string, error) {
	if t.mediaType == "" {
		t.mediaType = manifest.GuessMIMEType(t.text)
	}
	return t.text, t.mediaType, nil
}
