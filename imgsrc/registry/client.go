package registry

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/image/v5/types"

	"github.com/imgfs/imgfs/imgsrc"
)

// A Client asks one registry, by its name in references: of its mirrors, of where registries.conf says that it lies.
// Its methods may be called from several goroutines at once. Their errors are free of credentials; what errors.Is finds
// in them is imgsrc.ErrDenied, imgsrc.ErrNotFound, imgsrc.ErrUnsupported, imgsrc.ErrDamaged, or what the network says
// (syscall.ECONNREFUSED, ETIMEDOUT, EHOSTUNREACH).
type Client struct {
	host     string
	sys      *types.SystemContext // where the configuration of containers/image lies
	verify   *bool                // of Options.TLSVerify
	trusts   func(host string) bool
	certDirs []string
	limits   limits
	log      *slog.Logger
	count    func(d digest.Digest, n int) // called with the bytes that come in
	patient  bool                         // what has just failed is asked for as often and as long as anything else

	mu        sync.Mutex
	endpoints map[string]*endpoint // by host, and whether registries.conf calls it insecure
}

// NewClient returns the client of a registry, by the Options that concern how it is spoken to: Ref, which is its host, AuthFile,
// TLSVerify, Insecure and Log. Nobody is asked for anything yet. The caller closes it.
func NewClient(o Options) *Client {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	o.test = o.test.complete()
	c := newClient(o.Ref, o, nil)
	c.patient = true // who pushes tries again by himself
	return c
}

func newClient(host string, o Options, count func(digest.Digest, int)) *Client {
	sys := &types.SystemContext{}
	if o.test.sys != nil {
		*sys = *o.test.sys
	}
	if o.AuthFile != "" {
		sys.AuthFilePath = o.AuthFile
	}
	return &Client{
		host: host, sys: sys, verify: o.TLSVerify, trusts: Trust(o.Insecure), certDirs: o.test.certDirs,
		limits: o.test.limits, log: o.Log, count: count, endpoints: map[string]*endpoint{},
	}
}

// Close lets go of the connections.
func (c *Client) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.endpoints {
		e.http.CloseIdleConnections()
		if e.strict != nil {
			e.strict.CloseIdleConnections()
		}
	}
}

// limits are how long things may take.
type limits struct {
	document time.Duration // a manifest, a page of a list, a token; with all attempts, but for a patient client
	stall    time.Duration // without a byte of a blob
	wait     time.Duration // between two attempts, whatever a registry asks for
	backoff  time.Duration // before the second attempt; it doubles
	attempts int           // at a document, and at a blob without progress
	down     time.Duration // how long a mirror that does not answer is left alone
}

var defaultLimits = limits{
	document: 10 * time.Second, stall: 30 * time.Second, wait: 20 * time.Second, backoff: 500 * time.Millisecond, attempts: 5,
	down: time.Minute,
}

// parallel is how many requests of one kind are made at a time.
const parallel = 8

// retry calls work again while its failure is a temporary one, a few times, and as long as ctx leaves time for that; but once only
// where others have just failed. Work gives the server no more than limit for its first byte, if that is not 0.
func (c *Client) retry(ctx context.Context, t *trouble, work func(limit time.Duration) error) (err error) {
	attempts := c.limits.attempts
	once, limit, err := t.begin(c.limits.document / brief)
	if err != nil {
		return err
	}
	if once {
		attempts = 1
	}
	defer func(begun time.Time) { t.end(err, begun) }(time.Now())
	delay := c.limits.backoff
	for attempt := 1; ; attempt++ {
		err := work(limit)
		var f *failure
		if err == nil || ctx.Err() != nil || !errors.As(err, &f) || !f.temporary || attempt >= attempts || f.after > c.limits.wait {
			return err
		}
		wait := min(max(delay, f.after), c.limits.wait)
		if end, ok := ctx.Deadline(); ok && time.Until(end) <= wait {
			return err
		}
		c.log.Debug("asking again", "attempt", attempt, "error", err)
		if err := sleep(ctx, wait); err != nil {
			return err
		}
		delay *= 2
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// document sends a request and reads the answer, of at most max bytes, in the time that a document has: a question with all
// attempts, and whatever a registry asks to wait, as somebody waits for the answer.
func (c *Client) document(ctx context.Context, p place, r *request, max int64) (header http.Header, body []byte, err error) {
	if !c.patient && isQuestion(r) {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, p.patience(ctx, c.limits.document), errLate)
		defer cancel()
	}
	err = c.retry(ctx, p.troubleOf(r), func(limit time.Duration) error {
		switch {
		case limit > 0:
		case r.method == http.MethodPut:
			limit = c.limits.stall // some registries look at everything that a manifest names before they answer
		default:
			limit = c.limits.document
		}
		ctx, cancel := context.WithTimeoutCause(ctx, limit, errLate)
		defer cancel()
		resp, err := p.send(ctx, r)
		if err != nil {
			return err
		}
		defer discard(resp)
		header = resp.Header
		if r.method == http.MethodHead {
			header.Set("Content-Length", strconv.FormatInt(resp.ContentLength, 10))
			return nil
		}
		if body, err = io.ReadAll(io.LimitReader(resp.Body, max+1)); err != nil {
			return sendFailure(r.doing(p.endpoint), err, p.knownSecrets())
		}
		if int64(len(body)) > max {
			return &failure{text: fmt.Sprintf("%s: more than %d bytes", r.doing(p.endpoint), max), condition: imgsrc.ErrDamaged}
		}
		return nil
	})
	return header, body, err
}

// isQuestion says whether a request changes nothing.
func isQuestion(r *request) bool { return r.method == http.MethodGet || r.method == http.MethodHead }

// accepted are the media types of manifests. Without them a registry answers with schema 1.
var accepted = strings.Join([]string{
	v1.MediaTypeImageManifest, v1.MediaTypeImageIndex,
	manifest.DockerV2Schema2MediaType, manifest.DockerV2ListMediaType,
	manifest.DockerV2Schema1SignedMediaType, manifest.DockerV2Schema1MediaType,
	"application/vnd.oci.artifact.manifest.v1+json",
}, ", ")

// A Document is a manifest as a registry gave it.
type Document struct {
	Digest digest.Digest
	Size   int64
	Bytes  []byte // nil with Head
	sent   []byte // what the registry sent: other bytes where it is schema 1 with signatures

	// MediaType is what the registry calls it, which need not be what the bytes say; empty if that is no manifest's type.
	MediaType string
}

// typeSaid is the media type of a manifest that a registry's answer says; empty if it says none, or another thing's.
func typeSaid(header http.Header) string {
	said, _, err := mime.ParseMediaType(header.Get("Content-Type"))
	if err != nil || !slices.Contains(strings.Split(accepted, ", "), said) {
		return ""
	}
	return said
}

// Manifest returns the manifest of a tag or a digest, at most imgsrc.MaxManifest bytes, which are verified: against the
// digest that was asked for, else against the one that the registry says.
func (c *Client) Manifest(ctx context.Context, repo, ref string) (doc Document, err error) {
	err = c.each(ctx, repo, ref, func(p place) error {
		r := p.request(http.MethodGet, "/manifests/"+ref)
		r.header.Set("Accept", accepted)
		header, body, err := c.document(ctx, p, r, imgsrc.MaxManifest)
		if err != nil {
			return err
		}
		doc, err = newDocument(r.doing(p.endpoint), ref, header, body)
		c.counted(doc.Digest, len(body))
		return err
	})
	return doc, err
}

func newDocument(doing, ref string, header http.Header, body []byte) (Document, error) {
	want, err := digest.Parse(ref)
	if err != nil {
		if want, err = digest.Parse(header.Get("Docker-Content-Digest")); err != nil {
			want = digestOf(body) // the registry does not say: this is what the tag means
		}
	}
	if want.Algorithm().FromBytes(body) != want {
		payload := signedPayload(body)
		if payload == nil || want.Algorithm().FromBytes(payload) != want {
			return Document{}, &failure{text: fmt.Sprintf("%s: the bytes are not %s but %s", doing, want, digest.FromBytes(body)), condition: imgsrc.ErrDamaged}
		}
		return Document{want, int64(len(payload)), payload, body, typeSaid(header)}, nil
	}
	return Document{want, int64(len(body)), body, body, typeSaid(header)}, nil
}

// digestOf returns the digest of a manifest as others take it: of schema 1 without its signatures, if these can be told from it.
func digestOf(body []byte) digest.Digest {
	if d, err := manifest.Digest(body); err == nil && d == digest.FromBytes(signedPayload(body)) {
		return d
	}
	return digest.FromBytes(body)
}

// signedPayload returns what is signed in a signed manifest of schema 1, without the signatures: that is what its digest
// is of (https://distribution.github.io/distribution/spec/manifest-v2-1/). Nil if it is none.
func signedPayload(b []byte) []byte {
	var doc struct {
		Signatures []struct {
			Protected string `json:"protected"`
		} `json:"signatures"`
	}
	if json.Unmarshal(b, &doc) != nil || len(doc.Signatures) == 0 {
		return nil
	}
	protected, err := base64.RawURLEncoding.DecodeString(doc.Signatures[0].Protected)
	var format struct {
		Length int    `json:"formatLength"`
		Tail   string `json:"formatTail"`
	}
	if err != nil || json.Unmarshal(protected, &format) != nil || format.Length < 0 || format.Length > len(b) {
		return nil
	}
	tail, err := base64.RawURLEncoding.DecodeString(format.Tail)
	if err != nil {
		return nil
	}
	return slices.Concat(b[:format.Length], tail)
}

// Head returns what a tag means at this moment, without its bytes where the registry lets one ask for that.
func (c *Client) Head(ctx context.Context, repo, ref string) (doc Document, err error) {
	err = c.each(ctx, repo, ref, func(p place) error {
		r := p.request(http.MethodHead, "/manifests/"+ref)
		r.header.Set("Accept", accepted)
		header, _, err := c.document(ctx, p, r, 0)
		if err != nil && !errors.Is(err, imgsrc.ErrUnsupported) {
			return err
		}
		if err == nil {
			if doc.Digest, err = digest.Parse(header.Get("Docker-Content-Digest")); err == nil {
				doc.MediaType = typeSaid(header)
				doc.Size, _ = strconv.ParseInt(header.Get("Content-Length"), 10, 64)
				return nil
			}
		}
		doc, err = c.Manifest(ctx, repo, ref)
		return err
	})
	return doc, err
}

// counted notes that n bytes of d have come in.
func (c *Client) counted(d digest.Digest, n int) {
	if c.count != nil {
		c.count(d, n)
	}
}
