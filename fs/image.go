package fs

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/imgfs/imgfs/imgsrc"
)

// An image is one image of the tree: what the mount knows of it beyond what the catalog says. What can be computed from
// its bytes is not here but in a rendering (rendered.go), which can be thrown away at any time.
type image struct {
	f     *FS
	slot  uint32
	id    string
	ino   ino
	entry atomic.Pointer[imgsrc.Entry] // nil when no source has the image any more

	mu        sync.Mutex
	listing   time.Time // when the directory's listing last changed while mounted; zero if it has not
	names     time.Time // when the names last changed, as far as it is known
	writes    map[uint32]time.Time
	others    []string            // digests of the further manifests ever seen, by place
	probes    map[probeKey]probed // what the source gives of each layer
	createdAt *time.Time          // once known
}

func newImage(f *FS, slot uint32, e *imgsrc.Entry, listed time.Time) *image {
	sum := sha256.Sum256([]byte(e.ID))
	img := &image{
		f:      f,
		slot:   slot,
		id:     e.ID,
		ino:    ino(binary.LittleEndian.Uint64(sum[:])).mixed(),
		names:  listed,
		writes: map[uint32]time.Time{},
		probes: map[probeKey]probed{},
	}
	img.entry.Store(e)
	return img
}

func (img *image) node(view uint16, entry uint32) node { return makeNode(img.slot, view, entry) }

// current returns the image's entry in the catalog. Error: ErrNotFound if it has been removed.
func (img *image) current() (*imgsrc.Entry, error) {
	if e := img.entry.Load(); e != nil {
		return e, nil
	}
	return nil, imgsrc.ErrNotFound
}

// listingChanged compares two states of the image's entry and moves the times of what differs.
func (img *image) listingChanged(was, is *imgsrc.Entry, now time.Time) {
	if was == is {
		return
	}
	img.mu.Lock()
	defer img.mu.Unlock()
	if was == nil || liveShape(was) != liveShape(is) {
		img.listing = later(img.listing, now)
	}
	if was == nil || liveText(was) != liveText(is) {
		img.names = later(img.names, now)
	}
}

// liveShape is what decides which live files the image's directory lists.
func liveShape(e *imgsrc.Entry) string {
	s := ""
	for _, r := range table {
		if r.live != nil && r.live(e) != nil {
			s += r.name + "\n"
		}
	}
	for _, h := range e.Held[1:] {
		s += h.Desc().Digest.String() + "\n"
	}
	return s
}

// liveText is all that the live files say.
func liveText(e *imgsrc.Entry) string {
	s := ""
	for _, r := range table {
		if r.live != nil {
			s += string(r.live(e)) + "\x00"
		}
	}
	return s
}

// created is the modification time of what is computed from the image: its creation time, 0 where it has none.
func (img *image) created(ctx context.Context) (time.Time, error) {
	img.mu.Lock()
	known := img.createdAt
	img.mu.Unlock()
	if known != nil {
		return *known, nil
	}
	r, err := img.render(ctx)
	if err != nil {
		return time.Time{}, err
	}
	return r.created, nil
}

// imageView is ids/<id>: the image's directory and the files in it that are rows of the table.
type imageView struct{ f *FS }

func (v imageView) attr(ctx context.Context, n node, cheap bool) (attr, error) {
	img := v.f.image(n.image())
	row := rowByID[n.entry()]
	if !cheap && (row == nil || row.live != nil) {
		v.f.refresh(ctx)
	}
	if n.entry() == 0 {
		return img.dirAttr(ctx, cheap)
	}
	if row == nil {
		return attr{}, syscall.ENOENT
	}
	e, err := img.current()
	if err != nil {
		return attr{}, err
	}
	i := img.ino.nth(uint64(row.id))
	switch {
	case row.control:
		return img.controlAttr(row, e, i), nil
	case row.lastError:
		text, t := img.lastError()
		created, err := img.created(ctx)
		if err != nil {
			return attr{}, err
		}
		a := fileAttr(i, int64(len(text)), latest(t, created))
		a.live = true
		return a, nil
	case row.live != nil:
		a := fileAttr(i, int64(len(row.live(e))), img.namesTime())
		a.live = true
		return a, nil
	}
	if cheap && !img.isRendered() {
		return attr{}, errCostly
	}
	r, err := img.render(ctx)
	if err != nil {
		return attr{}, err
	}
	file, err := r.file(row)
	if err != nil {
		return attr{}, err
	}
	return fileAttr(i, int64(len(file)), r.created), nil
}

// lastError is the content of error: empty, or one line.
func (img *image) lastError() ([]byte, time.Time) {
	text, t := img.f.ops.LastError(img.id)
	if text != "" {
		text += "\n"
	}
	return []byte(text), t
}

func (img *image) dirAttr(ctx context.Context, cheap bool) (attr, error) {
	if _, err := img.current(); err != nil {
		return attr{}, err
	}
	img.mu.Lock()
	known, listing := img.createdAt, img.listing
	img.mu.Unlock()
	if known == nil && cheap {
		return attr{}, errCostly
	}
	created, err := img.created(ctx)
	if err != nil {
		return attr{}, err
	}
	return dirAttr(img.ino, latest(listing, created), true), nil
}

func (img *image) controlAttr(row *row, e *imgsrc.Entry, i ino) attr {
	img.mu.Lock()
	t := img.writes[row.id]
	names, created := img.names, img.createdAt
	img.mu.Unlock()
	a := fileAttr(i, 0, t)
	if row.live != nil {
		a.size = int64(len(row.live(e)))
		a.mtime = latest(t, names)
	} else if created != nil {
		a.mtime = latest(t, *created)
	}
	a.mode = syscall.S_IFREG | 0o644
	if img.f.readOnly {
		a.mode = syscall.S_IFREG | 0o444
	}
	a.live = true
	return a
}

func (img *image) namesTime() time.Time {
	img.mu.Lock()
	defer img.mu.Unlock()
	return img.names
}

// written moves a control's time: the write that went through the kernel's cache is then not mistaken for its content.
func (img *image) written(row uint32) {
	img.mu.Lock()
	defer img.mu.Unlock()
	was := latest(img.writes[row], img.names)
	img.writes[row] = later(was, time.Now())
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func (v imageView) lookup(ctx context.Context, dir node, name string) (found, error) {
	if dir.entry() != 0 {
		return found{}, syscall.ENOTDIR
	}
	img := v.f.image(dir.image())
	v.f.refresh(ctx)
	e, err := img.current()
	if err != nil {
		return found{}, err
	}
	row := rowByName[name]
	if row == nil {
		return img.lookupManifest(e, name)
	}
	n := img.node(viewImage, row.id)
	if row.control || row.lastError {
		return found{node: n}, nil
	}
	if row.live != nil {
		if row.live(e) == nil {
			return found{}, syscall.ENOENT
		}
		return found{node: n, keep: keepNot}, nil
	}
	r, err := img.render(ctx)
	if err != nil {
		return found{}, err
	}
	if ok, err := img.has(ctx, r, row); err != nil || !ok {
		return found{}, orNoEntry(err)
	}
	if row.view != 0 {
		n = img.node(row.view, 0)
	}
	return found{node: n}, nil
}

func orNoEntry(err error) error {
	if err == nil {
		return syscall.ENOENT
	}
	return err
}

func (v imageView) list(ctx context.Context, dir node, from uint64, emit func(dirent) bool) error {
	img := v.f.image(dir.image())
	v.f.refresh(ctx)
	e, err := img.current()
	if err != nil {
		return err
	}
	r, err := img.render(ctx)
	if err != nil {
		return err
	}
	for i := range table {
		row := &table[i]
		if uint64(row.id) <= from {
			continue
		}
		d := dirent{name: row.name, node: img.node(viewImage, row.id), ino: img.ino.nth(uint64(row.id)), mode: syscall.S_IFREG, cookie: uint64(row.id)}
		switch {
		case row.control, row.lastError:
		case row.live != nil:
			if row.live(e) == nil {
				continue
			}
			d.keep = keepNot
		default:
			ok, err := img.has(ctx, r, row)
			if err != nil {
				return err
			}
			if !ok {
				continue
			}
			if row.view != 0 {
				d.node, d.mode = img.node(row.view, 0), syscall.S_IFDIR
			}
		}
		if !emit(d) {
			return nil
		}
	}
	return img.listManifests(e, from, emit)
}

func (v imageView) read(ctx context.Context, n node, dest []byte, off int64) (fuse.ReadResult, error) {
	img := v.f.image(n.image())
	row := rowByID[n.entry()]
	if row == nil || row.view != 0 {
		return nil, syscall.EISDIR
	}
	e, err := img.current()
	if err != nil {
		return nil, err
	}
	switch {
	case row.lastError:
		text, _ := img.lastError()
		return readBytes(text, dest, off), nil
	case row.live != nil:
		return readBytes(row.live(e), dest, off), nil
	case row.control:
		return readBytes(nil, dest, off), nil
	}
	r, err := img.render(ctx)
	if err != nil {
		return nil, err
	}
	file, err := r.file(row)
	if err != nil {
		return nil, err
	}
	if off == 0 {
		img.readAhead(r, row)
	}
	return readBytes(file, dest, off), nil
}

// readAhead stores the files behind one that is being read.
func (img *image) readAhead(r *rendered, row *row) {
	if img.f.server == nil {
		return
	}
	a := ahead{f: img.f}
	r.ahead.take(row.id)
	for i := range table {
		next := &table[i]
		if next.id <= row.id || next.body == nil || r.errs[next.id] != nil || !r.ahead.take(next.id) {
			continue
		}
		if !a.store(img.node(viewImage, next.id), r.files[next.id]) {
			return
		}
	}
}

func (v imageView) readlink(context.Context, node) ([]byte, error) { return nil, syscall.EINVAL }
