package registry

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/layer"
	"github.com/imgfs/imgfs/test/needs"
	"github.com/imgfs/imgfs/test/servers"
)

func TestParseChallenges(t *testing.T) {
	for text, want := range map[string][]challenge{
		``:                            nil,
		`Basic realm="a b"`:           {{"basic", map[string]string{"realm": "a b"}}},
		`bEaReR realm="x\"y",SCOPE=z`: {{"bearer", map[string]string{"realm": `x"y`, "scope": "z"}}},
		`Bearer realm="https://a/t",service="s",scope="repository:a/b:pull,push"`: {{"bearer", map[string]string{
			"realm": "https://a/t", "service": "s", "scope": "repository:a/b:pull,push",
		}}},
		`Negotiate, Basic realm=x, Bearer realm=y , service = z`: {
			{"negotiate", map[string]string{}}, {"basic", map[string]string{"realm": "x"}},
			{"bearer", map[string]string{"realm": "y"}}, {"service", map[string]string{}},
		},
		`Bearer realm="open`: {{"bearer", map[string]string{"realm": "open"}}},
		`=x`:                 nil,
	} {
		if got := parseChallenges(http.Header{"Www-Authenticate": {text}}); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v, want %v", text, got, want)
		}
	}
}

func FuzzParseChallenges(f *testing.F) {
	f.Add(`Bearer realm="https://a/t",service="s"`)
	f.Fuzz(func(_ *testing.T, text string) {
		parseChallenges(http.Header{"Www-Authenticate": {text, text}})
	})
}

// secretsIn fails for each of the secrets that is in a text.
func secretsIn(t *testing.T, text string, secrets ...string) {
	t.Helper()
	for _, s := range secrets {
		for _, form := range []string{s, base64.StdEncoding.EncodeToString([]byte("tester:" + s))} {
			if strings.Contains(text, form) {
				t.Errorf("%q is in: %s", form, text)
			}
		}
	}
}

func TestPassword(t *testing.T) {
	srv := startDistribution(t, servers.Passwords)
	srv.user = "tester:s3cret"
	img := srv.image("a/web", "1", layer.Gzip, tarOf(t, "f", noise(100_000)))
	for _, user := range []string{"", "tester:wr0ng"} {
		for _, ref := range []string{srv.host, srv.host + "/a/web", srv.host + "/a/web:1"} {
			o := newSetup(t, ref)
			if user != "" {
				o.login(t, srv.host, user)
			}
			s, err := o.open(t)
			if s != nil { // a registry is there, whether or not it lets anybody in
				_, err = s.List(t.Context())
				s.Close()
			}
			if !errors.Is(err, imgsrc.ErrDenied) || !strings.Contains(err.Error(), "podman login "+srv.host) {
				t.Errorf("%s as %q: %v, want ErrDenied", ref, user, err)
			}
			secretsIn(t, fmt.Sprint(err)+o.logged.String(), "wr0ng", "s3cret")
		}
	}
	o := newSetup(t, srv.host+"/a/web:1")
	o.login(t, srv.host+"/a", srv.user)
	s := o.mustOpen(t)
	m := named(t, s, srv.host+"/a/web:1")
	if b, err := readBlob(t, m, img.layers[0].Digest); err != nil || string(b) != string(img.blobs[0]) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	want := needs.Line(t, "skopeo", "inspect", "--tls-verify=false", "--authfile", o.AuthFile, "--format", "{{.Digest}}", "docker://"+srv.host+"/a/web:1")
	if m.desc.Digest.String() != want {
		t.Errorf("skopeo: %s, imgfs: %s", want, m.desc.Digest)
	}
	secretsIn(t, o.logged.String(), "s3cret")

	// Credentials that change while the source is open are found.
	write(t, o.AuthFile, "{}")
	s.client.mu.Lock()
	for _, e := range s.client.endpoints {
		clear(e.logins)
	}
	s.client.mu.Unlock()
	if _, err := s.client.Head(t.Context(), "a/web", "1"); !errors.Is(err, imgsrc.ErrDenied) {
		t.Errorf("logged out: %v", err)
	}
	o.login(t, srv.host, srv.user)
	if _, err := s.client.Head(t.Context(), "a/web", "1"); err != nil {
		t.Errorf("logged in again: %v", err)
	}
}

// A helper of Docker's configuration is asked, and what it prints when it fails is not repeated.
func TestCredentialHelper(t *testing.T) {
	srv := startDistribution(t, servers.Passwords)
	srv.user = "tester:s3cret"
	srv.image("web", "1", layer.Gzip, tarOf(t, "f", "x"))
	bin := t.TempDir()
	t.Setenv("PATH", bin+":/usr/bin:/bin")
	helper := filepath.Join(bin, "docker-credential-test")
	o := newSetup(t, srv.host+"/web:1")
	write(t, o.AuthFile, fmt.Sprintf(`{"credHelpers":{%q:"test"}}`, srv.host))
	script := func(text string) {
		write(t, helper, "#!/bin/sh\ncat >/dev/null\n"+text+"\n")
		needs.Run(t, "chmod", "+x", helper)
	}
	script(`echo '{"Username":"tester","Secret":"s3cret"}'`)
	o.mustOpen(t)
	script(`echo 'it is s3cret'; exit 1`)
	_, err := o.open(t)
	if err == nil {
		t.Error("opened with a helper that fails")
	}
	secretsIn(t, fmt.Sprint(err)+o.logged.String(), "s3cret")
}

// A tokenServer stands in front of a registry: it gives tokens, and lets in who has one that is still good.
type tokenServer struct {
	*httptest.Server
	life   atomic.Int64 // seconds
	given  atomic.Int64
	oauth  atomic.Int64 // by POST
	mu     sync.Mutex
	tokens map[string]string // scope of each that is good
	users  map[string]bool   // who asked
}

func newTokenServer(t *testing.T, srv *server) *tokenServer {
	a := &tokenServer{tokens: map[string]string{}, users: map[string]bool{}}
	a.life.Store(300)
	a.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := r.ParseForm(); err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		user, password, _ := r.BasicAuth()
		a.mu.Lock()
		defer a.mu.Unlock()
		if r.Method == http.MethodPost {
			a.oauth.Add(1)
			if r.PostForm.Get("refresh_token") != "identity-token" || r.PostForm.Get("grant_type") != "refresh_token" {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
		} else if user != "tester" || password != "s3cret" {
			w.WriteHeader(http.StatusUnauthorized)
			fmt.Fprintf(w, `{"details":"no %s %s"}`, password, r.Header.Get("Authorization"))
			return
		}
		a.users[user] = true
		token := fmt.Sprintf("token-%d", a.given.Add(1))
		a.tokens[token] = strings.Join(r.Form["scope"], " ")
		_ = json.NewEncoder(w).Encode(map[string]any{"access_token": token, "expires_in": a.life.Load()})
	}))
	t.Cleanup(a.Close)
	srv.front(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		scope := "registry:catalog:*"
		parts := strings.Split(strings.TrimSuffix(r.URL.Path, "/"), "/")
		if len(parts) > 4 {
			scope = "repository:" + strings.Join(parts[2:len(parts)-2], "/") + ":pull"
			switch r.Method {
			case http.MethodPut, http.MethodPost:
				scope += ",push"
			case http.MethodDelete:
				scope = strings.TrimSuffix(scope, "pull") + "delete,pull"
			}
		}
		a.mu.Lock()
		got, ok := a.tokens[strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")]
		a.mu.Unlock()
		if !ok || r.URL.Path != "/v2/" && !slices.Contains(strings.Fields(got), scope) {
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="it",scope=%q`, a.URL, scope))
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
	return a
}

// revoke makes all tokens bad.
func (a *tokenServer) revoke() {
	a.mu.Lock()
	defer a.mu.Unlock()
	clear(a.tokens)
}

func TestTokens(t *testing.T) {
	srv := newServer(t)
	img := srv.image("a/web", "1", layer.Gzip, tarOf(t, "f", noise(100_000)))
	srv.image("b", "1", layer.Gzip, tarOf(t, "g", "x"))
	tokens := newTokenServer(t, srv)
	o := newSetup(t, srv.host)
	o.login(t, srv.host, "tester:s3cret")
	s := o.mustOpen(t)
	if n := len(list(t, s).Images); n != 2 {
		t.Fatalf("%d images", n)
	}
	if n := tokens.given.Load(); n != 4 { // for the registry itself, the catalog and two repositories
		t.Errorf("%d tokens were asked for, want 4", n)
	}
	// Those that expire, or that the registry has forgotten, are renewed, once for all who wait.
	tokens.revoke()
	m := named(t, s, srv.host+"/a/web:1")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := s.client.Head(t.Context(), "a/web", "1"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if b, err := readBlob(t, m, img.layers[0].Digest); err != nil || string(b) != string(img.blobs[0]) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if n := tokens.given.Load(); n != 5 {
		t.Errorf("%d tokens were asked for, want 5", n)
	}
	secretsIn(t, o.logged.String(), "s3cret", "token-1", "token-5")
}

func TestTokenExpires(t *testing.T) {
	srv := newServer(t)
	srv.image("web", "1", layer.Gzip, tarOf(t, "f", "x"))
	tokens := newTokenServer(t, srv)
	tokens.life.Store(1)
	o := newSetup(t, srv.host+"/web:1")
	o.login(t, srv.host, "tester:s3cret")
	s := o.mustOpen(t)
	time.Sleep(time.Second)
	srv.requests("")
	if _, err := s.client.Head(t.Context(), "web", "1"); err != nil {
		t.Fatal(err)
	}
	if asked := srv.requests(""); len(asked) != 1 {
		t.Errorf("with a token that has expired the registry was asked for %q", asked)
	}
}

func TestIdentityToken(t *testing.T) {
	srv := newServer(t)
	srv.image("web", "1", layer.Gzip, tarOf(t, "f", "x"))
	tokens := newTokenServer(t, srv)
	o := newSetup(t, srv.host+"/web:1")
	auth := base64.StdEncoding.EncodeToString([]byte("tester:"))
	write(t, o.AuthFile, fmt.Sprintf(`{"auths":{%q:{"auth":%q,"identitytoken":"identity-token"}}}`, srv.host, auth))
	o.mustOpen(t)
	if tokens.oauth.Load() == 0 {
		t.Error("the identity token was not used")
	}
	secretsIn(t, o.logged.String(), "identity-token", "token-1")
}

// What a server repeats of the credentials goes nowhere.
func TestSecretsAreNotRepeated(t *testing.T) {
	srv := newServer(t)
	srv.image("web", "1", layer.Gzip, tarOf(t, "f", "x"))
	tokens := newTokenServer(t, srv)
	o := newSetup(t, srv.host+"/web:1")
	o.login(t, srv.host, "tester:wr0ng")
	_, err := o.open(t)
	if !errors.Is(err, imgsrc.ErrDenied) {
		t.Errorf("%v, want ErrDenied", err)
	}
	secretsIn(t, fmt.Sprint(err)+o.logged.String(), "wr0ng")

	o.login(t, srv.host, "tester:s3cret")
	s := o.mustOpen(t)
	front := srv.wrap
	srv.front(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/manifests/") {
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprintf(w, `{"errors":[{"message":"you sent %s to https://u:p@x/?sig=abc"}]}`, r.Header.Get("Authorization"))
			return
		}
		front(w, r, next)
	})
	_, err = s.client.Manifest(t.Context(), "web", "1")
	if err == nil || !strings.Contains(err.Error(), "you sent") {
		t.Errorf("%v", err)
	}
	secretsIn(t, fmt.Sprint(err)+o.logged.String(), "s3cret", "u:p", "sig=abc", fmt.Sprintf("token-%d", tokens.given.Load()))
}

// Credentials go to no token server over an open line, unless the registry itself is spoken to like that.
func TestRealm(t *testing.T) {
	e := &endpoint{host: "h", client: &Client{limits: quick}}
	for _, realm := range []string{"", "http://a/token", "ftp://a/", "https://", "/token"} {
		if _, _, err := e.tokenRequest(t.Context(), challenge{"bearer", map[string]string{"realm": realm}}, "s", login{}.DockerAuthConfig); !errors.Is(err, imgsrc.ErrDenied) {
			t.Errorf("%q: %v", realm, err)
		}
	}
}

// Who waits for a token that another asks for is told that it takes too long, and not that somebody has left.
func TestTokenServerHangs(t *testing.T) {
	srv := newServer(t)
	img := big(t, srv)
	o := newSetup(t, srv.host+"/big:1")
	o.test.limits.document, o.test.limits.stall = 200*time.Millisecond, 300*time.Millisecond
	s := o.mustOpen(t)
	hung := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	defer hung.Close()
	srv.front(func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token"`, hung.URL))
		w.WriteHeader(http.StatusUnauthorized)
	})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if _, err := s.client.Blob(t.Context(), "big", img.layers[0].Digest, 0); !errors.Is(err, syscall.ETIMEDOUT) {
				t.Errorf("%v", err)
			}
		})
	}
	wg.Wait()
}

// A blob whose connection breaks when its token has expired goes on with a new one, where it stopped.
func TestTokenExpiresInABlob(t *testing.T) {
	srv := newServer(t)
	img := big(t, srv)
	tokens := newTokenServer(t, srv)
	o := newSetup(t, srv.host+"/big:1")
	o.login(t, srv.host, "tester:s3cret")
	s := o.mustOpen(t)
	m := named(t, s, srv.host+"/big:1")
	if _, err := m.Config(t.Context()); err != nil {
		t.Fatal(err)
	}
	guard, cut := srv.wrap, broken(img, 1_200_000, true, func(r *http.Request) {
		tokens.revoke()
		abort(r)
	})
	srv.front(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		guard(w, r, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { cut(w, r, next) }))
	})
	given := tokens.given.Load()
	wantBlob(t, m, img)
	if n := tokens.given.Load() - given; n < 2 {
		t.Errorf("%d tokens were asked for on the way", n)
	}
	if got := s.fetchedOf(img.layers[0].Digest); got > img.layers[0].Size+img.layers[0].Size/10 {
		t.Errorf("%d bytes were fetched of a blob of %d", got, img.layers[0].Size)
	}
	// Whoever may not read any more is told so.
	srv.front(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if isLayer(r, img) {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		guard(w, r, next)
	})
	if _, err := newFresh(t, o).client.Blob(t.Context(), "big", img.layers[0].Digest, 0); !errors.Is(err, imgsrc.ErrDenied) {
		t.Errorf("%v", err)
	}
}

// newFresh opens the source once more, with nothing in its cache.
func newFresh(t *testing.T, o *setup) *Source {
	t.Helper()
	o.CacheDir = t.TempDir()
	o.newCache(t)
	return o.mustOpen(t)
}
