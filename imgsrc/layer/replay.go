package layer

import (
	"context"
	"io"
)

// A replay decompresses a layer again and again instead of keeping it: what is left where no file can be written.
// Reading on is as fast as decompressing, reading back starts from the beginning, but for a window of a few chunks. The
// chunks are compared with the tags of a first pass.
type replay struct {
	cache *Cache
	src   blobSource
	tags  *tags

	turn   chan struct{} // whoever may take this owns all that follows
	stream *replayStream
	next   int64 // the chunk that the stream gives next
	window [8]replayChunk
}

type replayChunk struct {
	n int64
	b []byte // empty: not valid
}

// bringReplay verifies the blob in a pass that keeps nothing but the tags.
func (c *Cache) bringReplay(src blobSource) (*store, error) {
	if err := take(c.ctx, c.slots); err != nil {
		return nil, err
	}
	defer func() { <-c.slots }()
	t, err := newTags()
	if err != nil {
		return nil, err
	}
	p, err := runPass(c.ctx, src, c.bomb, func(chunk []byte, _ int64, _ uint32) error {
		t.add(chunk)
		return nil
	})
	if err != nil {
		return nil, err
	}
	r := &replay{cache: c, src: src, tags: t, turn: make(chan struct{}, 1)}
	r.turn <- struct{}{}
	return &store{pass: *p, replay: r}, nil
}

// chunk reads chunk n into p, which is as long as the chunk. Error: *chunkError if this chunk or one before it is not
// what it was.
func (r *replay) chunk(ctx context.Context, n int64, p []byte) error {
	select {
	case <-r.turn:
		defer func() { r.turn <- struct{}{} }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if w := &r.window[n%int64(len(r.window))]; w.n == n && len(w.b) == len(p) {
		copy(p, w.b)
		return nil
	}
	if r.stream == nil || n < r.next {
		r.stop()
		s, err := openReplay(r.cache.ctx, r.src)
		if err != nil {
			return err
		}
		r.stream, r.next = s, 0
	}
	for r.next <= n {
		if err := ctx.Err(); err != nil {
			return err // the next reader goes on from here
		}
		w := &r.window[r.next%int64(len(r.window))]
		if w.b == nil {
			w.b = make([]byte, 0, chunkSize)
		}
		m, err := readFull(r.stream.z, w.b[:chunkSize])
		w.n, w.b = r.next, w.b[:m]
		if err != nil && err != io.EOF {
			w.b = w.b[:0]
			r.stop()
			return err
		}
		if !r.tags.match(int(r.next), w.b) {
			w.b = w.b[:0]
			r.stop()
			return &chunkError{r.next}
		}
		r.next++
	}
	copy(p, r.window[n%int64(len(r.window))].b)
	return nil
}

func (r *replay) stop() {
	if r.stream != nil {
		r.stream.close()
		r.stream = nil
	}
}

// close waits for the reader whose turn it is.
func (r *replay) close() {
	<-r.turn
	r.stop()
	r.turn <- struct{}{}
}

// A replayStream is one run through the blob.
type replayStream struct {
	blob   io.ReadCloser
	ahead  *readAhead
	z      io.ReadCloser
	cancel context.CancelFunc
}

func openReplay(ctx context.Context, src blobSource) (*replayStream, error) {
	blob, err := src.open(ctx)
	if err != nil {
		return nil, err
	}
	s := &replayStream{blob: blob}
	ctx, s.cancel = context.WithCancel(ctx)
	s.ahead = newReadAhead(ctx, blob, src.blob.Algorithm().Hash())
	if s.z, _, err = Decompress(s.ahead); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *replayStream) close() {
	if s.z != nil {
		s.z.Close()
	}
	s.cancel()
	s.ahead.wait()
	s.blob.Close()
}
