package imgsrc

import (
	"context"
	"io"

	"github.com/opencontainers/go-digest"
)

// Files is one layer as the entries of its tar, wherever their bodies lie: in a tar, or as files on a disk. Its methods
// may be called from several goroutines at once.
type Files interface {
	// Key names what Entries says, for whoever keeps it: two Files with one key say the same.
	Key() FilesKey

	// Entries calls emit for each entry, in the tar's order. It has read and understood all of them when it returns nil,
	// and not before. What emit is given is valid until it returns; its error ends the listing and is returned. Errors:
	// ErrDamaged if the layer is not what its digest says, or not a tar.
	Entries(ctx context.Context, emit func(*File) error) error

	// Root returns the first entry if that is for the layer's root directory, and else nil. It costs no more than reading
	// the beginning of the layer.
	Root(ctx context.Context) (*File, error)

	// ReadBody reads from the body of an entry of this layer, as Content.ReadAt does.
	ReadBody(ctx context.Context, b Body, p []byte, off int64) (n int, err error)

	io.Closer
}

// Partial is implemented by Files whose bodies are fetched when they are read.
type Partial interface {
	Files
	// Near says whether a body can be read without fetching anything. It does no I/O, and may be wrong.
	Near(b Body) bool
}

// A FilesKey names the entries of a layer.
type FilesKey struct {
	Form   string        // how bodies are found: a word of [a-z]
	Digest digest.Digest // of the layer
	// Place tells the layer from the same one elsewhere, and from what lay there before, if Entries goes by something
	// that is not verified against the digest. Empty if Entries is the same wherever the layer lies.
	Place string
	// Transient is set if the key means something in this process only.
	Transient bool
}

// A File is one entry of a layer: a tar header, with the extensions of PAX and GNU taken in.
type File struct {
	Name    string // as the tar has it: it may begin with / or ./, and need not be UTF-8
	Type    byte   // the type flag: '0' regular, '1' hard link, '2' symbolic link, '3' character device, '4' block device, '5' directory, '6' FIFO
	Link    string // the target of a link
	Mode    uint32 // the permission bits, with set-user-id, set-group-id and sticky
	UID     uint32
	GID     uint32
	Size    int64 // bytes of a regular file, holes included
	Sec     int64 // when it was modified, since 1970
	Nsec    uint32
	Major   uint32 // of a device
	Minor   uint32
	Xattrs  []Xattr  // extended attributes, sorted by name
	Extents []Extent // where a sparse file has data, in order; its body is these, one after the other. nil: not sparse

	// Stored is the length of the body, and Where tells ReadBody where it lies: what that means is the form's business.
	Stored int64
	Where  uint64
}

// An Xattr is an extended attribute.
type Xattr struct{ Name, Value string }

// An Extent is a run of data in a sparse file, in bytes.
type Extent struct{ Off, Len int64 }

// A Body is the bytes that a regular file has in its layer.
type Body struct {
	Path  string // the file, from the layer's root: clean, without a leading slash
	Size  int64  // bytes: the File's Stored
	Where uint64 // the File's
}
