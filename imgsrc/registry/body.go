package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
)

// A body is a blob as it comes in. A connection that is cut, or brings nothing for too long, is replaced by another that
// goes on where it stopped. Its bytes are not verified.
type body struct {
	client *Client
	ctx    context.Context
	repo   string
	digest digest.Digest
	off    int64  // of the next byte
	total  int64  // bytes of the whole blob; -1 until a server has said
	end    int64  // behind its last byte; -1: that is where the blob ends
	begun  int64  // off at the beginning
	failed int    // connections that broke, but for those that are forgiven
	mark   int64  // off when the last one did
	plain  bool   // the server does not understand ranges
	direct bool   // mirrors are left out
	came   func() // called when something has come; nil: nobody wants to know

	in     io.ReadCloser // nil: there is no connection
	cancel context.CancelCauseFunc
	stall  *time.Timer
}

// Blob opens a blob's bytes from an offset. Reading fails with ctx's error when ctx ends.
func (c *Client) Blob(ctx context.Context, repo string, d digest.Digest, offset int64) (io.ReadCloser, error) {
	return c.blob(ctx, repo, d, offset, -1, false)
}

// blob is Blob for one whose size is known; -1 if it is not. Another size than that is imgsrc.ErrDamaged. With direct no
// mirror is asked.
func (c *Client) blob(ctx context.Context, repo string, d digest.Digest, offset, size int64, direct bool) (io.ReadCloser, error) {
	b := c.newBody(ctx, repo, d, offset, size, direct)
	if err := b.connect(); err != nil {
		return nil, err
	}
	return b, nil
}

// newBody is blob, before it is connected.
func (c *Client) newBody(ctx context.Context, repo string, d digest.Digest, offset, size int64, direct bool) *body {
	return &body{client: c, ctx: ctx, repo: repo, digest: d, off: offset, begun: offset, mark: offset, total: size, end: -1, direct: direct}
}

// blobPart is blob for a part of it. What comes is all the rest of the blob where the server does not understand ranges: then its
// end is -1. came is called when something has come. With goesOn the part follows on others that have come.
func (c *Client) blobPart(ctx context.Context, repo string, d digest.Digest, part span, size int64, goesOn bool, came func()) (*body, error) {
	b := c.newBody(ctx, repo, d, part.from, size, false)
	b.end, b.came = part.to, came
	if goesOn {
		b.begun = -1
	}
	if err := b.connect(); err != nil && (!goesOn || !errors.Is(err, syscall.ECONNREFUSED)) {
		return nil, err
	}
	return b, nil
}

// bytesFor is how far a blob must come for a failure to be forgiven. None is forgiven beforehand: a registry that goes away
// in the middle of a large blob is given up as soon as in a small one.
const bytesFor = 1 << 20

func (b *body) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		end := b.total
		if b.end >= 0 {
			end = b.end
			p = p[:min(int64(len(p)), max(end-b.off, 0))]
		}
		if b.end >= 0 && b.off >= end || b.in == nil && end >= 0 && b.off >= end {
			b.disconnect()
			return 0, io.EOF
		}
		if b.in == nil {
			if err := b.connect(); err != nil {
				if b.off == b.begun || !errors.Is(err, syscall.ECONNREFUSED) {
					return 0, err
				}
				if err := b.broken(err); err != nil { // it is perhaps being restarted
					return 0, err
				}
				continue
			}
		}
		b.stall.Reset(b.client.limits.stall)
		n, err := b.in.Read(p)
		b.stall.Stop()
		b.off += int64(n)
		b.count(n)
		if err == io.EOF && (end < 0 || b.off >= end) {
			b.disconnect()
			if b.end < 0 {
				b.total = b.off
			}
			if n > 0 {
				return n, nil
			}
			return 0, io.EOF
		}
		if err != nil {
			err = b.broken(err)
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

// broken takes note of a connection that ended with err before the blob did. It returns an error if that has happened too
// often.
func (b *body) broken(err error) error {
	cause := context.Cause(b.streamContext())
	b.disconnect()
	if b.ctx.Err() != nil {
		return b.ctx.Err()
	}
	if errors.Is(cause, errStalled) {
		err = errStalled
	}
	b.failed = max(b.failed-int((b.off-b.mark)/bytesFor), 0) + 1
	b.mark = b.off
	doing := fmt.Sprintf("reading blob %s of %s/%s at %d", b.digest, b.client.host, b.repo, b.off)
	if b.failed >= b.client.limits.attempts {
		return sendFailure(doing, err, nil)
	}
	b.client.log.Debug("going on with another connection", "blob", b.digest, "offset", b.off, "error", sendFailure(doing, err, nil))
	return sleep(b.ctx, min(b.client.limits.backoff<<min(b.failed-1, 10), b.client.limits.wait))
}

// stream is a connection's reader, with the context that ends it.
type stream struct {
	io.ReadCloser
	ctx context.Context
}

func (b *body) streamContext() context.Context {
	if s, ok := b.in.(*stream); ok {
		return s.ctx
	}
	return b.ctx
}

func (b *body) disconnect() {
	if b.in != nil {
		b.cancel(context.Canceled)
		b.in.Close()
		b.stall.Stop()
		b.in = nil
	}
}

func (b *body) Close() error {
	b.disconnect()
	return nil
}

// connect asks for the rest of the blob.
func (b *body) connect() error {
	all, err := b.client.places(b.repo, b.digest.String())
	if err != nil {
		return err
	}
	if b.direct {
		all = all[len(all)-1:]
	}
	return b.client.eachOf(b.ctx, all, func(p place) error {
		return b.client.retry(b.ctx, p.blobTrouble(), func(limit time.Duration) error { return b.connectTo(p, limit) })
	})
}

func (b *body) connectTo(p place, limit time.Duration) error {
	if limit == 0 {
		limit = b.client.limits.stall
	}
	ctx, cancel := context.WithCancelCause(b.ctx)
	stall := time.AfterFunc(p.patience(ctx, limit), func() { cancel(errStalled) })
	r := p.request(http.MethodGet, "/blobs/"+b.digest.String())
	r.want = []int{http.StatusOK, http.StatusPartialContent}
	if (b.off > 0 || b.end >= 0) && !b.plain {
		end := ""
		to := b.end
		if to < 0 {
			to = b.total
		}
		if to > b.off { // some servers want to be told
			end = strconv.FormatInt(to-1, 10)
		}
		r.header.Set("Range", fmt.Sprintf("bytes=%d-%s", b.off, end))
	}
	resp, err := p.send(ctx, r)
	if f := (*failure)(nil); errors.As(err, &f) && f.status == http.StatusRequestedRangeNotSatisfiable && !b.plain {
		b.plain, f.temporary = true, true
	}
	if err == nil {
		if wrong := b.accept(resp); wrong != nil {
			wrong.text = r.doing(p.endpoint) + ": " + wrong.text
			resp.Body.Close()
			err = wrong
		}
	}
	if err == nil && b.off > 0 && resp.StatusCode == http.StatusOK {
		err = b.skip(resp.Body, stall)
		if err != nil {
			err = sendFailure(r.doing(p.endpoint), err, nil)
			resp.Body.Close()
		}
	}
	stall.Stop()
	if err != nil {
		cancel(context.Canceled)
		return err
	}
	if resp.StatusCode == http.StatusOK {
		b.end = -1
	}
	b.in, b.cancel, b.stall = &stream{resp.Body, ctx}, cancel, stall
	return nil
}

// skip reads over what is there already, where the server sends all of it whatever it is asked.
func (b *body) skip(r io.Reader, stall *time.Timer) error {
	buf := make([]byte, 256<<10)
	for left := b.off; left > 0; {
		stall.Reset(b.client.limits.stall)
		n, err := r.Read(buf[:min(left, int64(len(buf)))])
		left -= int64(n)
		b.count(n)
		if err != nil && left > 0 {
			return err
		}
	}
	return nil
}

// count takes note of n bytes that have come.
func (b *body) count(n int) {
	b.client.counted(b.digest, n)
	if n > 0 && b.came != nil {
		b.came()
	}
}

var contentRange = regexp.MustCompile(`^bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)$`)

// errOtherSize is that a blob has not the size that it should have, of which not a byte need come. It may well be its digest's.
var errOtherSize = fmt.Errorf("%w: another size", imgsrc.ErrDamaged)

// accept takes the blob's size from an answer's header. It fails if that is not the part that was asked for, or another
// size than before; what was asked for is to be said before that.
func (b *body) accept(resp *http.Response) *failure {
	damaged := func(format string, args ...any) *failure {
		return &failure{text: fmt.Sprintf(format, args...), condition: imgsrc.ErrDamaged}
	}
	total := int64(-1)
	if resp.StatusCode == http.StatusPartialContent {
		m := contentRange.FindStringSubmatch(resp.Header.Get("Content-Range"))
		if m == nil {
			return damaged("content range %q", resp.Header.Get("Content-Range"))
		}
		first, _ := strconv.ParseInt(m[1], 10, 64)
		if first != b.off {
			return damaged("bytes from %d, asked for those from %d", first, b.off)
		}
		if m[3] != "*" {
			total, _ = strconv.ParseInt(m[3], 10, 64)
		}
	} else if resp.ContentLength >= 0 {
		total = resp.ContentLength
	}
	if total >= 0 && b.total >= 0 && total != b.total {
		return &failure{text: fmt.Sprintf("it has %d bytes, and should have %d", total, b.total), condition: errOtherSize}
	}
	if total >= 0 {
		b.total = total
	}
	return nil
}

// BlobRange returns n bytes of a blob from an offset, fewer where the blob ends. They are not verified. Error:
// imgsrc.ErrUnsupported if the server does not send the parts of blobs that it is asked for.
func (c *Client) BlobRange(ctx context.Context, repo string, d digest.Digest, offset, n int64) (part []byte, err error) {
	return c.blobRange(ctx, repo, d, offset, n, false)
}

// blobRange is BlobRange; with direct no mirror is asked. A connection that breaks is replaced by one that goes on where it stopped.
func (c *Client) blobRange(ctx context.Context, repo string, d digest.Digest, offset, n int64, direct bool) (part []byte, err error) {
	all, err := c.places(repo, d.String())
	if err != nil {
		return nil, err
	}
	if direct {
		all = all[len(all)-1:]
	}
	err = c.eachOf(ctx, all, func(p place) error {
		return c.retry(ctx, p.blobTrouble(), func(limit time.Duration) error {
			part, err = c.blobRangeFrom(ctx, p, d, offset, n, part, limit)
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	return part, nil
}

// blobRangeFrom asks a server for what part lacks of a range, and returns part with what has come of that.
func (c *Client) blobRangeFrom(ctx context.Context, p place, d digest.Digest, offset, n int64, part []byte, limit time.Duration) ([]byte, error) {
	if limit == 0 {
		limit = c.limits.stall
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(context.Canceled)
	stall := time.AfterFunc(p.patience(ctx, limit), func() { cancel(errStalled) })
	defer stall.Stop()
	r := p.request(http.MethodGet, "/blobs/"+d.String())
	from := offset + int64(len(part))
	r.header.Set("Range", fmt.Sprintf("bytes=%d-%d", from, offset+n-1))
	r.want = []int{http.StatusOK, http.StatusPartialContent, http.StatusRequestedRangeNotSatisfiable}
	resp, err := p.send(ctx, r)
	if err != nil {
		return part, err
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusRequestedRangeNotSatisfiable:
		return part, nil
	case http.StatusOK:
		if from > 0 {
			return part, &failure{text: r.doing(p.endpoint) + ": the server knows no ranges", status: resp.StatusCode, condition: imgsrc.ErrUnsupported}
		}
	default:
		b := &body{off: from, total: -1}
		if wrong := b.accept(resp); wrong != nil {
			wrong.text, wrong.status, wrong.condition = r.doing(p.endpoint)+": "+wrong.text, resp.StatusCode, imgsrc.ErrUnsupported
			return part, wrong
		}
	}
	if part == nil {
		part = make([]byte, 0, min(n, 4<<20))
	}
	for err == nil && int64(len(part)) < n {
		var k int
		part = slices.Grow(part, 1)
		stall.Reset(c.limits.stall)
		k, err = resp.Body.Read(part[len(part):min(int64(cap(part)), n)])
		part = part[:len(part)+k]
		c.counted(d, k)
	}
	if err != nil && err != io.EOF {
		if errors.Is(context.Cause(ctx), errStalled) {
			err = errStalled
		}
		return part, sendFailure(r.doing(p.endpoint), err, p.knownSecrets())
	}
	return part, nil
}

// BlobSize returns how many bytes the registry says that a blob has; -1 if it does not say.
func (c *Client) BlobSize(ctx context.Context, repo string, d digest.Digest) (size int64, err error) {
	err = c.each(ctx, repo, d.String(), func(p place) error {
		header, _, err := c.document(ctx, p, p.request(http.MethodHead, "/blobs/"+d.String()), 0)
		if err == nil {
			size, err = strconv.ParseInt(header.Get("Content-Length"), 10, 64)
		}
		return err
	})
	return size, err
}
