package ops

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/oci/layout"
	"go.podman.io/image/v5/types"
	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
)

// A Receiver is a source that images can be put into: where pull and load write to. It is found by its methods, as
// [imgsrc.Tagger] is; the interface is here because it speaks of the copying library's references.
type Receiver interface {
	imgsrc.Source
	// CheckName returns name as this source stores it. Error: imgsrc.ErrInvalid if it cannot be a name here.
	CheckName(name string) (string, error)
	// MayReceive says why no image can be put here; nil if one can, as far as that is known before it is tried.
	MayReceive() error
	// Receive has copy copy one image to the reference that it is given, under a name as CheckName returns it, or one by
	// digest; without a name by its id. When it returns without an error the image is in the source's listing, whole. With
	// one nothing of it is, and what was written for it is gone, or is taken away by the next Receive. Errors: those of copy;
	// imgsrc.ErrUnsupported and imgsrc.ErrReadOnly; the system's.
	Receive(ctx context.Context, name, id string, copy func(to types.ImageReference) error) error
}

// An indexReceiver keeps an index apart from its images, which are put there one by one before.
type indexReceiver interface {
	Receiver
	// AddIndex adds an index of this text. Images are the ids of those of its images that are here, by the digests of
	// their manifests; the others are below from, a repository with its transport. It returns the index's own id.
	AddIndex(ctx context.Context, name string, text []byte, images map[digest.Digest]string, from string) (id string, err error)
}

// A manifestReceiver can keep an image under another manifest than the one that is copied, of the same config and layers.
type manifestReceiver interface {
	Receiver
	ReceiveAs(ctx context.Context, name, id string, text []byte, copy func(to types.ImageReference) error) error
}

// A layoutSource is an OCI layout in a directory, to which images are added as a push adds them.
type layoutSource interface {
	imgsrc.Tagger
	LayoutDir() string
	// IsIn says whether it is in this directory.
	IsIn(dir fs.FileInfo) bool
	// VerifyBlob reads a blob, unless it is known to be what it should be, and returns its size. size is how many bytes it
	// must have, -1 if any number will do. Errors: imgsrc.ErrDamaged if it is not, with fs.ErrNotExist if it is missing;
	// ctx's; those of reading.
	VerifyBlob(ctx context.Context, d digest.Digest, size int64) (int64, error)
}

// receiver returns the first source of the mount that takes images. Error: why none does.
func (o *Ops) receiver() (Receiver, error) {
	var refused error
	for _, src := range o.opt.Catalog.Sources() {
		r, ok := src.(Receiver)
		if l, is := src.(layoutSource); is {
			r, ok = &layoutReceiver{l, o.log}, true
		}
		if !ok {
			continue
		}
		err := r.MayReceive()
		if err == nil {
			return r, nil
		}
		if refused == nil {
			refused = fmt.Errorf("%s takes no image: %w", src.Name(), err)
		}
	}
	if refused != nil {
		return nil, refused
	}
	return nil, fail(imgsrc.ErrUnsupported, "no source of this mount takes images: mount a containers-storage or an OCI layout as well")
}

// A layoutReceiver puts images into the layout of a source.
type layoutReceiver struct {
	layoutSource
	log *slog.Logger
}

// isLayout says whether what a source keeps is an OCI layout's: also what is no image, and no signatures apart from it.
func isLayout(to Receiver) bool {
	_, is := to.(*layoutReceiver)
	return is
}

func (r *layoutReceiver) MayReceive() error {
	err := unix.Access(r.LayoutDir(), unix.W_OK)
	if errors.Is(err, unix.EROFS) {
		err = fmt.Errorf("%w: %w", imgsrc.ErrReadOnly, err)
	}
	return err
}

// CheckName gives a name that names no registry the one that it has everywhere else; a layout itself would take any.
func (r *layoutReceiver) CheckName(name string) (string, error) {
	if isShort(name) {
		name = "localhost/" + name
	}
	named, err := reference.ParseDockerRef(name)
	if err != nil {
		return "", fail(imgsrc.ErrInvalid, "%s is not a reference: %s", quote(name), err)
	}
	return named.String(), nil
}

func (r *layoutReceiver) Receive(ctx context.Context, name, _ string, copy func(to types.ImageReference) error) (err error) {
	dir := r.LayoutDir()
	if err := noColon(dir); err != nil {
		return err
	}
	if _, err := layout.NewReference("/", name); err != nil {
		return fail(imgsrc.ErrInvalid, "%s cannot be the name of an image in a layout", quote(name))
	}
	to := &layoutDir{dir, name}
	made, err := to.stageWith(&present{layout: r, log: r.log}, r.log)
	if made.discard != nil {
		defer func() { made.discard(err) }()
	}
	if err != nil {
		return err
	}
	return copyWhole(func() error { return copy(made.ref) }, func() error { return made.commit(ctx) })
}

// idOf is the id in what the library says of an image that it has put into a store: "[driver@root+run]@id". Empty if it
// says none.
func idOf(resolved types.ImageReference) string {
	if resolved == nil {
		return ""
	}
	text := resolved.StringWithinTransport()
	id := text[strings.LastIndexByte(text, '@')+1:]
	if digest.NewDigestFromEncoded(digest.SHA256, id).Validate() != nil {
		return ""
	}
	return id
}
