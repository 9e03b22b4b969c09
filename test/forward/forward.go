// Package forward has a proxy for tests, plain and CONNECT, that leads to one server whatever name is asked for: a loopback
// address is never asked of a proxy, so that what is tested needs a name that nobody has.
package forward

import (
	"encoding/base64"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
)

// A Proxy leads to one server.
type Proxy struct {
	Deny int // the status with which it refuses connections; 0: it does not

	server *httptest.Server
	to     string // host:port
	user   string // user:password that it wants; empty: none

	mu    sync.Mutex
	asked []string // method and host
}

// Start starts a proxy, which the caller closes.
func Start(to, user string) *Proxy {
	p := &Proxy{to: to, user: user}
	p.server = httptest.NewServer(p)
	return p
}

// New is Start for a test, at whose end the proxy is closed.
func New(t testing.TB, to, user string) *Proxy {
	p := Start(to, user)
	t.Cleanup(p.Close)
	return p
}

// Close stops the proxy and cuts its connections.
func (p *Proxy) Close() {
	p.server.CloseClientConnections()
	p.server.Close()
}

// Address is the proxy's for the environment, with a user and a password if user is not empty.
func (p *Proxy) Address(user string) string {
	if user != "" {
		user += "@"
	}
	return "http://" + user + p.server.Listener.Addr().String()
}

// Asked is what it was asked for since the last call: methods and hosts.
func (p *Proxy) Asked() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := strings.Join(p.asked, " ")
	p.asked = nil
	return all
}

func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	p.asked = append(p.asked, r.Method+" "+r.Host)
	p.mu.Unlock()
	want := "Basic " + base64.StdEncoding.EncodeToString([]byte(p.user))
	switch {
	case p.user != "" && r.Header.Get("Proxy-Authorization") != want:
		w.WriteHeader(http.StatusProxyAuthRequired)
	case p.Deny != 0 && r.Method == http.MethodConnect:
		w.WriteHeader(p.Deny)
	case r.Method == http.MethodConnect:
		p.tunnel(w)
	default:
		out := r.Clone(r.Context())
		out.RequestURI, out.URL.Host = "", p.to
		out.Header.Del("Proxy-Authorization")
		resp, err := http.DefaultTransport.RoundTrip(out)
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		defer resp.Body.Close()
		for name, values := range resp.Header {
			w.Header()[name] = values
		}
		w.WriteHeader(resp.StatusCode)
		_, _ = io.Copy(w, resp.Body)
	}
}

func (p *Proxy) tunnel(w http.ResponseWriter) {
	there, err := net.Dial("tcp", p.to)
	if err != nil {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	defer there.Close()
	here, buffered, err := w.(http.Hijacker).Hijack()
	if err != nil {
		return
	}
	defer here.Close()
	_, _ = io.WriteString(here, "HTTP/1.1 200 OK\r\n\r\n")
	done := make(chan struct{})
	go func() {
		_, _ = io.Copy(there, buffered)
		close(done)
	}()
	_, _ = io.Copy(here, there)
	here.Close()
	<-done
}

// NoProxies takes away what the environment of whoever runs the test says of proxies.
func NoProxies(t testing.TB) {
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "REQUEST_METHOD"} {
		t.Setenv(name, "")
	}
}
