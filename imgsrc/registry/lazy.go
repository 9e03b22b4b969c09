package registry

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"sync/atomic"
	"time"
	"weak"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/flight"
	"github.com/imgfs/imgfs/imgsrc/layer"
)

// A lazy is a layer with a table of contents, of which parts can be read without the rest.
//
// What a mount shows of a layer must not change while it is mounted, and a table of contents need not say all that a tar
// does. So it is decided once, when somebody first looks into the layer, which of the two its files are taken from: the tar
// if it is at hand then, or else the table. Only a table that cannot be had or used, before anything of it was shown, is
// given up for the tar.
type lazy struct {
	source *Source
	layer  imgsrc.LayerFacts
	ref    layer.TOCRef
	users  int     // guarded by Source.lazyMu
	repos  repos   // likewise
	ranges *ranges // while there are users

	mu     sync.Mutex
	form   lazyForm
	proven bool // the table has been read and understood
	chunks *layer.Chunks
	weak   weak.Pointer[layer.Chunks] // of chunks, when nobody uses the layer
	said   atomic.Bool                // that a chunk is damaged is in the log
}

type lazyForm uint8

const (
	formOpen lazyForm = iota // nobody has looked yet
	formTOC
	formTar
)

// A lazyKey names a layer and what a manifest says of its table: another manifest may say something else.
type lazyKey struct {
	layer digest.Digest
	ref   layer.TOCRef
}

var errClosed = fmt.Errorf("registry: %w", fs.ErrClosed)

// lazy returns a layer that can be read by its table of contents, with one more user; nil if it cannot.
func (s *Source) lazy(repo string, l imgsrc.LayerFacts) *lazy {
	ref, err := layer.FindTOC(l.Annotations, l.Size)
	if err != nil {
		if !errors.Is(err, imgsrc.ErrAbsent) {
			if _, said := s.warned.LoadOrStore("toc "+l.Digest.String(), true); !said {
				s.log.Warn("reading a layer as a whole: its table of contents cannot be used", "blob", l.Digest, "error", err)
			}
		}
		return nil
	}
	s.lazyMu.Lock()
	defer s.lazyMu.Unlock()
	key := lazyKey{l.Digest, ref}
	z := s.lazies[key]
	if z == nil {
		z = &lazy{source: s, layer: l, ref: ref}
		s.lazies[key] = z
	}
	z.repos.add(repo)
	s.useLazyLocked(z)
	return z
}

func (s *Source) useLazyLocked(z *lazy) {
	if z.users++; z.users > 1 {
		z.ranges.addRepos(z.repos)
		return
	}
	r := s.parts[z.layer.Digest]
	if r == nil {
		r = &ranges{source: s, digest: z.layer.Digest, size: z.layer.Size}
		s.parts[r.digest] = r
	}
	r.addRepos(z.repos)
	r.use()
	z.ranges = r
	z.mu.Lock()
	z.chunks = z.weak.Value()
	z.mu.Unlock()
}

// release gives back what Source.lazy returned.
func (z *lazy) release() {
	s := z.source
	s.lazyMu.Lock()
	defer s.lazyMu.Unlock()
	if z.users--; z.users > 0 {
		return
	}
	z.mu.Lock()
	z.chunks = nil
	z.mu.Unlock()
	s.releaseRangesLocked(z.ranges)
	z.ranges = nil
}

func (s *Source) releaseRanges(r *ranges) {
	s.lazyMu.Lock()
	defer s.lazyMu.Unlock()
	s.releaseRangesLocked(r)
}

func (s *Source) releaseRangesLocked(r *ranges) {
	if r.users--; r.users > 0 {
		return
	}
	if s.parts[r.digest] != r { // the source is closed
		r.close()
		return
	}
	// Who goes through an image comes back, and is known by what he has read.
	r.idle = time.AfterFunc(unpackedTime, func() {
		s.lazyMu.Lock()
		defer s.lazyMu.Unlock()
		if r.users == 0 && s.parts[r.digest] == r {
			delete(s.parts, r.digest)
			r.close()
		}
	})
}

// wrote notes that bytes were added to the cache's directory.
func (s *Source) wrote(n int64) {
	if s.cache != nil {
		s.cache.Wrote(n)
	}
}

// byTOC says whether the layer's files are taken from its table of contents, and decides that if nobody has yet.
func (z *lazy) byTOC() bool {
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.form == formOpen {
		z.form = formTOC
		if b := z.source.blobs; b.hasBlob(z.layer.Digest) || b.hasDiff(z.layer) {
			z.form = formTar
		}
	}
	return z.form == formTOC
}

// giveUp says whether the layer is read as a tar after all, because err is what came of its table.
func (z *lazy) giveUp(err error) bool {
	if layer.IsEmitError(err) || !errors.Is(err, imgsrc.ErrDamaged) && !errors.Is(err, imgsrc.ErrUnsupported) {
		return false
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.proven {
		return false
	}
	z.ranges.giveUp()
	if z.form != formTar {
		z.form = formTar
		z.source.log.Warn("reading a layer as a whole: its table of contents cannot be used", "source", z.source.Name(), "blob", z.layer.Digest, "error", err)
	}
	return true
}

// How to get at a part of the blob, in the order in which it is tried.
const (
	tryAny   = iota // from the cache, or by asking for it
	tryAgain        // by asking for it: what came before was wrong
	tryWhole        // from the whole blob, verified, if the registry knows no ranges
	tries
)

// part returns a part of the blob. near is nil for what is no file's.
func (z *lazy) part(ctx context.Context, from, to int64, try int, near *vicinity) ([]byte, error) {
	r := z.ranges
	for wait := true; try == tryAny && !r.has(from, to); {
		if b := r.fromPart(from, to); b != nil {
			return b, nil
		}
		r.fetchRest(from, near)
		b, ok, err := r.fromBlob(ctx, from, to, false)
		if ok {
			return b, nil
		}
		wait = wait && err == nil // it failed to come
		if b, err := r.get(ctx, from, to, near, wait, false); !errors.Is(err, errComing) {
			return b, r.judge(err)
		}
	}
	if try == tryWhole {
		return r.fromWhole(ctx, from, to)
	}
	b, err := r.get(ctx, from, to, near, false, try == tryAgain)
	return b, r.judge(err)
}

// each calls work with one try after the other until it brings what is right, or what is wrong again. Errors that say nothing of the
// bytes end it.
func each(last int, work func(try int) error) (err error) {
	for try := tryAny; try <= last; try++ {
		err = work(try)
		switch {
		case errors.Is(err, imgsrc.ErrUnsupported): // ranges are not understood
			try = max(try, tryAgain)
		case try == tryAgain || !errors.Is(err, imgsrc.ErrDamaged):
			return err
		}
	}
	return err
}

// entries lists the layer's files from its table of contents.
func (z *lazy) entries(ctx context.Context, emit func(*imgsrc.File) error) error {
	s := z.source
	select {
	case s.tocs <- struct{}{}: // each takes memory
		defer func() { <-s.tocs }()
	case <-ctx.Done():
		return ctx.Err()
	}
	z.mu.Lock()
	last := tryAgain // rather than fetch all of it for the table, the tar is taken
	if z.proven {
		last = tryWhole
	}
	z.mu.Unlock()
	var toc *layer.TOC
	err := each(last, func(try int) (err error) {
		toc, err = z.ref.ReadTOC(ctx, func(ctx context.Context, from, to int64) ([]byte, error) {
			return z.part(ctx, from, to, try, nil)
		})
		return err
	})
	if err != nil {
		return fmt.Errorf("layer %s: %w", z.layer.Digest, err)
	}
	chunks, err := toc.Entries(ctx, emit)
	if err != nil {
		return fmt.Errorf("layer %s: %w", z.layer.Digest, err)
	}
	s.unpacked.put(chunkKey{z, ofTable}, chunks, chunks.Memory())
	z.mu.Lock()
	defer z.mu.Unlock()
	z.proven, z.chunks, z.weak = true, chunks, weak.Make(chunks)
	return nil
}

// known returns the table of chunks if it is in memory, or else nil.
func (z *lazy) known() *layer.Chunks {
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.chunks == nil {
		z.chunks = z.weak.Value()
	}
	return z.chunks
}

// table returns where the bodies lie.
func (z *lazy) table(ctx context.Context) (*layer.Chunks, error) {
	for {
		if t := z.known(); t != nil {
			return t, nil
		}
		z.mu.Lock()
		z.proven = true // in this process or another, or there would be no body to read
		z.mu.Unlock()
		type work struct{ z *lazy }
		_, err := doAsUser(ctx, z, work{z}, func(ctx context.Context) (struct{}, error) { return struct{}{}, z.entries(ctx, nil) })
		if err != nil {
			return nil, err
		}
	}
}

// doAsUser does work for all who want it, as a user of the layer, in the source's context. All of them get what it returns.
func doAsUser[T any](ctx context.Context, z *lazy, key any, work func(context.Context) (T, error)) (T, error) {
	s := z.source
	return flight.Do(ctx, s.flights, key, func(ctx context.Context) (T, error) {
		s.lazyMu.Lock()
		s.useLazyLocked(z)
		s.lazyMu.Unlock()
		defer z.release()
		return work(ctx)
	})
}

// A chunkKey names a chunk of a layer.
type chunkKey struct {
	z *lazy
	n int
}

// chunk returns the bytes of a chunk, verified.
func (z *lazy) chunk(ctx context.Context, t *layer.Chunks, n int) (b []byte, err error) {
	s, key := z.source, chunkKey{z, n}
	if b, ok := s.unpacked.get(key).([]byte); ok {
		return b, nil
	}
	return doAsUser(ctx, z, key, func(ctx context.Context) (b []byte, err error) {
		from, to := t.Range(n)
		size := min(to-from+t.Size(n), unpackBytes)
		if err := s.unpacking.Acquire(ctx, size); err != nil {
			return nil, err
		}
		defer s.unpacking.Release(size)
		err = each(tryWhole, func(try int) error {
			packed, err := z.part(ctx, from, to, try, &vicinity{snap: t.Snap, turn: t.Turn(n), files: t.Files()})
			if err != nil {
				return err
			}
			if b, err = t.Unpack(n, packed); err != nil && try > tryAny {
				if !z.said.Swap(true) { // of all of its chunks
					s.log.Error("reading a layer", "source", s.Name(), "blob", z.layer.Digest, "error", err)
				}
				err = imgsrc.Logged(err)
			}
			return err
		})
		if err != nil {
			return nil, err
		}
		s.unpacked.put(key, b, int64(len(b)))
		return b, nil
	})
}
