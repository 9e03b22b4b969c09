package ops

import (
	"bytes"
	"context"
	"io"

	"github.com/imgfs/imgfs/imgsrc"
)

// A contentReader reads content from its beginning to its end, and fails as soon as its context ends.
type contentReader struct {
	ctx     context.Context
	content imgsrc.Content
	reading func() (done func())
	off     int64
}

func (r *contentReader) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	defer r.reading()()
	n, err := r.content.ReadAt(r.ctx, p, r.off)
	r.off += int64(n)
	switch {
	case n > 0:
		err = nil // and again at the next read, if there is something to say
	case err != nil && err != io.EOF:
		err = &sourceError{err}
	}
	return n, err
}

func (r *contentReader) Close() error { return r.content.Close() }

// textContent is a config, which is in memory.
type textContent struct{ text *bytes.Reader }

func (t *textContent) Size(context.Context) (int64, error) { return t.text.Size(), nil }
func (t *textContent) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	return t.text.ReadAt(p, off)
}
func (t *textContent) Close() error { return nil }
