package registry

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/layer"
	"github.com/imgfs/imgfs/test/images"
)

// A registry that asks for years is asked again in a few minutes.
func TestQuiet(t *testing.T) {
	srv := newServer(t)
	srv.image("web", "1", layer.None, tarOf(t))
	for _, after := range []string{"2000000000", "Fri, 31 Dec 9999 23:59:59 GMT"} {
		s := newSetup(t, srv.host+"/web").mustOpen(t)
		srv.front(func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			w.Header().Set("Retry-After", after)
			w.WriteHeader(http.StatusTooManyRequests)
		})
		if _, err := s.client.Head(t.Context(), "web", "1"); err == nil {
			t.Error("it had too many requests")
		}
		srv.front(nil)
		_, err := s.client.Head(t.Context(), "web", "1")
		if err == nil || !strings.Contains(err.Error(), "not asked") {
			t.Errorf("within the time that it asks for: %v", err)
		}
		e, err := s.client.endpoint(srv.host, false)
		if err != nil {
			t.Fatal(err)
		}
		if e.quiet.After(time.Now().Add(maxQuiet)) {
			t.Errorf("it is left alone until %s", e.quiet)
		}
	}
}

// A server that compresses what it sends unless it is told not to sends everything as it is.
func TestContentEncoding(t *testing.T) {
	srv := newServer(t)
	img := big(t, srv)
	srv.front(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Header.Get("Accept-Encoding") == "identity" || r.Method != http.MethodGet {
			next.ServeHTTP(w, r)
			return
		}
		var plain recorder
		plain.header = w.Header()
		next.ServeHTTP(&plain, r)
		w.Header().Set("Content-Encoding", "gzip")
		w.Header().Del("Content-Length")
		_, _ = w.Write(images.Gzipped(plain.Bytes()))
	})
	m := named(t, newSetup(t, srv.host+"/big").mustOpen(t), srv.host+"/big:1")
	if _, err := m.Config(t.Context()); err != nil {
		t.Error(err)
	}
	wantBlob(t, m, img)
}

// A server that the registry redirects to is given no credentials, also when it asks for them, or names a token server that does.
func TestRedirectedChallenge(t *testing.T) {
	srv := newServer(t)
	img := big(t, srv)
	store := newServer(t)
	guard := func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if user, password, _ := r.BasicAuth(); user != "tester" || password != "s3cret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="web"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	}
	for _, challenge := range []string{fmt.Sprintf(`Bearer realm="http://%s/token"`, store.host), `Basic realm="store"`} {
		store.front(func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			if r.Header.Get("Authorization") != "" || r.URL.Path == "/token" {
				t.Errorf("%s was asked with %q", r.URL, r.Header["Authorization"])
			}
			w.Header().Set("WWW-Authenticate", challenge)
			w.WriteHeader(http.StatusUnauthorized)
		})
		for _, part := range []string{"/v2/", "/manifests/", "/blobs/"} {
			srv.front(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if strings.Contains(r.URL.Path, part) {
					http.Redirect(w, r, "http://"+store.host+r.URL.Path, http.StatusTemporaryRedirect)
					return
				}
				guard(w, r, next)
			})
			o := newSetup(t, srv.host)
			o.login(t, srv.host, "tester:s3cret")
			o.Asked = true
			s := o.mustOpen(t)
			_, err := s.client.Manifest(t.Context(), "big", "1")
			if err == nil {
				_, err = s.client.Blob(t.Context(), "big", img.layers[0].Digest, 0)
			}
			if !errors.Is(err, imgsrc.ErrDenied) || !strings.Contains(err.Error(), store.host) {
				t.Errorf("%s: %v", part, err)
			}
		}
	}
}

// Tokens that have expired are not kept for as long as the mount lives.
func TestTokensAreBounded(t *testing.T) {
	srv := newServer(t)
	srv.image("web", "1", layer.None, tarOf(t))
	newTokenServer(t, srv)
	o := newSetup(t, srv.host+"/web:1")
	o.login(t, srv.host, "tester:s3cret")
	s := o.mustOpen(t)
	e, err := s.client.endpoint(srv.host, false)
	if err != nil {
		t.Fatal(err)
	}
	good := pullScope("web")
	for i := range maxTokens {
		secret := fmt.Sprint("old-", i)
		e.tokens[pullScope(secret)] = &token{turn: make(chan struct{}, 1), secret: secret}
		e.secrets[secret] = true
	}
	was := e.tokens[good]
	_, _ = s.client.Head(t.Context(), "other", "1")
	if e.tokens[good] != was || e.tokens[pullScope("other")] == nil || len(e.tokens) > 3 || len(e.secrets) > 3 {
		t.Errorf("%d tokens and %d secrets; the one in use is kept: %v", len(e.tokens), len(e.secrets), e.tokens[good] == was)
	}
}

// That a registry lies where no certificate is needed says nothing of a token server elsewhere: that is trusted where
// registries.conf says so of the registry.
func TestTokenServerElsewhere(t *testing.T) {
	srv := newServer(t)
	srv.image("web", "1", layer.None, tarOf(t))
	var asked atomic.Int32
	for _, start := range []func(*httptest.Server){(*httptest.Server).Start, (*httptest.Server).StartTLS} {
		tokens := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			asked.Add(1)
			fmt.Fprint(w, `{"token":"good"}`)
		}))
		tokens.Config.ErrorLog = discardLog
		tokens.Listener.Close()
		var err error
		if tokens.Listener, err = net.Listen("tcp", "127.0.0.2:0"); err != nil {
			t.Fatal(err)
		}
		start(tokens)
		defer tokens.Close()
		srv.front(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if r.Header.Get("Authorization") != "Bearer good" {
				w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token"`, tokens.URL))
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			next.ServeHTTP(w, r)
		})
		for conf, ok := range map[string]bool{"": false, fmt.Sprintf("[[registry]]\nlocation = %q\ninsecure = true\n", srv.host): true} {
			asked.Store(0)
			o := newSetup(t, srv.host+"/web:1")
			o.registries = conf
			o.Insecure = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}
			o.login(t, srv.host, "tester:s3cret")
			s, err := o.open(t)
			if s != nil {
				s.Close()
			}
			if (err == nil) != ok || (asked.Load() > 0) != ok {
				t.Errorf("%s, by configuration: %t: asked %d times, %v", tokens.URL, ok, asked.Load(), err)
			}
		}
	}
}

// Who has no password for a registry that would take one gets the token that it gives to everybody.
func TestTokenBesidePassword(t *testing.T) {
	srv := newServer(t)
	srv.image("web", "1", layer.None, tarOf(t))
	srv.front(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		switch {
		case r.URL.Path == "/token":
			fmt.Fprint(w, `{"token":"everybodys"}`)
		case r.Header.Get("Authorization") != "Bearer everybodys":
			w.Header().Add("WWW-Authenticate", `Basic realm="web"`)
			w.Header().Add("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token"`, srv.host))
			w.WriteHeader(http.StatusUnauthorized)
		default:
			next.ServeHTTP(w, r)
		}
	})
	list(t, newSetup(t, srv.host+"/web").mustOpen(t))
}
