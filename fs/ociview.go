package fs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/export"
)

// The entries of viewOCI. They keep their numbers.
const (
	ociRoot = iota
	ociLayout
	ociIndex
	ociBlobs
	ociSHA256
	ociSHA384
	ociSHA512
)

// ociAlgorithms are the directories of blobs/, by their entries. The first is always there, the others if they have something in
// them.
var ociAlgorithms = map[uint32]digest.Algorithm{ociSHA256: digest.SHA256, ociSHA384: digest.SHA384, ociSHA512: digest.SHA512}

// ociDir is the directory of an algorithm's blobs.
func ociDir(a digest.Algorithm) node {
	for entry, algorithm := range ociAlgorithms {
		if algorithm == a {
			return makeNode(0, viewOCI, entry)
		}
	}
	return ociNode
}

var (
	ociNode = makeNode(0, viewOCI, ociRoot)
	ociIno  = topSeed.nth(topOCI)
)

// epoch is the modification time of all in oci/ that never changes: one for all images that have the same blob.
var epoch = time.Unix(0, 0)

// ociView is oci/ and the files and directories in it that have names of their own.
type ociView struct{ t *ociTree }

func ociEntryIno(entry uint32) ino {
	if entry == ociRoot {
		return ociIno
	}
	return ociIno.nth(uint64(entry))
}

// ready returns the state of the tree; with cheap set only one that is there.
func (t *ociTree) ready(ctx context.Context, cheap bool) (*ociState, error) {
	if !cheap {
		return t.current(ctx)
	}
	if s := t.state.Load(); s.isFor(t.f.state.Load().snap) {
		return s, nil
	}
	return nil, errCostly
}

func (v ociView) attr(ctx context.Context, n node, cheap bool) (attr, error) {
	i := ociEntryIno(n.entry())
	switch n.entry() {
	case ociRoot:
		return dirAttr(i, epoch, false), nil
	case ociLayout:
		return fileAttr(i, int64(len(export.LayoutFile)), epoch), nil
	}
	s, err := v.t.ready(ctx, cheap)
	if err != nil {
		return attr{}, err
	}
	if n.entry() == ociIndex {
		return fileAttr(i, int64(len(s.index)), s.at).asLive(), nil
	}
	if n.entry() > ociSHA512 {
		return attr{}, syscall.ENOENT
	}
	return dirAttr(i, s.at, true), nil
}

// children are the entries of oci/ and of blobs/.
func (v ociView) children(ctx context.Context, dir node) ([]dirent, error) {
	entry := func(n uint32, name string, mode uint32) dirent {
		return dirent{name: name, node: makeNode(0, viewOCI, n), ino: ociEntryIno(n), mode: mode, cookie: uint64(n)}
	}
	switch dir.entry() {
	case ociRoot:
		return []dirent{
			entry(ociLayout, v1.ImageLayoutFile, syscall.S_IFREG),
			entry(ociIndex, v1.ImageIndexFile, syscall.S_IFREG),
			entry(ociBlobs, v1.ImageBlobsDir, syscall.S_IFDIR),
		}, nil
	case ociBlobs:
		s, err := v.t.current(ctx)
		if err != nil {
			return nil, err
		}
		all := []dirent{entry(ociSHA256, digest.SHA256.String(), syscall.S_IFDIR)}
		for _, n := range []uint32{ociSHA384, ociSHA512} {
			if v.t.has(s, ociAlgorithms[n]) {
				d := entry(n, ociAlgorithms[n].String(), syscall.S_IFDIR)
				d.keep = keepMoment
				all = append(all, d)
			}
		}
		return all, nil
	}
	return nil, syscall.ENOTDIR
}

// has says whether a state has a blob whose digest is of an algorithm other than SHA-256.
func (t *ociTree) has(s *ociState, algorithm digest.Algorithm) bool {
	t.numbers.mu.RLock()
	defer t.numbers.mu.RUnlock()
	for n, d := range t.numbers.long {
		if _, ok := s.file(n); ok && d.Algorithm() == algorithm {
			return true
		}
	}
	return false
}

func (v ociView) lookup(ctx context.Context, dir node, name string) (found, error) {
	if algorithm, ok := ociAlgorithms[dir.entry()]; ok {
		return v.lookupBlob(ctx, digest.NewDigestFromEncoded(algorithm, name))
	}
	all, err := v.children(ctx, dir)
	if err != nil {
		return found{}, err
	}
	i := slices.IndexFunc(all, func(d dirent) bool { return d.name == name })
	if i < 0 {
		return found{}, syscall.ENOENT
	}
	return found{node: all[i].node, keep: all[i].keep}, nil
}

func (v ociView) lookupBlob(ctx context.Context, d digest.Digest) (found, error) {
	if d.Validate() != nil {
		return found{}, syscall.ENOENT
	}
	s, err := v.t.current(ctx)
	if err != nil {
		return found{}, err
	}
	n := v.t.numbers.find(d)
	if _, ok := s.file(n); !ok {
		return found{}, syscall.ENOENT
	}
	return found{node: makeNode(0, viewOCIBlobs, n), keep: keepMoment}, nil
}

func (v ociView) list(ctx context.Context, dir node, from uint64, emit func(dirent) bool) error {
	if algorithm, ok := ociAlgorithms[dir.entry()]; ok {
		return v.listBlobs(ctx, algorithm, from, emit)
	}
	all, err := v.children(ctx, dir)
	if err != nil {
		return err
	}
	for _, d := range all {
		if d.cookie > from && !emit(d) {
			return nil
		}
	}
	return nil
}

// listBlobs lists in the order in which the mount met the blobs, which one that comes or goes does not change.
func (v ociView) listBlobs(ctx context.Context, algorithm digest.Algorithm, from uint64, emit func(dirent) bool) error {
	s, err := v.t.current(ctx)
	if err != nil {
		return err
	}
	for _, file := range s.from(from) {
		d, ok := v.t.numbers.digest(file.number)
		if !ok || d.Algorithm() != algorithm {
			continue
		}
		e := dirent{name: d.Encoded(), node: makeNode(0, viewOCIBlobs, file.number), ino: blobIno(d), mode: syscall.S_IFREG, cookie: uint64(file.number), keep: keepMoment}
		if !emit(e) {
			return nil
		}
	}
	return nil
}

func (v ociView) read(ctx context.Context, n node, dest []byte, off int64) (fuse.ReadResult, error) {
	switch n.entry() {
	case ociLayout:
		return readBytes([]byte(export.LayoutFile), dest, off), nil
	case ociIndex:
		s, err := v.t.current(ctx)
		if err != nil {
			return nil, err
		}
		return readBytes(s.index, dest, off), nil
	}
	return nil, syscall.EISDIR
}

func (ociView) readlink(context.Context, node) ([]byte, error) { return nil, syscall.EINVAL }

// ociBlobsView is the files in oci/blobs/sha256. A blob's entry is its number.
type ociBlobsView struct{ t *ociTree }

func blobIno(d digest.Digest) ino { return ociEntryIno(ociBlobs).under(d.String()) }

func (v ociBlobsView) attr(_ context.Context, n node, _ bool) (attr, error) {
	file, ok := v.t.state.Load().file(n.entry())
	d, known := v.t.numbers.digest(n.entry())
	if !ok || !known {
		return attr{}, imgsrc.ErrNotFound
	}
	return fileAttr(blobIno(d), file.size, epoch), nil
}

func (v ociBlobsView) read(ctx context.Context, n node, dest []byte, off int64) (fuse.ReadResult, error) {
	file, ok := v.t.state.Load().file(n.entry())
	d, known := v.t.numbers.digest(n.entry())
	if !ok || !known {
		return nil, imgsrc.ErrNotFound
	}
	if file.kind != export.Layer && file.kind != export.Diff {
		b, err := v.t.document(ctx, n.entry(), d, file)
		if err != nil {
			return nil, fmt.Errorf("reading blob %s of oci/: %w", d, err)
		}
		return readBytes(b, dest, off), nil
	}
	c, err := v.t.f.contents.get(contentKey{layer: int(n.entry()), kind: contentOCI}, func() (imgsrc.Content, error) {
		if file.kind == export.Diff {
			return file.of.img.Diff(ctx, int(file.layer))
		}
		return file.of.img.Blob(ctx, d)
	})
	if err != nil {
		return nil, fmt.Errorf("reading blob %s of oci/: %w", d, err)
	}
	defer c.release()
	at := earlyPlace{n, ociDir(d.Algorithm()), d.Encoded()}
	k, err := v.t.f.readEarly(ctx, at, dest, off, c.it.ReadAt)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("reading blob %s of oci/ at %d: %w", d, off, err)
	}
	return fuse.ReadResultData(dest[:k]), nil
}

// document returns a manifest or a config: the source's bytes, or what is made of them.
func (t *ociTree) document(ctx context.Context, n uint32, d digest.Digest, file ociFile) ([]byte, error) {
	if b, ok := t.docs.get(n); ok {
		return b, nil
	}
	read := file.of.img.Manifest
	if file.kind == export.Config {
		read = file.of.img.Config
	}
	b, err := read(ctx)
	if err != nil && !errors.Is(err, imgsrc.ErrAbsent) {
		return nil, err
	}
	if err != nil || d.Algorithm().FromBytes(b) != d {
		res, err := t.f.shared(ctx, fmt.Sprintf("oci %d", n), func(ctx context.Context) (any, error) { return t.remake(ctx, d, file) })
		if err != nil {
			return nil, err
		}
		b = res.([]byte)
	}
	t.docs.put(n, b, int64(len(b)))
	return b, nil
}

// remake makes a document that no source has.
func (t *ociTree) remake(ctx context.Context, d digest.Digest, file ociFile) ([]byte, error) {
	made, err := t.again(ctx, file.of)
	if err != nil {
		return nil, err
	}
	for _, b := range made.Files() {
		if b.Desc.Digest != d {
			continue
		}
		c, err := b.Open(ctx)
		if err != nil {
			return nil, err
		}
		defer c.Close()
		text := make([]byte, b.Desc.Size)
		if n, err := c.ReadAt(ctx, text, 0); n < len(text) {
			return nil, err
		}
		return text, nil
	}
	return nil, fmt.Errorf("the image became another: %w", imgsrc.ErrDamaged)
}

func (ociBlobsView) lookup(context.Context, node, string) (found, error) {
	return found{}, syscall.ENOTDIR
}

func (ociBlobsView) list(context.Context, node, uint64, func(dirent) bool) error {
	return syscall.ENOTDIR
}

func (ociBlobsView) readlink(context.Context, node) ([]byte, error) { return nil, syscall.EINVAL }
