package fs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/layer"
)

// layersView is layers/ and what is below it.
type layersView struct{ f *FS }

// layerFile is what a node below layers/ means.
type layerFile struct {
	img *image
	r   *rendered
	n   int       // the layer; -1: layers/ itself
	row *layerRow // nil: the layer's directory
	ino ino
}

func (v layersView) at(ctx context.Context, n node) (layerFile, error) {
	l, err := v.place(ctx, n)
	if err != nil {
		return layerFile{}, err
	}
	return l.of(ctx, l.row)
}

// place is at, with what is known of the layers without reading the image for the file.
func (v layersView) place(ctx context.Context, n node) (layerFile, error) {
	img := v.f.image(n.image())
	r, err := img.knownLayers(ctx)
	if err != nil {
		return layerFile{}, err
	}
	l := layerFile{img: img, r: r, n: int(n.entry()>>layerShift) - 1, ino: img.ino.nth(uint64(rowByView[viewLayers].id))}
	if l.n < 0 {
		return l, nil
	}
	if l.n >= len(r.facts.Layers) {
		return layerFile{}, orNoEntry(r.noManifest())
	}
	l.ino = l.ino.nth(uint64(l.n))
	switch id := n.entry() & (1<<layerShift - 1); {
	case id == 0:
	case id == titleRow.id:
		l.row, l.ino = &titleRow, l.ino.nth(uint64(id))
	default:
		if int(id) > len(layerTable) || layerTable[id-1].diff { // which has a view of its own
			return layerFile{}, syscall.ENOENT
		}
		l.row = &layerTable[id-1]
		l.ino = l.ino.nth(uint64(id))
	}
	return l, nil
}

// isToldBy says whether a rendering of the manifest alone, or of a sketch, decides what is in a row.
func (row *layerRow) isToldBy(r *rendered) bool {
	if r.sketched {
		return row.diffID
	}
	return row.bare
}

// of is the file with all that is needed to say what is in a row.
func (l layerFile) of(ctx context.Context, row *layerRow) (layerFile, error) {
	if row == nil || row.isToldBy(l.r) {
		return l, nil
	}
	render := l.img.render
	if row.bare {
		render = l.img.renderBare
	}
	r, err := render(ctx)
	if err != nil {
		return layerFile{}, err
	}
	if l.n >= len(r.facts.Layers) {
		return layerFile{}, orNoEntry(r.noManifest())
	}
	l.r = r
	return l, nil
}

// bytes returns the content of a file that is computed. Errors: ErrAbsent.
func (l layerFile) bytes(ctx context.Context) ([]byte, error) {
	switch {
	case l.row.changes:
		return l.img.changes(ctx, l.n)
	case l.row.diffID && l.r.facts.LacksDiffIDs():
		r, err := l.img.withDiffIDs(ctx, l.r)
		if err != nil {
			return nil, err
		}
		return l.row.body(r.facts, l.n)
	case !l.row.info:
		return l.row.body(l.r.facts, l.n)
	}
	var state imgsrc.LayerState
	for kind, ok := range map[contentKind]*bool{contentBlob: &state.Blob, contentDiff: &state.Diff, contentFiles: &state.Files} {
		p, err := l.img.probe(ctx, l.r, l.n, kind)
		if err != nil {
			return nil, err
		}
		*ok = p.ok
		if kind == contentDiff {
			state.WhyNot = p.why
		}
	}
	if state.Files {
		files, err := l.img.openFiles(ctx, l.n)
		switch {
		case err == nil:
			state.TOC = files.Key().Form == layer.TOCForm
			err = files.Close()
		case ctx.Err() == nil && !errors.Is(err, imgsrc.ErrNotFound):
			err = nil // reading them says so
		}
		if err != nil {
			return nil, err
		}
	}
	return imgsrc.LayerInfoJSON(l.r.facts, l.n, state)
}

// node is the node of one of the layer's files; diff/ is a tree of its own.
func (l layerFile) node(row *layerRow) node {
	if row.diff {
		return l.img.node(diffView(l.n), 0)
	}
	return l.img.node(viewLayers, layerEntry(l.n, row.id))
}

// needsBytes says whether it takes the layer's bytes to say what is in the file, or how large it is.
func (row *layerRow) needsBytes() bool { return row.diff || row.changes || row.content == contentDiff }

// has says whether the layer has this file. Error: an unread if that cannot be told.
func (l layerFile) has(ctx context.Context, row *layerRow) (bool, error) {
	if row.title {
		_, ok := l.r.title(l.n)
		if !ok {
			return false, nil
		}
		row = &layerTable[0]
	}
	l, err := l.of(ctx, row)
	if err != nil {
		return false, err
	}
	if row.diffID && l.r.facts.LacksDiffIDs() {
		p, err := l.img.probe(ctx, l.r, l.n, contentDiff)
		return p.ok && !p.missing, err
	}
	if row.changes { // against what is below
		for n := range l.n {
			if p, err := l.img.probe(ctx, l.r, n, contentFiles); err != nil || !p.ok {
				return false, err
			}
		}
	}
	kind := row.content
	if row.diff || row.changes {
		kind = contentFiles
	}
	if kind != contentNone {
		p, err := l.img.probe(ctx, l.r, l.n, kind)
		return p.ok, err
	}
	if row.info {
		return true, nil
	}
	_, err = row.body(l.r.facts, l.n)
	return err == nil, ignoreAbsent(asUnread(err))
}

func (v layersView) attr(ctx context.Context, n node, cheap bool) (attr, error) {
	l, err := v.place(ctx, n)
	if err != nil {
		return attr{}, err
	}
	if cheap && l.r.sketched && l.row != nil && !l.row.isToldBy(l.r) {
		return attr{}, errCostly
	}
	if l, err = l.of(ctx, l.row); err != nil {
		return attr{}, err
	}
	switch {
	case l.row == nil:
		_, far := l.img.fetcher()
		if far && !cheap {
			l.img.arrived(ctx, l.r)
		}
		changed := l.img.mended(l.r.created)
		if l.n >= 0 {
			changed = l.img.cameAndWent(l.r.created)
		}
		return dirAttr(l.ino, changed, l.r.damaged || far), nil
	case l.row.title:
		a := linkAttr(l.ino, len(blobName), l.r.created)
		a.live = l.r.damaged
		return a, nil
	case cheap && l.row.diffID && l.r.facts.LacksDiffIDs():
		return attr{}, errCostly
	case l.row.content != contentNone:
		size, err := l.size(ctx, cheap)
		a := fileAttr(l.ino, size, l.r.created)
		a.live = l.r.damaged
		return a, l.r.byFacts(err)
	case l.row.changes && cheap && !l.img.knowsChanges(l.n):
		return attr{}, errCostly
	}
	b, err := l.bytes(ctx)
	a := fileAttr(l.ino, int64(len(b)), l.r.created)
	a.live = l.r.damaged
	if l.row.info && l.img.isRemote() { // what it says of the files is corrected if they cannot be had so
		a = a.asLive()
	}
	return a, err
}

func (v layersView) lookup(ctx context.Context, dir node, name string) (found, error) {
	l, err := v.at(ctx, dir)
	if err != nil {
		return found{}, err
	}
	if l.n < 0 {
		count := len(l.r.facts.Layers)
		n, err := strconv.Atoi(name)
		if err != nil || n < 0 || n >= count || layerName(n, count) != name {
			return found{}, syscall.ENOENT
		}
		return found{node: l.img.node(viewLayers, layerEntry(n, 0))}, nil
	}
	for i := range layerTable {
		row := &layerTable[i]
		if row.name != name {
			continue
		}
		ok, err := l.has(ctx, row)
		if err != nil {
			return found{}, err
		}
		if !ok {
			break
		}
		return found{node: l.node(row)}, nil
	}
	if title, _ := l.r.title(l.n); title == name {
		if ok, err := l.has(ctx, &titleRow); err != nil || ok {
			return found{node: l.node(&titleRow)}, err
		}
	}
	return found{}, syscall.ENOENT
}

func (v layersView) list(ctx context.Context, dir node, from uint64, emit func(dirent) bool) error {
	l, err := v.at(ctx, dir)
	if err != nil {
		return err
	}
	if l.n < 0 {
		count := len(l.r.facts.Layers)
		for n := int(min(from, uint64(count))); n < count; n++ {
			if !emit(dirent{name: layerName(n, count), node: l.img.node(viewLayers, layerEntry(n, 0)), ino: l.ino.nth(uint64(n)), mode: syscall.S_IFDIR, cookie: uint64(n) + 1}) {
				return nil
			}
		}
		return nil
	}
	if l.row != nil {
		return syscall.ENOTDIR
	}
	if l.r.sketched {
		return l.listSketched(from, emit)
	}
	if l, err = l.of(ctx, diffRow); err != nil { // a listing says all that is known
		return err
	}
	for i := range layerTable {
		row := &layerTable[i]
		if uint64(row.id) <= from {
			continue
		}
		if row.needsBytes() && !l.img.isLocal(l.n) && (row.content != contentDiff || !bytesOf(l.img, l.r, l.n, contentDiff).isLocal()) {
			continue
		}
		ok, err := l.has(ctx, row)
		if err != nil && !isUnread(err) {
			return err
		}
		if ok && !emit(l.dirent(row)) {
			return nil
		}
	}
	title, ok := l.r.title(l.n)
	if !ok || uint64(titleRow.id) <= from {
		return nil
	}
	if ok, err := l.has(ctx, &titleRow); err != nil || !ok {
		return err
	}
	emit(dirent{name: title, node: l.node(&titleRow), ino: l.ino.nth(uint64(titleRow.id)), mode: syscall.S_IFLNK, cookie: uint64(titleRow.id)})
	return nil
}

func (l layerFile) dirent(row *layerRow) dirent {
	d := dirent{name: row.name, node: l.node(row), ino: l.ino.nth(uint64(row.id)), mode: syscall.S_IFREG, cookie: uint64(row.id)}
	if row.diff {
		d.mode = syscall.S_IFDIR
	}
	return d
}

// listSketched lists what every layer has, of an image that has not been read.
func (l layerFile) listSketched(from uint64, emit func(dirent) bool) error {
	for i := range layerTable {
		if row := &layerTable[i]; row.sure && uint64(row.id) > from && !emit(l.dirent(row)) {
			return nil
		}
	}
	return nil
}

func (v layersView) read(ctx context.Context, n node, dest []byte, off int64) (fuse.ReadResult, error) {
	l, err := v.at(ctx, n)
	if err != nil {
		return nil, err
	}
	switch {
	case l.row == nil:
		return nil, syscall.EISDIR
	case l.row.title:
		return nil, syscall.EINVAL
	case l.row.content == contentNone:
		b, err := l.bytes(ctx)
		if err == nil && off == 0 {
			l.readAhead()
		}
		return readBytes(b, dest, off), err
	}
	c, err := l.content().get(ctx)
	if err != nil {
		return nil, err
	}
	defer c.release()
	at := earlyPlace{n, l.img.node(viewLayers, layerEntry(l.n, 0)), l.row.name}
	k, err := v.f.readEarly(ctx, at, dest, off, c.it.ReadAt)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("reading %s of layer %s at %d: %w", l.row.name, strings.TrimSpace(l.r.facts.Layers[l.n].Digest.String()), off, err)
	}
	return fuse.ReadResultData(dest[:k]), nil
}

// readAhead stores the files of the layer's directory behind the one that is being read.
func (l layerFile) readAhead() {
	if l.img.f.server.Load() == nil {
		return
	}
	a := ahead{f: l.img.f}
	done := &l.r.layersAhead[l.n]
	done.take(l.row.id)
	for i := range layerTable {
		next := &layerTable[i]
		if next.id <= l.row.id || next.body == nil || next.diffID && l.r.facts.LacksDiffIDs() || !done.take(next.id) {
			continue
		}
		b, err := next.body(l.r.facts, l.n)
		if err == nil && !a.store(l.img.node(viewLayers, layerEntry(l.n, next.id)), b) {
			return
		}
	}
}

func (v layersView) readlink(ctx context.Context, n node) ([]byte, error) {
	l, err := v.at(ctx, n)
	if err != nil {
		return nil, err
	}
	if l.row == nil || !l.row.title {
		return nil, syscall.EINVAL
	}
	return []byte(blobName), nil
}
