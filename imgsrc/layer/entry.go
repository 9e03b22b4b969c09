package layer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
)

// An entry is a layer of the cache while somebody holds it or it is being made. Its fields are guarded by Cache.mu.
type entry struct {
	key     key
	holders int    // contents that have used it since they were last closed
	store   *store // its bytes, if they are at hand; the entry has one reference
	job     *job   // the work that will bring them, if it is under way
	// distrust is set when the file was found damaged and may still be there.
	distrust bool
	// damaged are the blobs that turned out not to be this layer, so that they are not decompressed at every read.
	damaged map[digest.Digest]*verdict
}

// A verdict is what a pass said of a blob that it found damaged. It holds for a while, so that not every read goes through
// the blob again, and not for ever: somebody may repair it.
type verdict struct {
	err   error
	until time.Time
}

// A verdict holds for ten times as long as it took to find, between these two.
const minVerdict, maxVerdict = time.Second, 10 * time.Second

// verdictOf is err as the verdict of a pass that has just ended, or as the one that it repeats.
func verdictOf(err error, began time.Time) *verdict {
	if v := (*verdict)(nil); errors.As(err, &v) {
		return &verdict{err, v.until}
	}
	now := time.Now()
	return &verdict{err, now.Add(min(max(10*now.Sub(began), minVerdict), maxVerdict))}
}

func (v *verdict) Error() string { return v.err.Error() }

func (v *verdict) Unwrap() error { return v.err }

// holds says whether it does; none holds not.
func (v *verdict) holds() bool { return v != nil && time.Now().Before(v.until) }

// A job is one attempt to get at a layer's bytes.
type job struct {
	blob    digest.Digest
	done    chan struct{}
	err     error         // valid when done is closed
	early   chan struct{} // closed when growing is set
	growing *store        // what has arrived, if it can be verified already; nobody closes it
}

// content is the imgsrc.Content that Diff returns.
type content struct {
	cache   *Cache
	key     key
	src     blobSource
	invalid error
	held    bool // counted in the entry's holders; guarded by Cache.mu
}

var _ imgsrc.Content = (*content)(nil)

func (d *content) Size(ctx context.Context) (int64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if t := d.cache.known(d); t != nil {
		return t.size, nil
	}
	s, _, err := d.acquire(ctx)
	if err != nil {
		return 0, err
	}
	defer d.cache.release(s)
	return s.size, nil
}

// known returns what an earlier pass has found out of a layer whose bytes are not there any more.
func (c *Cache) known(d *content) *tags {
	if d.invalid != nil {
		return nil
	}
	c.mu.Lock()
	e, closed := c.entries[d.key], c.closed
	there := e != nil && (e.store != nil || e.damaged[d.src.blob] != nil)
	c.mu.Unlock()
	if closed || there {
		return nil
	}
	return c.loadTags(d.key)
}

func (d *content) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("reading layer %s: negative offset: %w", d.src.blob, fs.ErrInvalid)
	}
	for attempt := 0; ; attempt++ {
		s, j, err := d.acquire(ctx)
		if err != nil {
			return 0, err
		}
		n, err := s.readAt(ctx, p, off)
		d.cache.release(s)
		if err == nil || err == io.EOF {
			return n, err
		}
		if j != nil && ctx.Err() == nil { // it was not the whole yet: that says how it ended
			select {
			case <-j.done:
				if j.err != nil && j.blob == d.src.blob {
					return 0, j.err
				}
				attempt--
				continue
			case <-ctx.Done():
				return 0, ctx.Err()
			}
		}
		var bad *chunkError
		if !errors.As(err, &bad) {
			return n, fmt.Errorf("reading layer %s: %w", d.src.blob, err)
		}
		if attempt == 1 {
			return 0, fmt.Errorf("reading layer %s: %w: its cache file was made again, and %w", d.src.blob, imgsrc.ErrDamaged, err)
		}
		d.cache.log.Warn("discarding cache file", "path", d.key.path(), "error", err)
		d.cache.discard(d.key, s)
	}
}

func (d *content) Close() error {
	c := d.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	if !d.held {
		return nil
	}
	d.held = false
	if e := c.entries[d.key]; e != nil {
		e.holders--
		c.tidy(e)
	}
	return nil
}

// acquire returns the layer's bytes, which the caller releases, and waits for them if need be. With a job they are still
// arriving, and reading them fails if the job does.
func (d *content) acquire(ctx context.Context) (*store, *job, error) {
	if d.invalid != nil {
		return nil, nil, d.invalid
	}
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	c := d.cache
	for {
		c.mu.Lock()
		if c.closed {
			c.mu.Unlock()
			return nil, nil, fmt.Errorf("reading layer %s: cache: %w", d.src.blob, fs.ErrClosed)
		}
		e := c.entries[d.key]
		if e == nil {
			e = &entry{key: d.key, damaged: map[digest.Digest]*verdict{}}
			c.entries[d.key] = e
		}
		if !d.held {
			d.held = true
			e.holders++
		}
		if s := e.store; s != nil {
			s.refs++
			c.mu.Unlock()
			return s, nil, nil
		}
		if v := e.damaged[d.src.blob]; v.holds() {
			c.mu.Unlock()
			return nil, nil, v
		}
		if e.job == nil {
			c.start(e, d.src)
		}
		j := e.job
		c.mu.Unlock()
		select {
		case <-j.done:
		case <-j.early:
			c.mu.Lock()
			s := j.growing
			s.refs++
			c.mu.Unlock()
			return s, j, nil
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
		// Another blob's failure says nothing about this one.
		if j.err != nil && j.blob == d.src.blob {
			return nil, nil, j.err
		}
	}
}

// start begins a job for e. The caller holds c.mu.
func (c *Cache) start(e *entry, src blobSource) {
	j := &job{blob: src.blob, done: make(chan struct{}), early: make(chan struct{})}
	e.job = j
	distrust, began := e.distrust, time.Now()
	c.jobs.Go(func() {
		s, err := c.bring(e.key, src, distrust, j)
		if err != nil {
			if c.ctx.Err() != nil { // never context.Canceled: the reader's own context has not ended
				err = fmt.Errorf("cache: %w", fs.ErrClosed)
			}
			err = fmt.Errorf("decompressing layer %s: %w", src.blob, err)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if errors.Is(err, imgsrc.ErrDamaged) {
			v := verdictOf(c.logDamage("decompressing layer", src.blob, err), began)
			e.damaged[src.blob] = v
			err = v
		}
		j.err = err
		close(j.done)
		e.job = nil
		if err == nil {
			s.refs = 1
			e.store, e.distrust = s, false
		}
		c.tidy(e)
	})
}

// release gives back what acquire returned.
func (c *Cache) release(s *store) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unref(s)
}

func (c *Cache) unref(s *store) {
	if s.refs--; s.refs == 0 {
		s.close()
	}
}

func (c *Cache) dropStore(e *entry) {
	if e.store != nil {
		c.unref(e.store)
		e.store = nil
	}
}

// tidy forgets e if nobody needs it. The caller holds c.mu.
func (c *Cache) tidy(e *entry) {
	if e.holders == 0 && e.job == nil {
		c.dropStore(e)
		delete(c.entries, e.key)
	}
}

// discard throws s away, which was found damaged, so that the next acquire makes the layer again.
func (c *Cache) discard(k key, s *store) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.entries[k]
	if e == nil || e.store != s {
		return // another reader was faster
	}
	e.distrust = true
	c.dropStore(e)
}
