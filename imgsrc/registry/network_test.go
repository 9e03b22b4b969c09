package registry

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/layer"
	"github.com/imgfs/imgfs/test/needs"
)

func TestRefused(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	srv := newServer(t)
	srv.image("web", "1", layer.None, tarOf(t))
	for ref, want := range map[string]error{
		l.Addr().String() + "/web:1":                        syscall.ECONNREFUSED,
		"no-such-host.invalid/web:1":                        syscall.EHOSTUNREACH,
		srv.host + "/web:2":                                 imgsrc.ErrNoSource,
		srv.host + "/other":                                 imgsrc.ErrNoSource,
		srv.host + "/web@" + string(digest.FromString("x")): imgsrc.ErrNoSource,
		"nginx":             imgsrc.ErrInvalid,
		"nginx/x:1":         imgsrc.ErrInvalid,
		srv.host + "/UPPER": imgsrc.ErrInvalid,
		srv.host + "/web:1@" + string(digest.FromString("x")): imgsrc.ErrInvalid,
		"ann:s3cret@" + srv.host + "/x":                       imgsrc.ErrInvalid,
	} {
		o := newSetup(t, ref)
		_, err := o.open(t)
		if !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", ref, err, want)
		}
		secretsIn(t, fmt.Sprint(err)+o.logged.String(), "s3cret")
	}
}

// Where a registry redirects, to another port of the same host even, no credentials go.
func TestRedirect(t *testing.T) {
	srv := newServer(t)
	img := big(t, srv)
	var leaked atomic.Bool
	store := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		leaked.Store(leaked.Load() || r.Header.Get("Authorization") != "" || r.Header.Get("Referer") != "")
		if r.URL.Query().Get("sig") != "t0psecret" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		if strings.HasSuffix(r.URL.Path, "-broken") {
			panic(http.ErrAbortHandler)
		}
		r.URL.Path = strings.TrimSuffix(r.URL.Path, "-broken")
		srv.next.ServeHTTP(w, r)
	}))
	defer store.Close()
	suffix := ""
	srv.front(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		user, password, _ := r.BasicAuth()
		switch {
		case user != "tester" || password != "s3cret":
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
		case strings.Contains(r.URL.Path, "/blobs/"):
			http.Redirect(w, r, store.URL+r.URL.Path+suffix+"?sig=t0psecret", http.StatusTemporaryRedirect)
		default:
			next.ServeHTTP(w, r)
		}
	})
	o := newSetup(t, srv.host+"/big:1")
	o.login(t, srv.host, "tester:s3cret")
	s := o.mustOpen(t)
	m := named(t, s, srv.host+"/big:1")
	suffix = "-broken"
	_, err := readBlob(t, m, img.layers[0].Digest)
	if err == nil {
		t.Error("read from a store that breaks every connection")
	}
	secretsIn(t, fmt.Sprint(err)+o.logged.String(), "t0psecret", "s3cret")
	suffix = ""
	wantBlob(t, m, img)
	if leaked.Load() {
		t.Error("the credentials went to another server")
	}
	for to, want := range map[string]bool{"https://b/": true, "http://a/": false, "file:///etc/passwd": false} {
		first, _ := http.NewRequest(http.MethodGet, "https://a/", nil)
		next, err := http.NewRequest(http.MethodGet, to, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := (&endpoint{}).checkRedirect(next, []*http.Request{first}); (err == nil) != want {
			t.Errorf("from https to %s: %v", to, err)
		}
	}
}

func TestTLS(t *testing.T) {
	srv := newServer(t)
	img := big(t, srv)
	secure := httptest.NewUnstartedServer(srv)
	secure.Config.ErrorLog = discardLog
	secure.EnableHTTP2 = true
	secure.StartTLS()
	defer secure.Close()
	host := strings.TrimPrefix(secure.URL, "https://")
	yes, no := true, false
	for name, test := range map[string]struct {
		host   string
		verify *bool
		conf   string
		certs  bool
		ok     bool
	}{
		"loopback":              {host, nil, "", false, true},
		"verify":                {host, &yes, "", false, false},
		"verify, certs.d":       {host, &yes, "", true, true},
		"no verify":             {host, &no, "", false, true},
		"http, verify":          {srv.host, &yes, "", false, false},
		"http, no verify":       {srv.host, &no, "", false, true},
		"nothing trusted":       {host, nil, "trust nothing", false, false},
		"http, nothing trusted": {srv.host, nil, "trust nothing", false, false},
		"insecure":              {host, nil, "insecure = true", false, true},
		"http, insecure":        {srv.host, nil, "insecure = true", false, true},
		"insecure, but verify":  {host, &yes, "insecure = true", false, false},
	} {
		t.Run(name, func(t *testing.T) {
			o := newSetup(t, test.host+"/big:1")
			o.TLSVerify = test.verify
			if test.conf != "" {
				o.Insecure = []netip.Prefix{}
			}
			if strings.Contains(test.conf, "=") {
				o.registries = fmt.Sprintf("[[registry]]\nlocation = %q\n%s\n", test.host, test.conf)
			}
			if test.certs {
				dir := filepath.Join(o.test.certDirs[0], test.host)
				if err := os.Mkdir(dir, 0o755); err != nil {
					t.Fatal(err)
				}
				write(t, dir+"/ca.crt", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw})))
			}
			s, err := o.open(t)
			if !test.ok {
				if err == nil || !strings.Contains(err.Error(), "--tls-verify=false") {
					t.Errorf("%v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			end := abort
			if test.certs {
				end = silence
			}
			srv.front(broken(img, 1_200_000, true, end))
			defer srv.front(nil)
			wantBlob(t, named(t, s, test.host+"/big:1"), img)
		})
	}
}

// Certificates are looked for where pushes and pulls look, whoever the user is.
func TestUsersCertificates(t *testing.T) {
	srv := newServer(t)
	img := big(t, srv)
	secure := httptest.NewUnstartedServer(srv)
	secure.Config.ErrorLog = discardLog
	secure.StartTLS()
	defer secure.Close()
	host := strings.TrimPrefix(secure.URL, "https://")
	for variable, below := range map[string]string{"XDG_CONFIG_HOME": "containers/certs.d", "HOME": ".config/containers/certs.d"} {
		t.Run(variable, func(t *testing.T) {
			t.Setenv("XDG_CONFIG_HOME", "") // it comes back
			if err := os.Unsetenv("XDG_CONFIG_HOME"); err != nil {
				t.Fatal(err)
			}
			home := t.TempDir()
			t.Setenv(variable, home)
			dir := filepath.Join(home, below, host)
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			write(t, dir+"/ca.crt", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw})))
			yes := true
			o := newSetup(t, host+"/big:1")
			o.TLSVerify, o.test.certDirs = &yes, nil
			wantBlob(t, named(t, o.mustOpen(t), host+"/big:1"), img)
		})
	}
}

// A registry that asks for a client certificate gets the one of certs.d, and only that registry does.
func TestClientCertificate(t *testing.T) {
	needs.Programs(t, "openssl")
	srv := newServer(t)
	img := big(t, srv)
	dir := t.TempDir()
	needs.Run(t, "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=client", "-keyout", dir+"/key.pem", "-out", dir+"/cert.pem")
	text, err := os.ReadFile(dir + "/cert.pem")
	if err != nil {
		t.Fatal(err)
	}
	clients := x509.NewCertPool()
	clients.AppendCertsFromPEM(text)
	secure := httptest.NewUnstartedServer(srv)
	secure.Config.ErrorLog = discardLog
	secure.TLS = &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients}
	secure.StartTLS()
	defer secure.Close()
	host := strings.TrimPrefix(secure.URL, "https://")
	yes := true
	for name, test := range map[string]struct {
		cert, key bool
		ok        bool
		text      string
	}{
		"with":        {true, true, true, ""},
		"without":     {false, false, false, "certificate required"},
		"without key": {true, false, false, "missing key client.key"},
	} {
		t.Run(name, func(t *testing.T) {
			o := newSetup(t, host+"/big:1")
			o.TLSVerify = &yes
			trust(t, o, host, secure)
			for file, put := range map[string]bool{"cert": test.cert, "key": test.key} {
				if put {
					needs.Run(t, "cp", dir+"/"+file+".pem", filepath.Join(o.test.certDirs[0], host, "client."+file))
				}
			}
			s, err := o.open(t)
			if !test.ok {
				if err == nil || !strings.Contains(err.Error(), test.text) {
					t.Errorf("%v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			wantBlob(t, named(t, s, host+"/big:1"), img)
		})
	}
}

func TestTrust(t *testing.T) {
	for networks, hosts := range map[string]map[string]bool{
		"": {
			"127.0.0.1": true, "127.9.9.9:5000": true, "localhost": true, "localhost:5000": true, "[::1]:5000": true,
			"10.0.0.1": false, "example.org": false, "127.0.0.1.example.org": false, "localhost.example.org:5000": false,
		},
		"10.1.0.0/16 fd00::/8": {
			"10.1.2.3": true, "10.1.2.3:5000": true, "10.2.0.1": false, "127.0.0.1": false, "localhost": false, "[fd00::1]:443": true,
			"[::ffff:10.1.0.1]:5000": true, "no-such-host.invalid": false,
		},
		"127.0.0.0/8 ::1/128": {"localhost:5000": true},
		"none":                {"127.0.0.1": false, "localhost": false},
	} {
		var all []netip.Prefix
		if networks != "" {
			all = []netip.Prefix{}
		}
		for _, text := range strings.Fields(networks) {
			if text != "none" {
				all = append(all, netip.MustParsePrefix(text))
			}
		}
		trusts := Trust(all)
		for host, want := range hosts {
			if got := trusts(host); got != want {
				t.Errorf("%s in %q: %v, want %v", host, networks, got, want)
			}
		}
	}
}

func TestMirrors(t *testing.T) {
	home, mirror := newServer(t), newServer(t)
	img := big(t, home)
	same := mirror.image("copy/big", "1", layer.Gzip, img.tars...)
	if same.Digest != img.Digest {
		t.Fatal("the mirror has another image")
	}
	conf := func(mirrors string) string {
		return fmt.Sprintf("[[registry]]\nprefix = \"registry.test\"\nlocation = %q\n%s\n", home.host, mirrors)
	}
	withMirror := fmt.Sprintf("[[registry.mirror]]\nlocation = %q\n", mirror.host+"/copy")
	open := func(t *testing.T, conf string) (*Source, *image) {
		o := newSetup(t, "registry.test/big:1")
		o.registries = conf
		s := o.mustOpen(t)
		return s, named(t, s, "registry.test/big:1")
	}
	t.Run("location", func(t *testing.T) {
		_, m := open(t, conf(""))
		wantBlob(t, m, img)
	})
	t.Run("mirror", func(t *testing.T) {
		_, m := open(t, conf(withMirror))
		home.requests("")
		mirror.requests("")
		wantBlob(t, m, img)
		if a, b := home.requests(""), mirror.requests("GET /v2/copy/big/blobs/"); len(a) != 0 || len(b) != 1 { // for the layer alone
			t.Errorf("the registry was asked for %q, the mirror for %q", a, b)
		}
	})
	t.Run("mirror without it", func(t *testing.T) {
		_, m := open(t, conf(fmt.Sprintf("[[registry.mirror]]\nlocation = %q\n", mirror.host+"/nothing")))
		wantBlob(t, m, img)
	})
	t.Run("mirror with wrong bytes", func(t *testing.T) {
		mirror.front(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/manifests/") {
				_, _ = io.WriteString(w, "{}")
				return
			}
			next.ServeHTTP(w, r)
		})
		defer mirror.front(nil)
		_, m := open(t, conf(withMirror))
		if m.desc.Damaged != nil {
			t.Error(m.desc.Damaged)
		}
	})
	t.Run("mirror with wrong layers", func(t *testing.T) {
		mirror.front(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
				_, _ = w.Write(make([]byte, img.layers[0].Size))
				return
			}
			next.ServeHTTP(w, r)
		})
		defer mirror.front(nil)
		_, m := open(t, conf(withMirror))
		wantBlob(t, m, img)
		if _, err := m.Config(t.Context()); err != nil {
			t.Error(err)
		}
	})
	t.Run("mirror that is down", func(t *testing.T) {
		_, m := open(t, conf("[[registry.mirror]]\nlocation = \"127.0.0.1:1\"\n"))
		wantBlob(t, m, img)
	})
	t.Run("mirror by digest only", func(t *testing.T) {
		mirror.requests("")
		_, m := open(t, conf("mirror-by-digest-only = true\n"+withMirror))
		for _, r := range mirror.requests("HEAD") {
			t.Errorf("the mirror was asked %q", r)
		}
		wantBlob(t, m, img)
		if len(mirror.requests("GET /v2/copy/big/blobs/")) == 0 {
			t.Error("the mirror was not asked for a blob")
		}
	})
	t.Run("catalog", func(t *testing.T) {
		home.image("team/web", "1", layer.None, tarOf(t))
		o := newSetup(t, "registry.test")
		o.registries = fmt.Sprintf("[[registry]]\nprefix = \"registry.test\"\nlocation = %q\n", home.host+"/team")
		s := o.mustOpen(t)
		named(t, s, "registry.test/web:1")
		if n := len(list(t, s).Images); n != 1 {
			t.Errorf("%d images", n)
		}
	})
	t.Run("blocked", func(t *testing.T) {
		o := newSetup(t, "registry.test/big:1")
		o.registries = conf("blocked = true\n")
		if _, err := o.open(t); !errors.Is(err, imgsrc.ErrDenied) || !strings.Contains(err.Error(), "blocked") {
			t.Errorf("%v", err)
		}
	})
}
