package fs

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/imgfs/imgfs/imgsrc"
)

// treeView is rootfs/ and the diff/ of layers.
type treeView struct{ f *FS }

func (v treeView) at(ctx context.Context, n node) (*tree, uint32, error) {
	t, err := v.f.image(n.image()).tree(ctx, n.view())
	if err != nil {
		return nil, 0, err
	}
	if n.entry() >= t.Len() {
		return nil, 0, syscall.ENOENT
	}
	return t, n.entry(), nil
}

// rootAttr describes the root of a tree that is not in memory. It reads the beginnings of layers only, so that ls -l of an
// image's directory costs no more.
func (v treeView) rootAttr(ctx context.Context, n node) (attr, error) {
	img := v.f.image(n.image())
	r, err := img.render(ctx)
	if err != nil {
		return attr{}, err
	}
	first, end := 0, len(r.facts.Layers)
	i := img.ino.nth(uint64(rowByView[viewRootfs].id))
	if n.view() != viewRootfs {
		first = int(n.view()) - firstDiff
		if first >= end {
			return attr{}, syscall.ENOENT
		}
		end = first + 1
		i = img.ino.nth(uint64(rowByView[viewLayers].id)).nth(uint64(first)).nth(uint64(diffRow.id))
	}
	a := attr{ino: i, mode: syscall.S_IFDIR | 0o755, nlink: 1, mtime: since1970(r.created), layered: true}
	for k := end - 1; k >= first; k-- {
		files, err := img.openFiles(ctx, k)
		if err != nil {
			return attr{}, r.byFacts(err)
		}
		root, err := files.Root(ctx)
		if err := errors.Join(err, files.Close()); err != nil {
			return attr{}, err
		}
		if root != nil {
			a.mode, a.uid, a.gid = syscall.S_IFDIR|root.Mode, root.UID, root.GID
			a.mtime = time.Unix(root.Sec, int64(root.Nsec))
			break
		}
	}
	return a, nil
}

func (v treeView) attr(ctx context.Context, n node, cheap bool) (attr, error) {
	if _, ok := v.f.trees.get(treeKey{n.image(), n.view()}); !ok {
		switch {
		case cheap:
			return attr{}, errCostly
		case n.entry() == 0:
			return v.rootAttr(ctx, n)
		}
	}
	t, e, err := v.at(ctx, n)
	if err != nil {
		return attr{}, err
	}
	return t.attr(e, t.inoOf(e))
}

func (v treeView) lookup(ctx context.Context, dir node, name string) (found, error) {
	t, d, err := v.at(ctx, dir)
	if err != nil {
		return found{}, err
	}
	n, ok := t.Child(d, name)
	if !ok {
		return found{}, syscall.ENOENT
	}
	return found{node: t.node(t.Inode(n))}, nil
}

func (v treeView) list(ctx context.Context, dir node, from uint64, emit func(dirent) bool) error {
	t, d, err := v.at(ctx, dir)
	if err != nil {
		return err
	}
	first, count, ok := t.Dir(d)
	if !ok {
		return syscall.ENOTDIR
	}
	here := t.inoOf(d)
	var a attr
	for i := min(from, uint64(count)); i < uint64(count); i++ {
		n := first + uint32(i)
		in := t.Inode(n)
		e := dirent{name: t.Name(n), node: t.node(in), mode: t.Mode(n) & syscall.S_IFMT, cookie: i + 1}
		if in == n {
			e.ino = here.under(e.name)
		} else {
			e.ino = t.inoOf(in)
		}
		if a, err = t.attr(in, e.ino); err == nil {
			e.attr = &a
		} else {
			e.node = 0 // looking it up says why
		}
		if !emit(e) {
			return nil
		}
	}
	return nil
}

func (v treeView) readlink(ctx context.Context, n node) ([]byte, error) {
	t, e, err := v.at(ctx, n)
	if err != nil {
		return nil, err
	}
	target, ok := t.Readlink(e)
	if !ok {
		return nil, syscall.EINVAL
	}
	return []byte(target), nil
}

func (v treeView) read(ctx context.Context, n node, dest []byte, off int64) (fuse.ReadResult, error) {
	t, e, err := v.at(ctx, n)
	if err != nil {
		return nil, err
	}
	p, ok := t.Place(e)
	if !ok {
		return nil, syscall.EISDIR
	}
	k, err := t.read(ctx, p, dest, off)
	if err != nil {
		return nil, fmt.Errorf("reading %q at %d: %w", t.Path(e), off, err)
	}
	if off == 0 && k > 0 && int64(k) == p.Size {
		t.readAhead(ctx, e)
	}
	return fuse.ReadResultData(dest[:k]), nil
}

// xattrs returns the extended attributes of a node.
func (f *FS) xattrs(ctx context.Context, n node) ([]imgsrc.Xattr, error) {
	v, ok := f.view(n).(treeView)
	if !ok {
		return nil, nil
	}
	t, e, err := v.at(ctx, n)
	if err != nil {
		return nil, err
	}
	return t.Xattrs(e), nil
}
