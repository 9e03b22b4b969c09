package ops

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"

	"go.podman.io/image/v5/pkg/sysregistriesv2"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/test/forward"
	"github.com/imgfs/imgfs/test/servers"
)

// A push goes through the proxy of the environment, plain or by CONNECT, and says so if that is why it fails.
func TestPushProxy(t *testing.T) {
	forward.NoProxies(t)
	plain := httptest.NewServer(servers.NewRegistry())
	t.Cleanup(plain.Close)
	secure := httptest.NewUnstartedServer(servers.NewRegistry())
	secure.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	secure.StartTLS()
	t.Cleanup(secure.Close)
	img := smallImage(t)
	for name, test := range map[string]struct {
		secure bool
		user   string
		deny   int
		down   bool
		asked  string
		want   error
		text   string
	}{
		"plain":                 {user: "squid:p%40ss", asked: "PUT registry.test:5000"},
		"CONNECT":               {secure: true, user: "squid:p%40ss", asked: "CONNECT registry.test:5000"},
		"plain, wrong user":     {user: "squid:wr0ng", want: imgsrc.ErrDenied, text: "(407)"},
		"CONNECT, wrong user":   {secure: true, user: "squid:wr0ng", want: imgsrc.ErrDenied, text: "(407)"},
		"CONNECT refused":       {secure: true, user: "squid:p%40ss", deny: 403, text: "Forbidden"},
		"down":                  {secure: true, user: "squid:p%40ss", down: true, want: syscall.ECONNREFUSED, text: "cannot be reached"},
		"plain, down":           {user: "squid:p%40ss", down: true, want: syscall.ECONNREFUSED, text: "cannot be reached"},
		"plain, without a user": {want: imgsrc.ErrDenied, text: "(407)"},
	} {
		t.Run(name, func(t *testing.T) {
			to := plain.Listener.Addr().String()
			if test.secure {
				to = secure.Listener.Addr().String()
			}
			p := forward.New(t, to, "squid:p@ss")
			p.Deny = test.deny
			t.Setenv("HTTPS_PROXY", p.Address(test.user))
			t.Setenv("HTTP_PROXY", p.Address(test.user))
			if test.down {
				p.Close()
			}
			conf := "[[registry]]\nlocation = \"registry.test:5000\"\ninsecure = true\n"
			if test.deny != 0 {
				conf = "" // or the other scheme would be tried
			}
			t.Setenv("CONTAINERS_REGISTRIES_CONF", write(t, conf))
			sysregistriesv2.InvalidateCache()
			t.Cleanup(sysregistriesv2.InvalidateCache)
			o, log := newOps(t, Options{AuthFile: write(t, "{}")}, img)
			err := o.Do(t.Context(), pushTo(img, "registry.test:5000/web:1"))
			events, _ := o.Events()
			for _, secret := range []string{"p@ss", "p%40ss", "wr0ng", "squid"} {
				if text := fmt.Sprint(err) + log.String() + string(events); strings.Contains(text, secret) {
					t.Errorf("%s is in %s", secret, text)
				}
			}
			if test.want == nil && test.text == "" {
				if asked := p.Asked(); err != nil || !strings.Contains(asked, test.asked) {
					t.Errorf("%v; the proxy was asked for %s", err, asked)
				}
				return
			}
			if err == nil || test.want != nil && !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.text) {
				t.Errorf("%v, want %v: %s", err, test.want, test.text)
			}
			if test.text != "Forbidden" && !strings.Contains(err.Error(), strings.TrimPrefix(p.Address(""), "http://")) {
				t.Errorf("the proxy is not named: %v", err)
			}
		})
	}
}
