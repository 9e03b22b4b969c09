// Package proxy finds the proxy that a request goes through, by the environment (HTTP_PROXY, HTTPS_PROXY, NO_PROXY), and says
// of a request that failed whether that was to blame. A proxy's address may have a user and a password in it, which are in
// no text of this package.
package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"

	"golang.org/x/net/http/httpproxy"
)

// For returns the proxy for a URL, nil if there is none: nobody's own loopback interface has one. The rules are those of
// net/http.ProxyFromEnvironment; what is no address counts as none.
func For(u *url.URL) (*url.URL, error) {
	proxy, err := httpproxy.FromEnvironment().ProxyFunc()(u)
	if err != nil {
		return nil, errors.New("the proxy of the environment cannot be used") // the error itself may quote its password
	}
	return proxy, nil
}

// ForRequest is For in the form of http.Transport.Proxy.
func ForRequest(r *http.Request) (*url.URL, error) { return For(r.URL) }

// Name is a proxy's address without user and password.
func Name(proxy *url.URL) string { return proxy.Scheme + "://" + proxy.Host }

// A Refused is the answer of a proxy that makes no connection.
type Refused struct {
	Proxy  string // its name
	To     string // where the connection was to lead
	Status int    // of HTTP
}

func (r *Refused) Error() string {
	if r.Status == http.StatusProxyAuthRequired {
		return fmt.Sprintf("the proxy %s does not let this user in (407): HTTP_PROXY or HTTPS_PROXY must have a user and a password that it knows", r.Proxy)
	}
	return fmt.Sprintf("the proxy %s makes no connection to %s: %d %s", r.Proxy, r.To, r.Status, http.StatusText(r.Status))
}

// OnConnect is an http.Transport's OnProxyConnectResponse. Error: *Refused.
func OnConnect(_ context.Context, proxy *url.URL, req *http.Request, resp *http.Response) error {
	if resp.StatusCode == http.StatusOK {
		return nil
	}
	return &Refused{Name(proxy), req.Host, resp.StatusCode}
}

// Unauthorized says whether a proxy has asked for a user and a password. Neither net/http nor the container libraries have a
// type for it.
func Unauthorized(err error) bool {
	if err == nil {
		return false
	}
	text := err.Error()
	return strings.Contains(text, http.StatusText(http.StatusProxyAuthRequired)) || strings.Contains(text, "StatusCode: 407,")
}

// Blame says what is wrong with the proxy if an error of a request to a host's port is its, and nothing otherwise. It
// understands the errors of any http.Transport.
func Blame(err error, host string) string {
	var refused *Refused
	if errors.As(err, &refused) {
		return refused.Error()
	}
	var op *net.OpError
	unreached := errors.As(err, &op) && (op.Op == "proxyconnect" || strings.HasPrefix(op.Op, "socks"))
	unknown := Unauthorized(err)
	if !unreached && !unknown {
		return ""
	}
	for _, scheme := range []string{"https", "http"} {
		proxy, err := For(&url.URL{Scheme: scheme, Host: host})
		switch {
		case err != nil || proxy == nil:
		case unknown:
			return (&Refused{Proxy: Name(proxy), Status: http.StatusProxyAuthRequired}).Error()
		default:
			return fmt.Sprintf("the proxy %s of the environment cannot be reached", Name(proxy))
		}
	}
	return ""
}
