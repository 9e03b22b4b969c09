package registry

import (
	"context"
	"errors"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/cachefile"
)

// A rest is a blob from an offset on, in order, of which parts are here: those are read from the ranges' file, and what lies
// between them is asked for, in large ranges, the next before the last has come. Its bytes are not verified.
type rest struct {
	ranges *ranges
	blob   *blob
	ctx    context.Context
	cancel context.CancelFunc

	// Guarded by ranges.mu; off and claims are changed by Read only.
	off    int64
	claims []*claim  // in order
	came   int64     // bytes from the registry
	since  time.Time // that began
}

// A claim is a range that a rest has asked for. Who wants something of it waits, and does not ask himself.
type claim struct {
	span
	repo  string
	ready chan struct{} // closed when in and err are set
	in    *body
	err   error
}

const (
	// maxClaims is how many ranges are asked for at a time: where many parts are here, what lies between them is little.
	maxClaims = 4
	// claimTime is how long it takes for what is asked for to come, about: so long waits who wants the last of it. At least
	// streamAhead is.
	claimTime = 500 * time.Millisecond
	maxAhead  = 128 << 20
)

var _ io.ReadCloser = (*rest)(nil)

// partsOf returns what is here by ranges of a blob, with one more user. Nil if nothing is, or it is of no use.
func (s *Source) partsOf(x *blob) *ranges {
	s.lazyMu.Lock()
	defer s.lazyMu.Unlock()
	r := s.parts[x.digest]
	if r == nil {
		if x.size <= 0 || !hasFile(s.blobs.dir, rangesPath(x.digest)) {
			return nil
		}
		r = &ranges{source: s, digest: x.digest, size: x.size}
		r.addRepos([]string{x.repo})
		s.parts[x.digest] = r
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.size != x.size || r.broken || r.rest != nil {
		return nil
	}
	r.use()
	return r
}

func (r *ranges) open(ctx context.Context, x *blob, off int64) *rest {
	s := &rest{ranges: r, blob: x, off: off}
	s.ctx, s.cancel = context.WithCancel(ctx)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.openLocked()
	r.rest = s
	return s
}

// Close ends all requests.
func (s *rest) Close() error {
	s.cancel()
	s.drop(s.claims)
	r := s.ranges
	r.mu.Lock()
	s.claims, r.rest = nil, nil
	r.mu.Unlock()
	r.source.releaseRanges(r)
	return nil
}

// drop ends requests that are not needed any more; the context of those that are not answered has ended, or their answer is waited for.
func (s *rest) drop(claims []*claim) {
	for _, c := range claims {
		if <-c.ready; c.in != nil {
			c.in.Close()
		}
	}
}

func (s *rest) Read(p []byte) (int, error) {
	r := s.ranges
	for s.off < r.size {
		r.mu.Lock()
		s.claimLocked()
		from, to := s.off, r.have.until(s.off)
		var c *claim
		if len(s.claims) > 0 {
			if to = min(to, s.claims[0].from); to <= from {
				c = s.claims[0]
			}
		}
		g, file := r.flyingLocked(from, from+1), r.file
		sure := r.got.until(from) >= min(to, from+int64(len(p)))
		r.mu.Unlock()
		switch {
		case c != nil:
			n, err := s.receive(c, p)
			if errors.Is(err, imgsrc.ErrDamaged) && !errors.Is(err, errOtherSize) { // another range came, which says nothing of the blob
				s.blob.doubtful = true
			}
			if n > 0 || err != nil {
				return n, err
			}
		case to > from:
			n, err := file.ReadAt(p[:min(int64(len(p)), to-from)], from)
			if err != nil {
				r.forget(from, to)
				continue
			}
			if !sure {
				s.blob.doubtful = true
			}
			s.advance(n, 0)
			s.blob.turn.came()
			return n, nil
		case g != nil:
			select {
			case <-g.done:
			case <-s.ctx.Done():
				return 0, s.ctx.Err()
			}
		default:
			return 0, errClosed
		}
	}
	return 0, io.EOF
}

func (s *rest) advance(n, came int) {
	s.ranges.mu.Lock()
	defer s.ranges.mu.Unlock()
	if s.came == 0 && came > 0 {
		s.since = time.Now()
	}
	s.off += int64(n)
	s.came += int64(came)
}

// receive reads from the first claim, and ends it when all of it has come.
func (s *rest) receive(c *claim, p []byte) (int, error) {
	select {
	case <-c.ready:
	case <-s.ctx.Done():
		return 0, s.ctx.Err()
	}
	for asked := []string{c.repo}; c.err != nil; asked = append(asked, s.blob.repo) {
		if !s.blob.isElsewhere(c.err, asked) {
			return 0, c.err
		}
		c.repo = s.blob.repo
		s.ask(c, false)
	}
	n, err := c.in.Read(p)
	s.advance(n, n)
	if err != nil && err != io.EOF {
		return n, err
	}
	r := s.ranges
	r.mu.Lock()
	var over []*claim
	if c.in.end < 0 { // the registry knows no ranges, and sends all that follows
		over, s.claims = s.claims[1:], s.claims[:1:1]
		c.to = r.size
	}
	if s.off >= c.to {
		over, s.claims = append(over, c), s.claims[1:]
	} else if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	r.mu.Unlock()
	s.drop(over)
	if err == io.EOF {
		err = nil
	}
	return n, err
}

// claimLocked asks for what is missing next, as long as that is not too much ahead.
func (s *rest) claimLocked() {
	r := s.ranges
	ahead, at := int64(0), s.off
	for _, c := range s.claims {
		ahead, at = ahead+c.to-max(c.from, s.off), c.to
	}
	most := int64(streamAhead)
	if s.came >= bytesFor {
		most = max(most, min(maxAhead, s.perSecondLocked()*int64(claimTime/time.Millisecond)/1000))
	}
	for len(s.claims) < maxClaims && ahead+most/4 <= most {
		if len(s.claims) > 0 && len(r.got) == 0 && s.came == 0 {
			return // whether the registry knows ranges is to be seen
		}
		from, end := r.have.missing(at, r.size)
		if from >= end || r.flyingLocked(from, from+1) != nil {
			return
		}
		_, to := r.have.around(from, r.size)
		to = min(to, from+most/2)
		for _, g := range r.flying {
			if g.from > from {
				to = min(to, g.from)
			}
		}
		if r.lookLocked(from, to) {
			continue
		}
		c := &claim{span: span{from, to}, repo: s.blob.repo, ready: make(chan struct{}), err: errClosed}
		goesOn := s.came > 0
		if !r.source.flights.Start(c, func(context.Context) (any, error) {
			defer close(c.ready)
			s.ask(c, goesOn)
			return nil, nil
		}) {
			return
		}
		s.claims = append(s.claims, c)
		ahead, at = ahead+to-from, to
	}
}

// ask asks for a claim in its repository.
func (s *rest) ask(c *claim, goesOn bool) {
	r := s.ranges
	c.in, c.err = r.source.client.blobPart(s.ctx, c.repo, r.digest, c.span, r.size, goesOn, s.blob.turn.came)
}

func (s *rest) perSecondLocked() int64 {
	return s.came * 1000 / max(1, time.Since(s.since).Milliseconds())
}

// brings says whether something of a part has been asked for. A nil rest brings nothing.
func (s *rest) brings(from, to int64) bool {
	if s == nil {
		return false
	}
	for _, c := range s.claims {
		if max(c.from, s.off) < to && from < c.to {
			return true
		}
	}
	return false
}

// spans are the parts that have been asked for.
func (s *rest) spans() (all []span) {
	if s != nil {
		for _, c := range s.claims {
			all = append(all, c.span)
		}
	}
	return all
}

// isSoonLocked says whether the rest will have come as far as an offset within some time, as it looks.
func (r *ranges) isSoonLocked(at int64, patience time.Duration) bool {
	s := r.rest
	if s == nil && !r.coming {
		return false
	}
	if s == nil || s.came == 0 {
		return time.Since(r.begun) <= patience // it is about to begin
	}
	missing := r.have.lacks(s.off, at)
	return missing*1000 <= s.perSecondLocked()*patience.Milliseconds()
}

// keepParts keeps the bytes of a blob that is wrong as a whole, of which the most may be right, for those who read it by parts.
func (x *blob) keepParts(f *os.File) {
	s := x.blobs.source
	r := s.partsOf(x)
	if r == nil {
		return
	}
	defer s.releaseRanges(r)
	r.mu.Lock()
	r.openLocked()
	r.broken = true
	r.mu.Unlock()
	for end := min(fileSize(f), r.size); ; {
		r.mu.Lock()
		from, to := r.have.missing(0, end)
		_, behind := r.have.around(from, end)
		g := &fetching{span: span{from, min(from+lastWindow, behind)}}
		if from < to {
			g.data = make([]byte, g.to-from)
			if _, err := f.ReadAt(g.data, from); err == nil {
				r.keepLocked(g)
			}
		}
		kept := from < to && r.have.has(g.from, g.to)
		r.mu.Unlock()
		if !kept {
			return
		}
	}
}

// fromPart returns a part of the blob from the file in which that comes in, or did until its connection broke: in another process, or
// in an earlier mount. Nil if it is not there, or comes in here: then it is waited for.
func (r *ranges) fromPart(from, to int64) []byte {
	r.mu.Lock()
	coming := r.coming || r.rest != nil
	r.mu.Unlock()
	dir := r.source.blobs.dir
	if coming || dir == nil {
		return nil
	}
	f, err := dir.OpenFile(partPath(r.digest), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() || fi.Size() < to {
		return nil
	}
	b := make([]byte, to-from)
	if _, err := f.ReadAt(b, from); err != nil {
		return nil
	}
	return b
}

// unnameParts removes the name of the ranges' file when the whole blob has one: who has opened it can read on.
func (s *Source) unnameParts(x *blob) {
	s.lazyMu.Lock()
	r := s.parts[x.digest]
	s.lazyMu.Unlock()
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.unnameLocked()
	s.told.complete(r.digest)
}

// unnameLocked is unnameParts of these.
func (r *ranges) unnameLocked() {
	b := r.source.blobs
	if r.file != nil && hasFile(b.dir, blobPath(r.digest)) {
		cachefile.Remove(b.dir, rangesPath(r.digest), r.file, r.source.log)
	}
}
