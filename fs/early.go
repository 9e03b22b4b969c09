package fs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/imgfs/imgfs/imgsrc"
)

// The beginning of a large blob is given out before all of it is verified, to whoever reads it from there on. If it turns out
// to be another, the kernel is told to forget what it has of it. And whoever is in the middle of the file gets an error, also
// if the right bytes can be had by then: what that reader has already is wrong. Requests do not say which open file they are
// for, so the next look-up of the name is given another generation of the node: then the kernel itself fails all that was
// opened before. Where it does not (Linux before 5.14), one who begins anew lets those in the middle go on.

// earlyReads are the files that the kernel has been given such bytes of. The zero value is ready.
type earlyReads struct {
	mu    sync.Mutex
	files map[node]*earlyFile

	generations sync.Map // node to uint64: how often it was spoilt, if it was
}

type earlyFile struct {
	end     int64                   // of what was given out
	pending map[imgsrc.Verdict]bool // until they are known, and the kernel knows
	spoilt  error                   // why some of it was wrong; nil: it was not, or somebody has begun anew
}

// generation is that of a node. A node of another generation is another file to the kernel.
func (r *earlyReads) generation(n node) uint64 {
	g, _ := r.generations.Load(n)
	times, _ := g.(uint64)
	return 1 + times
}

// An earlyPlace is a file that may be given out early: its node, and its name in a directory where the kernel keeps it.
type earlyPlace struct {
	node node
	dir  node // 0: names there are looked up each time
	name string
}

// readEarly has read fill dest with the bytes of a file at off, which may be given out early.
func (f *FS) readEarly(ctx context.Context, at earlyPlace, dest []byte, off int64, read func(context.Context, []byte, int64) (int, error)) (int, error) {
	n := at.node
	k, err := read(imgsrc.WithEarly(ctx, func(v imgsrc.Verdict) {
		if f.early.add(n, v, off+int64(len(dest))) {
			go f.awaitVerdict(at, v)
		}
	}), dest, off)
	if err != nil && !errors.Is(err, io.EOF) {
		return k, err
	}
	if spoilt := f.early.check(n, off); spoilt != nil {
		return 0, fmt.Errorf("what was read of it before is wrong, and it has to be read from its beginning: %w", spoilt)
	}
	return k, err
}

// awaitVerdict has the kernel forget a file if it should. That waits for the reads of the file that are under way: nobody who
// answers one may wait for it.
func (f *FS) awaitVerdict(at earlyPlace, v imgsrc.Verdict) {
	err := v.Wait(f.ctx)
	if server := f.server.Load(); err != nil && f.ctx.Err() == nil && server != nil {
		server.InodeNotify(uint64(at.node), 0, 0)
		f.early.generations.Store(at.node, f.early.generation(at.node))
		if at.dir != 0 {
			f.forget(goneEntry{dir: at.dir, name: at.name})
			f.settle(f.ctx)
		}
	}
	f.early.settle(at.node, v, err)
}

// add takes note of a read up to end that depends on a verdict, and says whether that has to be awaited.
func (r *earlyReads) add(n node, v imgsrc.Verdict, end int64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	file := r.files[n]
	if file == nil {
		if r.files == nil {
			r.files = map[node]*earlyFile{}
		}
		file = &earlyFile{pending: map[imgsrc.Verdict]bool{}}
		r.files[n] = file
	}
	file.end = max(file.end, end)
	known := file.pending[v]
	file.pending[v] = true
	return !known
}

// settle takes note of a verdict that the kernel has been told of.
func (r *earlyReads) settle(n node, v imgsrc.Verdict, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	file := r.files[n]
	if err != nil {
		file.spoilt = err
	}
	delete(file.pending, v)
	r.tidy(n, file)
}

func (r *earlyReads) tidy(n node, file *earlyFile) {
	if len(file.pending) == 0 && file.spoilt == nil {
		delete(r.files, n)
	}
}

// known is a context in which a verdict is not waited for.
var known = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

// check fails for a read that goes on where wrong bytes have been given out.
func (r *earlyReads) check(n node, off int64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	file := r.files[n]
	if file == nil {
		return nil
	}
	telling := false
	for v := range file.pending {
		if err := v.Wait(known); err != nil && !errors.Is(err, context.Canceled) {
			file.spoilt, telling = err, true
		}
	}
	switch {
	case file.spoilt == nil || off > file.end:
		return nil
	case off > 0 || telling:
		return file.spoilt
	}
	file.spoilt = nil
	r.tidy(n, file)
	return nil
}
