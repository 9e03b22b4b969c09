package layer

import (
	"context"
	_ "crypto/sha256" // for go-digest
	_ "crypto/sha512"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
)

// chunkSize is how many uncompressed bytes one checksum covers. It is part of the file format.
const chunkSize = 1 << 20

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// A bomb is how far a blob may expand: freely up to free bytes, beyond that to ratio times the bytes read.
type bomb struct {
	free, ratio int64
}

var defaultBomb = bomb{free: 16 << 30, ratio: 500}

// A blobSource is a compressed layer that can be read from its start, any number of times.
type blobSource struct {
	blob   digest.Digest
	diffID digest.Digest // empty if it is not known
	open   func(context.Context) (io.ReadCloser, error)
}

// A pass is what one decompression of a blob found out.
type pass struct {
	size int64    // uncompressed bytes
	sums []uint32 // CRC-32C of each chunk
}

// A sinkError is a failure to store what was decompressed, for which the blob is not to blame.
type sinkError struct{ err error }

func (e *sinkError) Error() string { return e.err.Error() }
func (e *sinkError) Unwrap() error { return e.err }

// A sourceError is that there is nothing to read: the source's to say, and the same in whichever way the layer is wanted.
type sourceError struct{ err error }

func (e *sourceError) Error() string { return e.err.Error() }
func (e *sourceError) Unwrap() error { return e.err }

// runPass decompresses the blob, calls write with each chunk in its order and its checksum, and verifies both digests.
// The chunks count for nothing until it has returned without an error. Reading, inflating, and hashing with writing each
// have a goroutine: on a gzip layer everything but inflating is then free.
func runPass(ctx context.Context, src blobSource, limit bomb, write func(chunk []byte, off int64, sum uint32) error) (*pass, error) {
	rc, err := src.open(ctx)
	if err != nil {
		return nil, &sourceError{err}
	}
	defer rc.Close()
	ctx, cancel := context.WithCancel(ctx)
	in := newReadAhead(ctx, rc, src.blob.Algorithm().Hash())
	defer in.wait() // after cancel: rc must not be closed under a read
	defer cancel()

	z, _, err := Decompress(in)
	if err != nil {
		return nil, err
	}
	defer z.Close()
	p, diffID, err := digestChunks(z, src.diffID, func(chunk []byte, off int64, sum uint32) error {
		if err := ctx.Err(); err != nil {
			return err // what is read ahead can be gigabytes of zeros
		}
		if end := off + int64(len(chunk)); end > limit.free && end/limit.ratio > in.count.Load() {
			return fmt.Errorf("%w: it expands to more than %d times its %d bytes", imgsrc.ErrDamaged, limit.ratio, in.count.Load())
		}
		if err := write(chunk, off, sum); err != nil {
			return &sinkError{err}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if _, err := io.Copy(io.Discard, in); err != nil {
		return nil, err
	}
	if got := digest.NewDigest(src.blob.Algorithm(), in.sum); got != src.blob {
		return nil, fmt.Errorf("%w: its bytes are %s", imgsrc.ErrDamaged, got)
	}
	if src.diffID != "" && diffID != src.diffID {
		return nil, fmt.Errorf("%w: uncompressed it is %s, and the config says %s", imgsrc.ErrDamaged, diffID, src.diffID)
	}
	return p, nil
}

// digestChunks cuts r into chunks, and hashes them and hands them to each in a goroutine of its own. The digest is
// empty if there is none to compare it with.
func digestChunks(r io.Reader, want digest.Digest, each func(chunk []byte, off int64, sum uint32) error) (*pass, digest.Digest, error) {
	full, free := make(chan []byte, passBuffers), newBuffers(chunkPool)
	defer free.release() // last: nobody uses them any more
	var (
		p    pass
		sum  hash.Hash
		err  error // of each; read after done is closed
		done = make(chan struct{})
		stop atomic.Bool
	)
	if want != "" {
		sum = want.Algorithm().Hash()
	}
	go func() {
		defer close(done)
		for chunk := range full {
			if err == nil {
				crc := crc32.Checksum(chunk, castagnoli)
				if err = each(chunk, p.size, crc); err != nil {
					stop.Store(true)
				}
				p.sums = append(p.sums, crc)
				p.size += int64(len(chunk))
				if sum != nil {
					sum.Write(chunk)
				}
			}
			free.put(chunk[:chunkSize])
		}
	}()
	finish := sync.OnceFunc(func() {
		close(full)
		<-done
	})
	defer finish() // also if r panics
	var readErr error
	for readErr == nil && !stop.Load() {
		chunk := free.get()
		var n int
		n, readErr = readFull(r, chunk)
		if n > 0 {
			full <- chunk[:n]
		} else {
			free.put(chunk)
		}
	}
	finish()
	switch {
	case err != nil:
		return nil, "", err
	case readErr != io.EOF:
		return nil, "", readErr
	}
	if sum == nil {
		return &p, "", nil
	}
	return &p, digest.NewDigest(want.Algorithm(), sum), nil
}

// A readAhead reads and hashes its source in a goroutine, a few buffers ahead. Its Read fails with ctx's error once ctx
// has ended.
type readAhead struct {
	ctx   context.Context
	count atomic.Int64 // bytes read so far
	sum   hash.Hash    // of all bytes read; valid after Read has returned io.EOF

	full     chan []byte
	free     *buffers
	done     chan struct{}
	err      error // why the goroutine ended; valid when full is closed
	cur, buf []byte
}

func newReadAhead(ctx context.Context, r io.Reader, sum hash.Hash) *readAhead {
	a := &readAhead{ctx: ctx, sum: sum, full: make(chan []byte, passBuffers), free: newBuffers(inputPool), done: make(chan struct{})}
	go func() {
		defer close(a.done)
		defer close(a.full)
		a.err = a.fill(r)
	}()
	return a
}

func (a *readAhead) fill(r io.Reader) error {
	for {
		buf := a.free.getUntil(a.ctx.Done())
		if err := a.ctx.Err(); err != nil {
			return err
		}
		n, err := readFull(r, buf)
		a.sum.Write(buf[:n])
		a.count.Add(int64(n))
		if n > 0 {
			a.full <- buf[:n] // never blocks: there are as many places as buffers
		}
		if err != nil {
			return err
		}
	}
}

func (a *readAhead) Read(p []byte) (int, error) {
	for len(a.cur) == 0 {
		if a.buf != nil {
			a.free.put(a.buf)
			a.buf = nil
		}
		if err := a.ctx.Err(); err != nil {
			return 0, err
		}
		buf, ok := <-a.full
		if !ok {
			return 0, a.err
		}
		a.cur, a.buf = buf, buf[:cap(buf)]
	}
	n := copy(p, a.cur)
	a.cur = a.cur[n:]
	return n, nil
}

// wait returns when the source is not read any more. The context must have ended, or the source. The reader is not used
// after it.
func (a *readAhead) wait() {
	<-a.done
	a.free.release()
}

// passBuffers is how many buffers a stage of a pass has at the most.
const passBuffers = 4

// Most layers are smaller than one chunk: what a pass needs is made when it needs it, and kept for the next one.
var (
	chunkPool = &sync.Pool{New: func() any { return make([]byte, chunkSize) }}
	inputPool = &sync.Pool{New: func() any { return make([]byte, 256<<10) }}
)

// buffers are those of one stage. One goroutine gets them; any may put them back.
type buffers struct {
	pool *sync.Pool
	made [][]byte
	free chan []byte
}

func newBuffers(pool *sync.Pool) *buffers {
	return &buffers{pool: pool, free: make(chan []byte, passBuffers)}
}

// get returns a buffer, waiting for one if all are in use.
func (b *buffers) get() []byte { return b.getUntil(nil) }

// getUntil is get, and returns nil when done is closed before there is one.
func (b *buffers) getUntil(done <-chan struct{}) []byte {
	select {
	case buf := <-b.free:
		return buf
	default:
	}
	if len(b.made) < passBuffers {
		buf := b.pool.Get().([]byte)
		b.made = append(b.made, buf)
		return buf
	}
	select {
	case buf := <-b.free:
		return buf
	case <-done:
		return nil
	}
}

func (b *buffers) put(buf []byte) { b.free <- buf }

// release gives all of them back, when none is in use any more.
func (b *buffers) release() {
	for _, buf := range b.made {
		b.pool.Put(buf) //nolint:staticcheck // a slice's header is small beside what it stands for
	}
	b.made = nil
}

// readFull is io.ReadFull, but its error is always r's own: an io.ErrUnexpectedEOF is then a connection that broke, and
// not the end.
func readFull(r io.Reader, p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var m int
		m, err = r.Read(p[n:])
		n += m
	}
	return n, err
}

// isSinkError says whether err came from the place that the output went to.
func isSinkError(err error) bool {
	var e *sinkError
	return errors.As(err, &e)
}
