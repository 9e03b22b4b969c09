package registry

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"go.podman.io/image/v5/pkg/tlsclientconfig"
	"go.podman.io/storage/pkg/configfile"
	"go.podman.io/storage/pkg/unshare"

	"github.com/imgfs/imgfs/imgsrc/proxy"
)

const userAgent = "imgfs"

// An endpoint is one server: the registry itself, or a mirror of it.
type endpoint struct {
	client   *Client
	host     string // as in references; with certificates and credentials it has this name
	address  string // the one that is connected to
	insecure bool   // no certificate is asked for, and HTTP will do
	http     *http.Client
	strict   *http.Client // for hosts that are not where the endpoint is, if only that says that it is insecure; otherwise nil

	pinging chan struct{} // holds one element while somebody asks for the scheme

	// What has just failed there. A registry may answer for manifests and have lost its blobs.
	documents, blobs trouble

	mu         sync.Mutex
	scheme     string // https or http; empty until the endpoint has answered
	challenges []challenge
	tokens     map[string]*token // by scope
	logins     map[string]login
	secrets    map[string]bool // the tokens in use
	quiet      time.Time       // until then the registry wants no requests
	downUntil  time.Time       // a mirror that did not answer is not asked again before
}

func (c *Client) newEndpoint(host string, insecure bool) (*endpoint, error) {
	e := &endpoint{
		client: c, host: host, address: host, insecure: insecure, pinging: make(chan struct{}, 1),
		tokens: map[string]*token{}, logins: map[string]login{}, secrets: map[string]bool{},
	}
	if host == "docker.io" {
		e.address = "registry-1.docker.io"
	}
	certificates := &tls.Config{InsecureSkipVerify: insecure}
	for _, dir := range c.certDirs {
		dir = filepath.Join(dir, host)
		_, err := os.Stat(dir)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			continue
		}
		if err == nil {
			err = tlsclientconfig.SetupCertificates(dir, certificates)
		}
		if err != nil {
			return nil, &failure{text: fmt.Sprintf("reading certificates for %s in %s: %s", host, dir, clean(err.Error(), nil))}
		}
		break // the first that there is, as podman does
	}
	e.http = &http.Client{
		CheckRedirect: e.checkRedirect,
		Transport: &http.Transport{
			Proxy:                  proxy.ForRequest,
			OnProxyConnectResponse: proxy.OnConnect,
			DialContext:            (&net.Dialer{Timeout: c.limits.document, KeepAlive: 30 * time.Second}).DialContext,
			TLSClientConfig:        certificates,
			TLSHandshakeTimeout:    c.limits.document,
			ForceAttemptHTTP2:      true,
			HTTP2:                  &http.HTTP2Config{SendPingTimeout: c.limits.stall / 2, PingTimeout: c.limits.stall / 2},
			DisableCompression:     true, // digests are of the bytes as they are
			MaxIdleConnsPerHost:    2 * parallel,
			IdleConnTimeout:        time.Minute,
			MaxResponseHeaderBytes: 1 << 20,
		},
	}
	return e, nil
}

// makeStrict has no other host believed without a certificate because of where the endpoint is.
func (e *endpoint) makeStrict() {
	transport := e.http.Transport.(*http.Transport).Clone()
	transport.TLSClientConfig.InsecureSkipVerify = false
	e.strict = &http.Client{CheckRedirect: e.checkRedirect, Transport: transport}
}

// tokenClient returns what a token server is asked with, and whether that may be over an open line.
func (e *endpoint) tokenClient(host string) (asks *http.Client, open bool) {
	if e.strict == nil || e.client.trusts(host) {
		return e.http, e.insecure
	}
	return e.strict, false
}

// defaultCertDirs is where containers-certs.d(5) has certificates, a directory for each registry: where pushes and pulls look too,
// root's in his home as well. Without a home they are the system's.
func defaultCertDirs() []string {
	dirs := []string{"/etc/containers/certs.d"}
	paths, err := configfile.GetSearchPaths(&configfile.File{
		Name: "certs", Extension: "d", DoNotUseExtensionForConfigName: true, UserId: unshare.GetRootlessUID(),
	})
	if err == nil {
		dirs = paths.DropInDirectories
	}
	return append(dirs, "/etc/docker/certs.d")
}

// checkRedirect lets nobody but the server that was asked see the credentials: Go's own rule goes by the name alone, and
// another port is another server.
func (e *endpoint) checkRedirect(req *http.Request, via []*http.Request) error {
	first := via[0]
	switch {
	case len(via) >= 10:
		return fmt.Errorf("%w: it is the tenth", errRedirect)
	case first.Method == http.MethodPost:
		return http.ErrUseLastResponse // its body holds an identity token
	case req.Method != first.Method:
		return http.ErrUseLastResponse // the answer to a read would be taken for that to a write
	case req.URL.Scheme != "https" && req.URL.Scheme != "http", req.URL.Scheme == "http" && first.URL.Scheme == "https" && !e.insecure:
		return fmt.Errorf("%w: from https to %s", errRedirect, req.URL.Scheme)
	}
	if !isSameServer(req.URL, first.URL) {
		req.Header.Del("Authorization")
		req.Header.Del("Cookie")
	}
	req.Header.Del("Referer")
	return nil
}

func isSameServer(a, b *url.URL) bool { return a.Host == b.Host && a.Scheme == b.Scheme }

// isOwn says whether an answer is the endpoint's own, and not that of a server that it redirects to, which is not to say who gets
// the credentials.
func (e *endpoint) isOwn(resp *http.Response, scheme string) bool {
	return isSameServer(resp.Request.URL, &url.URL{Scheme: scheme, Host: e.address})
}

// A request is what is asked of an endpoint.
type request struct {
	method string
	path   string // below /v2/
	query  url.Values
	header http.Header
	body   []byte // nil: none
	repo   string // whose credentials are used
	scope  string
	want   []int // the statuses that are no failure
}

func (r *request) doing(e *endpoint) string {
	return fmt.Sprintf("%s %s/v2/%s", r.method, e.host, r.path)
}

// send returns the answer to a request, with a status that is wanted, or a failure. Credentials that are refused are
// looked up again, and tokens asked for again, once.
func (e *endpoint) send(ctx context.Context, r *request) (_ *http.Response, err error) {
	defer func() {
		if err != nil { // the wait for what others ask for may have been too long
			err = sendFailure(r.doing(e), err, nil)
		}
	}()
	if err := e.waitQuiet(ctx, r); err != nil {
		return nil, err
	}
	scheme, err := e.ping(ctx)
	if err != nil {
		return nil, err
	}
	header, err := e.authorize(ctx, r.repo, r.scope, "", nil)
	if err != nil {
		return nil, err
	}
	resp, err := e.roundTrip(ctx, scheme, r, header)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusUnauthorized && e.isOwn(resp, scheme) {
		refused := header
		if refused == "" {
			refused = "none"
		}
		offered := parseChallenges(resp.Header)
		if header == "" {
			e.learn(offered)
		}
		header, err = e.authorize(ctx, r.repo, r.scope, refused, offered)
		if err == nil && header != "" {
			discard(resp)
			if resp, err = e.roundTrip(ctx, scheme, r, header); err != nil {
				return nil, err
			}
		}
	}
	if err == nil {
		for _, status := range r.want {
			if resp.StatusCode == status {
				return resp, nil
			}
		}
		err = e.refusal(r, resp, e.isOwn(resp, scheme))
	}
	discard(resp)
	return nil, err
}

// refusal makes a failure of an answer that was not wanted: the endpoint's own, or that of a server that it redirects to.
func (e *endpoint) refusal(r *request, resp *http.Response, own bool) error {
	f := statusFailure(r.doing(e), resp, e.knownSecrets())
	switch {
	case !own:
		f.text += ": so says " + resp.Request.URL.Host + ", to which it redirects"
	case resp.StatusCode == http.StatusUnauthorized:
		e.mu.Lock()
		user := e.logins[strings.TrimSuffix(e.host+"/"+r.repo, "/")]
		e.mu.Unlock()
		f.text += e.loginHint(user.DockerAuthConfig)
	case resp.StatusCode == http.StatusTooManyRequests && f.after > 0:
		e.mu.Lock()
		e.quiet = time.Now().Add(min(f.after, maxQuiet))
		e.mu.Unlock()
		f.text += fmt.Sprintf(": it asks to wait %s", f.after.Round(time.Second))
	}
	return f
}

// maxQuiet is for how long a registry is left alone at most because it asks for that: it may mean years by mistake, and have room
// again long before.
const maxQuiet = 10 * time.Minute

// waitQuiet waits while the registry wants no requests. What would have to wait for long fails at once.
func (e *endpoint) waitQuiet(ctx context.Context, r *request) error {
	e.mu.Lock()
	wait := time.Until(e.quiet)
	e.mu.Unlock()
	if wait <= 0 {
		return nil
	}
	end, ends := ctx.Deadline()
	if wait > e.client.limits.wait || ends && time.Until(end) <= wait {
		return &failure{
			text:      fmt.Sprintf("%s: not asked: the registry had too many requests, and wants none for another %s", r.doing(e), wait.Round(time.Second)),
			status:    http.StatusTooManyRequests,
			condition: syscall.EAGAIN,
		}
	}
	return sleep(ctx, wait)
}

func (e *endpoint) roundTrip(ctx context.Context, scheme string, r *request, authorization string) (*http.Response, error) {
	u := &url.URL{Scheme: scheme, Host: e.address, Path: "/v2/" + r.path, RawQuery: r.query.Encode()}
	var body io.Reader
	if r.body != nil {
		body = bytes.NewReader(r.body)
	}
	req, err := http.NewRequestWithContext(ctx, r.method, u.String(), body)
	if err != nil {
		return nil, sendFailure(r.doing(e), err, nil)
	}
	for name, values := range r.header {
		req.Header[name] = values
	}
	req.Header.Set("User-Agent", userAgent)
	req.Header.Set("Accept-Encoding", "identity") // no word at all would let a server choose
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	resp, err := e.http.Do(req)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return nil, sendFailure(r.doing(e), err, e.knownSecrets())
	}
	if resp.StatusCode == http.StatusProxyAuthRequired {
		discard(resp)
		by, _ := proxy.For(u)
		if by == nil {
			by = u // a registry that says it of itself
		}
		return nil, sendFailure(r.doing(e), &proxy.Refused{Proxy: proxy.Name(by), Status: resp.StatusCode}, nil)
	}
	return resp, nil
}

// discard lets go of an answer, and reads a short one to its end so that the connection can be used again.
func discard(resp *http.Response) {
	_, _ = io.CopyN(io.Discard, resp.Body, 16<<10)
	resp.Body.Close()
}

// ping finds out whether the endpoint speaks https or http, and how it wants clients to log in: once.
func (e *endpoint) ping(ctx context.Context) (scheme string, err error) {
	known := func() string {
		e.mu.Lock()
		defer e.mu.Unlock()
		return e.scheme
	}
	if scheme := known(); scheme != "" {
		return scheme, nil
	}
	select {
	case e.pinging <- struct{}{}:
		defer func() { <-e.pinging }()
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
	if scheme := known(); scheme != "" {
		return scheme, nil
	}
	challenges, err := e.pingBy(ctx, "https")
	scheme = "https"
	var f *failure
	if err != nil && e.insecure && ctx.Err() == nil && errors.As(err, &f) && f.status == 0 && !errors.Is(err, syscall.ETIMEDOUT) {
		var second error
		challenges, second = e.pingBy(ctx, "http")
		var f2 *failure
		// Of two failures the one that has a name is told. Each scheme may have a proxy of its own.
		if second == nil || f.condition == nil || errors.As(second, &f2) && f2.condition != nil {
			scheme, err = "http", second
		}
	}
	if err != nil {
		return "", err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.scheme, e.challenges = scheme, challenges
	return scheme, nil
}

func (e *endpoint) pingBy(ctx context.Context, scheme string) ([]challenge, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, e.client.limits.document, errLate)
	defer cancel()
	r := &request{method: http.MethodGet}
	resp, err := e.roundTrip(ctx, scheme, r, "")
	if err != nil {
		return nil, err
	}
	defer discard(resp)
	switch resp.StatusCode {
	case http.StatusOK:
		return nil, nil
	case http.StatusUnauthorized:
		if e.isOwn(resp, scheme) {
			return parseChallenges(resp.Header), nil
		}
		return nil, nil
	}
	f := statusFailure(r.doing(e), resp, nil)
	if resp.StatusCode == http.StatusNotFound {
		f.text += ": this is no registry"
	}
	return nil, f
}
