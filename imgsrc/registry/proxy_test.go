package registry

import (
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/test/forward"
)

func TestProxy(t *testing.T) {
	forward.NoProxies(t)
	srv := newServer(t)
	img := big(t, srv)
	secure := httptest.NewUnstartedServer(srv)
	secure.Config.ErrorLog = discardLog
	secure.StartTLS()
	defer secure.Close()
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	const user = "squid:p%40ss"
	for name, test := range map[string]struct {
		plain   bool   // the registry speaks HTTP
		variant string // which variable
		user    string // in the proxy's address
		deny    int
		bypass  string // NO_PROXY
		down    bool
		asked   string // of the proxy; empty: nothing
		want    error  // nil: it can be read, unless text is there
		text    string
	}{
		"plain":                      {plain: true, variant: "HTTP_PROXY", user: user, asked: "GET example.com:5000"},
		"plain, lower case":          {plain: true, variant: "http_proxy", user: user, asked: "GET example.com:5000"},
		"CONNECT":                    {variant: "HTTPS_PROXY", user: user, asked: "CONNECT example.com:5000"},
		"CONNECT, lower case":        {variant: "https_proxy", user: user, asked: "CONNECT example.com:5000"},
		"plain, wrong password":      {plain: true, variant: "HTTP_PROXY", user: "squid:wr0ng", asked: "GET", want: imgsrc.ErrDenied, text: "(407)"},
		"plain, no password":         {plain: true, variant: "HTTP_PROXY", asked: "GET", want: imgsrc.ErrDenied, text: "(407)"},
		"CONNECT, wrong password":    {variant: "HTTPS_PROXY", user: "squid:wr0ng", asked: "CONNECT", want: imgsrc.ErrDenied, text: "(407)"},
		"CONNECT, no password":       {variant: "HTTPS_PROXY", asked: "CONNECT", want: imgsrc.ErrDenied, text: "(407)"},
		"CONNECT refused":            {variant: "HTTPS_PROXY", user: user, deny: 403, asked: "CONNECT", text: "makes no connection to example.com:5000: 403 Forbidden"},
		"CONNECT refused for a time": {variant: "HTTPS_PROXY", user: user, deny: 503, asked: "CONNECT example.com:5000 CONNECT", text: "503"},
		"down":                       {variant: "HTTPS_PROXY", user: user, down: true, want: syscall.ECONNREFUSED, text: "cannot be reached"},
		"plain, down":                {plain: true, variant: "HTTP_PROXY", user: user, down: true, want: syscall.ECONNREFUSED, text: "cannot be reached"},
		"not for this host":          {plain: true, variant: "HTTP_PROXY", user: user, bypass: "example.com", want: syscall.EHOSTUNREACH},
	} {
		t.Run(name, func(t *testing.T) {
			to := secure.Listener.Addr().String()
			if test.plain {
				to = srv.host
			}
			p := forward.New(t, to, "squid:p@ss")
			p.Deny = test.deny
			address := p.Address(test.user)
			if test.down {
				address = "http://" + test.user + "@" + gone.Addr().String()
			}
			t.Setenv(test.variant, address)
			t.Setenv("NO_PROXY", test.bypass)
			host := "example.com:5000" // for which the server has a certificate
			if test.bypass != "" {
				host = "no-such-host.invalid:5000"
				t.Setenv("NO_PROXY", ".invalid")
			}
			o := newSetup(t, host+"/big:1")
			o.Insecure = []netip.Prefix{} // nobody's address is looked up
			o.test.certDirs = []string{t.TempDir()}
			if test.plain {
				o.registries = fmt.Sprintf("[[registry]]\nlocation = %q\ninsecure = true\n", host)
			} else {
				trust(t, o, host, secure)
			}
			s, err := o.open(t)
			if asked := p.Asked(); test.asked == "" && asked != "" || !strings.Contains(asked, test.asked) {
				t.Errorf("the proxy was asked for %q, want %q", asked, test.asked)
			}
			secretsIn(t, fmt.Sprint(err)+o.logged.String(), "p@ss", "p%40ss", "wr0ng", "squid")
			if test.want != nil || test.text != "" {
				if err == nil || !errors.Is(err, test.want) && test.want != nil || !strings.Contains(err.Error(), test.text) {
					t.Errorf("%v, want %v: %s", err, test.want, test.text)
				}
				if name := strings.TrimPrefix(p.Address(""), "http://"); test.asked != "" && !strings.Contains(err.Error(), name) {
					t.Errorf("the proxy %s is not named: %v", name, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			wantBlob(t, named(t, s, host+"/big:1"), img)
			secretsIn(t, o.logged.String(), "p@ss", "p%40ss", "squid")
		})
	}
	t.Run("loopback", func(t *testing.T) {
		p := forward.New(t, srv.host, "")
		t.Setenv("HTTP_PROXY", p.Address(""))
		t.Setenv("HTTPS_PROXY", p.Address(""))
		s := newSetup(t, srv.host+"/big:1").mustOpen(t)
		wantBlob(t, named(t, s, srv.host+"/big:1"), img)
		if asked := p.Asked(); asked != "" {
			t.Errorf("the proxy was asked for %s", asked)
		}
	})
}

// trust puts the certificate of a server into certs.d.
func trust(t *testing.T, o *setup, host string, srv *httptest.Server) {
	t.Helper()
	dir := filepath.Join(o.test.certDirs[0], host)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, dir+"/ca.crt", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})))
}
