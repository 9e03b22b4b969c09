package servers

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	embedded "github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/imgfs/imgfs/test/needs"
)

// Passwords are a file for a registry that asks for them: of the user "tester" with the password "s3cret" (bcrypt).
const Passwords = "tester:$2a$04$si50ejUVTa//eBuQOX0N4OiThFrjgIyGnPMPo59VfdELTMJGTvqzC\n"

// NewRegistry is a registry in this process, which knows the referrers API.
func NewRegistry() http.Handler {
	return embedded.New(embedded.Logger(slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)), embedded.WithReferrersSupport(true))
}

// Serve serves a registry until the test ends, and returns its host and port.
func Serve(t testing.TB, h http.Handler) (host string) {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	t.Cleanup(s.CloseClientConnections)
	return strings.TrimPrefix(s.URL, "http://")
}

// FreeAddress is a port of the loopback interface that nobody listens on.
func FreeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// Distribution runs Debian's docker-registry until the test ends, and returns its host and port. With passwords it asks for
// them.
func Distribution(t testing.TB, passwords string) (host string) {
	t.Helper()
	needs.Programs(t, "docker-registry")
	host = FreeAddress(t)
	dir := t.TempDir()
	config := fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s/data}, delete: {enabled: true}}\n"+
		"compatibility: {schema1: {enabled: true}}\nhttp: {addr: %q}\n", dir, host)
	files := map[string]string{}
	if passwords != "" {
		files["htpasswd"] = passwords
		config += fmt.Sprintf("auth: {htpasswd: {realm: test, path: %s/htpasswd}}\n", dir)
	}
	files["config.yml"] = config
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("docker-registry", "serve", filepath.Join(dir, "config.yml"))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	for range 500 {
		if resp, err := http.Get("http://" + host + "/v2/"); err == nil {
			resp.Body.Close()
			return host
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatal("docker-registry does not answer")
	return ""
}

// A Client puts images into a registry, to the byte.
type Client struct {
	testing.TB
	Host   string
	User   string            // user:password; empty: none
	Header map[string]string // of every request
}

// Ask sends a request, and wants the status of the answer to be this one.
func (c Client) Ask(method, address string, header map[string]string, body []byte, want int) http.Header {
	c.Helper()
	req, err := http.NewRequest(method, address, bytes.NewReader(body))
	if err != nil {
		c.Fatal(err)
	}
	for _, h := range []map[string]string{c.Header, header} {
		for k, v := range h {
			req.Header.Set(k, v)
		}
	}
	if name, password, ok := strings.Cut(c.User, ":"); ok {
		req.SetBasicAuth(name, password)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		c.Fatal(err)
	}
	text, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if resp.StatusCode != want {
		c.Fatalf("%s %s: %s %s", method, address, resp.Status, text)
	}
	return resp.Header
}

// Push puts a blob into a repository.
func (c Client) Push(repo, mediaType string, b []byte) v1.Descriptor {
	c.Helper()
	d := v1.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	base := "http://" + c.Host
	header := c.Ask(http.MethodPost, base+"/v2/"+repo+"/blobs/uploads/", nil, nil, http.StatusAccepted)
	u, err := url.Parse(header.Get("Location"))
	if err != nil {
		c.Fatal(err)
	}
	q := u.Query()
	q.Set("digest", d.Digest.String())
	c.Ask(http.MethodPut, base+u.Path+"?"+q.Encode(), map[string]string{"Content-Type": "application/octet-stream"}, b, http.StatusCreated)
	return d
}

// Put puts a manifest under a tag, and under its digest if that is empty.
func (c Client) Put(repo, tag, mediaType string, manifest []byte) v1.Descriptor {
	c.Helper()
	d := v1.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(manifest), Size: int64(len(manifest))}
	if tag == "" {
		tag = d.Digest.String()
	}
	c.Ask(http.MethodPut, "http://"+c.Host+"/v2/"+repo+"/manifests/"+tag, map[string]string{"Content-Type": mediaType}, manifest, http.StatusCreated)
	return d
}
