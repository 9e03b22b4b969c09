package fs

import (
	"context"
	"errors"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/imgfs/imgfs/imgsrc"
)

// imageView is ids/<id>: the image's directory and the files in it that are rows of the table.
type imageView struct{ f *FS }

func (v imageView) attr(ctx context.Context, n node, cheap bool) (attr, error) {
	img := v.f.image(n.image())
	row := rowByID[n.entry()]
	if !cheap && (row == nil || row.body == nil) {
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
		created, _, err := img.created(ctx)
		if err != nil {
			return attr{}, err
		}
		return fileAttr(i, int64(len(text)), unlessZero(t, created)).asLive(), nil
	case row.live != nil:
		return fileAttr(i, int64(len(row.live(e))), img.namesTime()).asLive(), nil
	}
	if cheap && !img.isAtHand(row) {
		return attr{}, errCostly
	}
	r, err := img.renderFor(ctx, row)
	if err != nil {
		return attr{}, err
	}
	if target, ok := r.link(row); ok {
		return linkAttr(i, len(target), r.created), nil
	}
	if row.derived != nil {
		if cheap {
			return attr{}, errCostly
		}
		d, err := img.derive(ctx, r, row)
		a := fileAttr(i, int64(len(d.text)), d.at)
		a.live = row.isLive(r) || r.damaged
		return a, err
	}
	if cheap && row.diffIDs && r.facts.LacksDiffIDs() {
		return attr{}, errCostly
	}
	file, err := img.file(ctx, r, row)
	a := fileAttr(i, int64(len(file)), r.created)
	a.live = r.damaged || row.diffIDs && r.facts.LacksDiffIDs() && r.full.Load() == nil
	return a, err
}

// lastError is the content of error: empty, or one line.
func (img *image) lastError() ([]byte, time.Time) { return img.f.lastError(img.id) }

// lastError is the content of the error of an image, or of the mountpoint's own.
func (f *FS) lastError(id string) ([]byte, time.Time) {
	text, t := f.ops.LastError(id)
	if text != "" {
		text += "\n"
	}
	return []byte(text), t
}

func (img *image) dirAttr(ctx context.Context, cheap bool) (attr, error) {
	if _, err := img.current(); err != nil {
		return attr{}, err
	}
	if _, ok := img.knownCreated(); !ok && cheap {
		return attr{}, errCostly
	}
	created, _, err := img.created(ctx)
	if err != nil {
		return attr{}, err
	}
	if _, far := img.fetcher(); far && !cheap {
		r, err := img.knownBare(ctx)
		if err != nil {
			return attr{}, err
		}
		img.arrived(ctx, r)
	}
	return dirAttr(img.ino, img.listed(created), true), nil
}

func (img *image) controlAttr(row *row, e *imgsrc.Entry, i ino) attr {
	img.mu.Lock()
	t := img.writes[row.id]
	names := img.names
	img.mu.Unlock()
	size := int64(0)
	if row.live != nil {
		size, t = int64(len(row.live(e))), latest(t, names)
	} else if created, ok := img.knownCreated(); ok {
		t = unlessZero(t, created)
	}
	return img.f.controlAttr(i, size, t)
}

func (f *FS) controlAttr(i ino, size int64, t time.Time) attr {
	a := fileAttr(i, size, t)
	a.mode = syscall.S_IFREG | 0o644
	if f.readOnly {
		a.mode = syscall.S_IFREG | 0o444
	}
	a.control = true
	return a.asLive()
}

// listed is when the directory's listing last changed while mounted; created, if it has not.
func (img *image) listed(created time.Time) time.Time {
	img.mu.Lock()
	defer img.mu.Unlock()
	return unlessZero(img.listing, created)
}

// mended is when files were found that could not be read before; created, if that has not been.
func (img *image) mended(created time.Time) time.Time {
	img.mu.Lock()
	defer img.mu.Unlock()
	return unlessZero(img.mendedAt, created)
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

// unlessZero returns t, or other if t is zero. An image's creation may be in the future: what changes has to move
// nevertheless.
func unlessZero(t, other time.Time) time.Time {
	if t.IsZero() {
		return other
	}
	return t
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
	r, err := img.renderFor(ctx, row)
	if err != nil {
		return found{}, err
	}
	if ok, err := img.has(ctx, r, row); err != nil || !ok {
		return found{}, orNoEntry(err)
	}
	return img.found(r, row), nil
}

// found is the row's node. The kernel may keep all these names: it is told when one of them goes.
func (img *image) found(r *rendered, row *row) found {
	hit := found{node: img.node(viewImage, row.id)}
	if r == nil || row.view == 0 {
		return hit
	}
	if _, ok := r.link(row); !ok {
		hit.node = img.node(row.view, 0)
	}
	return hit
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
	r, err := img.known(ctx)
	if err != nil {
		return err
	}
	img.listedEarly(r, e)
	for i := range table {
		row := &table[i]
		if uint64(row.id) <= from {
			continue
		}
		ok, err := img.has(ctx, r, row)
		if err != nil && !isUnread(err) {
			return err
		}
		if !ok || row.view == viewRootfs && (r.sketched || !img.allLocal(r)) {
			continue
		}
		hit := img.found(r, row)
		d := dirent{name: row.name, node: hit.node, ino: img.ino.nth(uint64(row.id)), mode: syscall.S_IFREG, cookie: uint64(row.id), keep: hit.keep}
		if _, ok := r.link(row); ok {
			d.mode = syscall.S_IFLNK
		} else if row.view != 0 {
			d.mode = syscall.S_IFDIR
		}
		if !emit(d) {
			return nil
		}
	}
	return img.listManifests(e, from, emit)
}

// has says whether the image has this file, be it damaged. Error: an unread if that cannot be told.
func (img *image) has(ctx context.Context, r *rendered, row *row) (bool, error) {
	e, err := img.current()
	if err != nil {
		return false, err
	}
	switch {
	case row.control, row.lastError:
		return true, nil
	case row.live != nil:
		return row.live(e) != nil, nil
	}
	if _, ok := r.link(row); ok {
		render := func(child *image, ctx context.Context) (*rendered, error) { return child.renderFor(ctx, row) }
		return img.platformHas(ctx, r, render, func(child *image, cr *rendered) (bool, error) { return child.has(ctx, cr, row) })
	}
	if !r.tells(row) {
		return r.lists(row), nil
	}
	if err := r.noManifest(); err != nil && r.facts.Kind == imgsrc.KindIndex && !row.own {
		return false, err // it may be its platform's
	}
	switch row.view {
	case 0:
	case viewAnnotations:
		return len(r.annotations) > 0, ignoreAbsent(r.noKeys[row.view])
	case viewLabels:
		return len(r.labels) > 0, ignoreAbsent(r.noKeys[row.view])
	case viewLayers:
		return len(r.facts.Layers) > 0, r.noManifest()
	case viewRootfs:
		return img.hasRootfs(ctx, r)
	case viewPlatforms:
		return len(r.facts.Children) > 0, r.noManifest()
	case viewExport:
		return r.facts.ManifestErr == nil || r.sketched, r.noManifest()
	case viewReferrers:
		return len(img.f.state.Load().snap.Referrers(e)) > 0, nil
	}
	switch {
	case row.images:
		return r.facts.Kind == imgsrc.KindImage, nil
	case row.derived != nil && !row.sure:
		_, err := img.derive(ctx, r, row)
		if errors.Is(err, imgsrc.ErrNotFound) || isUnread(err) || ctx.Err() != nil {
			return false, err
		}
		return !errors.Is(err, imgsrc.ErrAbsent), nil
	case row.sure && !errors.Is(r.errs[row.id], errPerhapsIndex):
		return !errors.Is(r.errs[row.id], imgsrc.ErrAbsent), nil
	}
	err = r.errs[row.id]
	return err == nil, ignoreAbsent(err)
}

// file returns what is in a file that is computed from the image alone.
func (img *image) file(ctx context.Context, r *rendered, row *row) ([]byte, error) {
	if row.diffIDs && r.facts.LacksDiffIDs() {
		var err error
		if r, err = img.withDiffIDs(ctx, r); err != nil {
			return nil, err
		}
	}
	return r.files[row.id], r.errs[row.id]
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
	r, err := img.renderFor(ctx, row)
	if err != nil {
		return nil, err
	}
	if row.derived != nil {
		d, err := img.derive(ctx, r, row)
		return readBytes(d.text, dest, off), err
	}
	file, err := img.file(ctx, r, row)
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
	if img.f.server.Load() == nil {
		return
	}
	a := ahead{f: img.f}
	r.ahead.take(row.id)
	for i := range table {
		next := &table[i]
		if next.id <= row.id || next.body == nil || r.errs[next.id] != nil || next.diffIDs && r.facts.LacksDiffIDs() || !r.ahead.take(next.id) {
			continue
		}
		if _, ok := r.link(next); ok {
			continue
		}
		if !a.store(img.node(viewImage, next.id), r.files[next.id]) {
			return
		}
	}
}

// readlink says where a file of an index is: with the platform that is meant.
func (v imageView) readlink(ctx context.Context, n node) ([]byte, error) {
	row := rowByID[n.entry()]
	if row == nil {
		return nil, syscall.EINVAL
	}
	r, err := v.f.image(n.image()).render(ctx)
	if err != nil {
		return nil, err
	}
	target, ok := r.link(row)
	if !ok {
		return nil, syscall.EINVAL
	}
	return []byte(target), nil
}
