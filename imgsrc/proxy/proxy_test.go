package proxy

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"syscall"
	"testing"
)

// clearEnvironment takes what the environment of whoever runs the test says of proxies away.
func clearEnvironment(t *testing.T) {
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "ALL_PROXY", "all_proxy", "REQUEST_METHOD"} {
		t.Setenv(name, "")
	}
}

func TestFor(t *testing.T) {
	clearEnvironment(t)
	t.Setenv("HTTP_PROXY", "http://plain:3128")
	t.Setenv("https_proxy", "http://user:p%40ss@secure:3129")
	t.Setenv("NO_PROXY", "example.org,.example.net,10.0.0.0/8,with.port:5000")
	for to, want := range map[string]string{
		"http://registry.test":       "http://plain:3128",
		"https://registry.test:5000": "http://secure:3129",
		"https://example.org":        "",
		"https://a.example.org":      "",
		"https://example.net":        "http://secure:3129",
		"https://a.example.net":      "",
		"https://10.1.2.3:5000":      "",
		"https://with.port:5000":     "",
		"https://with.port":          "http://secure:3129",
		"http://127.0.0.1:5000":      "",
		"https://localhost:5000":     "",
		"https://[::1]:5000":         "",
	} {
		u, err := url.Parse(to)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		proxy, err := For(u)
		if proxy != nil {
			got = Name(proxy)
		}
		if err != nil || got != want {
			t.Errorf("%s: %q, %v, want %q", to, got, err, want)
		}
	}
	t.Setenv("HTTP_PROXY", "http://user:s3c/ret@ no host")
	if proxy, err := For(&url.URL{Scheme: "http", Host: "registry.test"}); err != nil || proxy != nil && strings.Contains(Name(proxy), "s3c") {
		t.Errorf("%v, %v", proxy, err)
	}
}

func TestBlame(t *testing.T) {
	clearEnvironment(t)
	t.Setenv("HTTPS_PROXY", "http://user:s3cret@proxy.test:3128")
	refused := &net.OpError{Op: "proxyconnect", Net: "tcp", Err: syscall.ECONNREFUSED}
	for _, test := range []struct {
		err  error
		host string
		want string
	}{
		{fmt.Errorf("x: %w", refused), "registry.test:5000", "the proxy http://proxy.test:3128 of the environment cannot be reached"},
		{errors.New("pinging: Proxy Authentication Required"), "registry.test", "does not let this user in (407)"},
		{fmt.Errorf("x: %w", &Refused{"http://proxy.test:3128", "registry.test:5000", 403}), "registry.test:5000", "makes no connection to registry.test:5000: 403 Forbidden"},
		{&net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}, "registry.test", ""},
		{refused, "127.0.0.1:5000", ""},
		{nil, "registry.test", ""},
	} {
		got := Blame(test.err, test.host)
		if test.want == "" && got != "" || !strings.Contains(got, test.want) || strings.Contains(got, "s3cret") {
			t.Errorf("%v: %q, want %q", test.err, got, test.want)
		}
	}
}
