package fs

import (
	"context"
	"slices"
	"strings"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
)

// Manifests that share a config share the image's directory: the first is manifest.json, the others lie beside it under
// the name of their digest. They come and go with the sources' listings, so each keeps the place at which it was first
// seen.

const manifestCookie = 1 << 20 // behind the rows of the table

func manifestName(d digest.Digest) string {
	return "manifest-" + strings.ReplaceAll(d.String(), ":", "-") + ".json"
}

// place returns the place of a further manifest, which it takes if it has none.
func (img *image) place(d digest.Digest) uint32 {
	img.mu.Lock()
	defer img.mu.Unlock()
	i := slices.Index(img.others, d.String())
	if i < 0 {
		i = len(img.others)
		img.others = append(img.others, d.String())
	}
	return uint32(i)
}

// further returns the manifests of an entry beside the first, each digest once. One that an engine would have to save the image
// for, to say what it is, has no digest as yet.
func further(e *imgsrc.Entry) []imgsrc.Held {
	var all []imgsrc.Held
	seen := map[digest.Digest]bool{e.First().Desc().Digest: true}
	for _, h := range e.Held[1:] {
		if d := h.Desc().Digest; d != "" && !seen[d] {
			seen[d] = true
			all = append(all, h)
		}
	}
	return all
}

func (img *image) lookupManifest(e *imgsrc.Entry, name string) (found, error) {
	for _, h := range further(e) {
		if d := h.Desc().Digest; manifestName(d) == name {
			return found{node: img.node(viewManifests, 1+img.place(d)), keep: keepNot}, nil
		}
	}
	return found{}, syscall.ENOENT
}

func (img *image) listManifests(e *imgsrc.Entry, from uint64, emit func(dirent) bool) error {
	all := further(e)
	slices.SortFunc(all, func(a, b imgsrc.Held) int { return int(img.place(a.Desc().Digest)) - int(img.place(b.Desc().Digest)) })
	for _, h := range all {
		d := h.Desc().Digest
		p := img.place(d)
		if cookie := manifestCookie + uint64(p); cookie > from &&
			!emit(dirent{name: manifestName(d), node: img.node(viewManifests, 1+p), ino: img.ino.under(d.String()), mode: syscall.S_IFREG, cookie: cookie, keep: keepNot}) {
			return nil
		}
	}
	return nil
}

// manifestsView is the files manifest-sha256-<hex>.json of an image.
type manifestsView struct{ f *FS }

func (v manifestsView) held(n node) (*image, imgsrc.Held, error) {
	img := v.f.image(n.image())
	e, err := img.current()
	if err != nil {
		return nil, imgsrc.Held{}, err
	}
	for _, h := range further(e) {
		if 1+img.place(h.Desc().Digest) == n.entry() {
			return img, h, nil
		}
	}
	return nil, imgsrc.Held{}, imgsrc.ErrNotFound
}

func (v manifestsView) attr(ctx context.Context, n node, cheap bool) (attr, error) {
	img, h, err := v.held(n)
	if err != nil {
		return attr{}, err
	}
	created, sure, err := img.created(ctx)
	if err != nil {
		return attr{}, err
	}
	a := fileAttr(img.ino.under(h.Desc().Digest.String()), h.Desc().Size, created)
	a.live = !sure
	return a, nil
}

func (v manifestsView) read(ctx context.Context, n node, dest []byte, off int64) (fuse.ReadResult, error) {
	_, h, err := v.held(n)
	if err != nil {
		return nil, err
	}
	b, err := h.Manifest(ctx)
	if err != nil {
		return nil, err
	}
	return readBytes(b, dest, off), nil
}

func (manifestsView) lookup(context.Context, node, string) (found, error) {
	return found{}, syscall.ENOTDIR
}

func (manifestsView) list(context.Context, node, uint64, func(dirent) bool) error {
	return syscall.ENOTDIR
}

func (manifestsView) readlink(context.Context, node) ([]byte, error) { return nil, syscall.EINVAL }
