package imgsrc

import (
	"context"
	"io"
	"time"

	"github.com/opencontainers/go-digest"
)

// A Source is one place that images come from: a store, a layout, an archive, a daemon, a registry. Its methods may be
// called from several goroutines at once.
type Source interface {
	// Name is the source as a person would type it, with its transport: "oci:/srv/layout".
	Name() string

	// List returns all that is there now. It reads metadata only, never a layer. What is damaged is in the listing as
	// far as it can be named, with the rest of the listing intact. Errors: ErrNotFound if the source is gone, ErrDamaged
	// if its index cannot be read. They name the source.
	List(ctx context.Context) (*Listing, error)

	// Stamp is a value that differs from an earlier one as soon as List would return something else. It costs a stat(2)
	// or two and never fails: what cannot be looked at has a stamp of its own. A source that cannot tell returns the same
	// value always and relies on Watch.
	Stamp() Stamp

	// Watch calls changed after each change of the listing, perhaps also without one, until ctx ends. It returns nil when
	// ctx ends, and an error if this source cannot be watched.
	Watch(ctx context.Context, changed func()) error

	io.Closer
}

// A Stamp stands for one state of a source's listing. Stamps are compared with ==.
type Stamp string

// A Listing is what a source held at one moment.
type Listing struct {
	// Images are in the source's own order, one for each manifest, or for each that it was made from (Desc.Original). Two of
	// them may have the same id (two manifests over one config): the first then stands for the image.
	Images []Listed
	// ModTime is when the source says that its listing last changed; zero if it does not record it.
	ModTime time.Time
	// Problems are entries that could not be listed as images, one error each, for the log.
	Problems []error
}

// Listed is an image with what the source says about it that can change while the image stays the same.
type Listed struct {
	Image
	// Names are the image's names, as the source stores them, in its order: full references in containers-storage
	// ("docker.io/library/nginx:1.27"), whatever somebody typed in a layout.
	Names []string
	// RemoteNames are the full references under which a registry has the image.
	RemoteNames []string
	// RepoDigests are names by digest ("docker.io/library/nginx@sha256:...") that the source has recorded.
	RepoDigests []string
	// Containers are the ids of the containers that were made from this image, where the source knows them.
	Containers []string
	// RecordedDigest is what the source itself says is the image's digest, which is another manifest's if the image has
	// several; empty if it says nothing of its own.
	RecordedDigest digest.Digest
	// NamesHistory are the names that the image has had, where the source records them.
	NamesHistory []string
	// Layers are keys of the layers, base first. Within one source equal keys are equal layers. They only serve to find
	// images that may have to do with each other.
	Layers []string
	// Asked says that the source has this image only because somebody has asked it for a name, and not because who mounted
	// it meant it.
	Asked bool
	// Unpacked is how many bytes the image takes in the source, layers and all, which is what podman calls its size; 0
	// where the source keeps no unpacked layers.
	Unpacked int64
}

// An Asker is a source that lists only some of what its indexes list, and has more of it when it is asked.
type Asker interface {
	Source
	// Ask asks for what the index lists under d, which is in the listing from then on. Errors: ErrNotFound if it is not there, or
	// the listing has no such index; those of the network; it does not take longer than ten seconds.
	Ask(ctx context.Context, index Desc, d digest.Digest) error
	// AskAll asks for all that is listed by the indexes of the listing, which has it from then on, also of indexes that come later.
	// What is not there is no error. Errors: those of the network, which mean that it cannot be told what is there.
	AskAll(ctx context.Context) error
	// Lacks says whether it was asked for what the index lists under d, not long ago, and does not have it. It does no I/O.
	Lacks(index Desc, d digest.Digest) bool
}

// An Image is one manifest and what it points to. It never changes. Its methods may be called from several goroutines
// at once; each of them verifies what it returns, and fails with ErrNotFound when the image has been removed from its
// source since it was listed, ErrDamaged when the source's bytes are not the ones that the digest or the size promises.
type Image interface {
	// Desc is what the listing knows. It does no I/O.
	Desc() Desc

	// Manifest returns the manifest's exact bytes, at most MaxManifest.
	Manifest(ctx context.Context) ([]byte, error)

	// Config returns the config blob's exact bytes, at most MaxManifest. Error: ErrAbsent if the manifest names no config
	// (an index, schema 1).
	Config(ctx context.Context) ([]byte, error)

	// Blob opens the bytes that the manifest names by d, one of its layers' digests. Error: ErrAbsent if this source does
	// not keep layers in that form (containers-storage and compressed layers).
	Blob(ctx context.Context, d digest.Digest) (Content, error)

	// Diff opens layer n, counted from 0 at the base, as an uncompressed tar: the bytes whose digest is the layer's diff
	// id. Errors: ErrAbsent if layer n cannot be had as these bytes, or there is no layer n; ErrUnsupported if its
	// media type or compression is unknown or it is encrypted.
	Diff(ctx context.Context, n int) (Content, error)

	// Files opens layer n as entries and their bodies. Errors: as with Diff, but a source can have the files of a layer
	// without having its tar.
	Files(ctx context.Context, n int) (Files, error)
}

// A Fetcher is an image whose layers are brought into the cache when something in them is read: from a registry, or out of
// all that an engine has of the image.
type Fetcher interface {
	Image
	// Local says whether layer n can be read without fetching anything. It does no I/O beyond a look at the cache.
	Local(n int) bool
}

// A Remote is a Fetcher in a registry. Opening one of its layers as Blob, Diff or Files fetches nothing.
type Remote interface {
	Fetcher
	// Lacks is how many bytes of the layers, as the manifest names them, have to be fetched as a whole before the files of
	// all of them can be read: not those of layers that are here, nor of those whose files can be had one by one. Not ok
	// if that is not known, or one of them cannot be read at all. It does no I/O beyond a look at the cache.
	Lacks() (bytes int64, ok bool)
}

// A Peeker is an image whose layers can be looked at where they lie.
type Peeker interface {
	Image
	// Peek reads the first bytes of layer n, as the manifest names it, into p; fewer if it has not as many. They are not
	// verified. Errors: as with Blob.
	Peek(ctx context.Context, n int, p []byte) (int, error)
}

// Converted is an image, or an index, that may have been made from another form of it, whose manifest is kept beside its own:
// containers-storage keeps no compressed layers, so what leaves it has other layers than the manifest that it was pulled with.
type Converted interface {
	Image
	// Original returns the exact bytes of that manifest, at most MaxManifest. It is over the same config, and has as many layers;
	// an index lists, by the digests that they had, all that this one lists. Error: ErrAbsent if there is none.
	Original(ctx context.Context) ([]byte, error)
}

// MaxManifest is how many bytes a manifest, an index or a config may have (the distribution specification asks
// registries to take at least this much).
const MaxManifest = 4 << 20

// Desc identifies an image.
type Desc struct {
	// ID is 64 lower-case hex digits: what podman shows as the image's id. Normally the hash of the config.
	ID string
	// Digest is the manifest's digest.
	Digest digest.Digest
	// MediaType is the manifest's media type: what the manifest itself says where it does, else what the source says.
	MediaType string
	// Size is the manifest's length in bytes.
	Size int64
	// Config is the config's digest; empty where there is none.
	Config digest.Digest
	// Subject is the digest of the manifest that this one is about; empty if there is none.
	Subject digest.Digest
	// Lists are the digests in an index, in its order; nil for what is none.
	Lists []digest.Digest
	// Original is the digest, as a file, of the manifest that this one was made from, where that is kept beside it (see Converted);
	// empty if there is none. What is made of two manifests can be one: then it is listed twice. An index has its own digest here
	// if it has not lost the images that are not there: it was so where it is from.
	Original digest.Digest
	// Damaged says why the manifest or config cannot be read, if that is known from listing. The image is then listed
	// with what there is.
	Damaged error
}

// Content is a run of bytes at random access. Its methods may be called from several goroutines at once, and return
// with ctx's error when ctx ends; work that they started for others goes on.
type Content interface {
	// Size is the exact number of bytes. Where that is costly to know (a compressed layer's tar), the first call pays.
	Size(ctx context.Context) (int64, error)
	// ReadAt reads as io.ReaderAt does: n < len(p) only with an error, io.EOF at the end. Bytes that fail verification
	// are ErrDamaged, and never returned, but to those who have asked for them by WithEarly.
	ReadAt(ctx context.Context, p []byte, off int64) (n int, err error)
	io.Closer
}

// A Tagger is a source whose images' names can be changed.
type Tagger interface {
	Source
	// CheckName returns name as this source stores it ("web" becomes "localhost/web:latest" in containers-storage).
	// Error: ErrInvalid if it cannot be a name here.
	CheckName(name string) (string, error)
	// Tag gives the image with this id the names in add, taking each from whatever image had it, and removes those in
	// remove from it. Another reader of the source sees names added together and removed together; a source may do the one
	// after the other. The names are as CheckName returns them. Errors: ErrNotFound if the image is gone, or does not have a
	// name that is to be removed; ErrReadOnly; ErrNoSpace from the system.
	Tag(ctx context.Context, img Desc, add, remove []string) error
}

// A Remover is a source that images can be removed from.
type Remover interface {
	Source
	// Remove takes an image out of the source, with all its names. manifests are those that the source lists under the
	// image's id, and names the names that they have: an image that has got another one meanwhile is left alone. What other
	// images need of it stays. Somebody who reads the image may be cut off with ErrNotFound. Errors: ErrInUse if a container
	// was made from it, another image is not whole without it, or it has a name beside those; ErrNotFound if it is gone;
	// ErrReadOnly.
	Remove(ctx context.Context, manifests []Desc, names []string) error
	// Intermediates says whether an image without a name is kept for those that were made from it, and is to go with the
	// last of them.
	Intermediates() bool
}
