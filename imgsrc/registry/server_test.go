package registry

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	embedded "github.com/google/go-containerregistry/pkg/registry"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/imgfs/imgfs/imgsrc/layer"
	"github.com/imgfs/imgfs/test/needs"
)

// A server is a registry of this process, with what a test puts in front of it.
type server struct {
	testing.TB
	host string
	user string // user:password, for pushing
	next http.Handler

	mu   sync.Mutex
	wrap func(w http.ResponseWriter, r *http.Request, next http.Handler)
	log  []string // method and path of what was asked, with the range
}

func newServer(t testing.TB) *server {
	t.Helper()
	s := &server{TB: t, next: embedded.New(embedded.Logger(slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)), embedded.WithReferrersSupport(true))}
	h := httptest.NewServer(s)
	t.Cleanup(h.Close)
	t.Cleanup(h.CloseClientConnections)
	s.host = strings.TrimPrefix(h.URL, "http://")
	return s
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	wrap := s.wrap
	if r.Header.Get("X-Test") != "" {
		wrap = nil
	} else {
		s.log = append(s.log, strings.TrimSpace(r.Method+" "+r.URL.Path+" "+r.Header.Get("Range")))
	}
	s.mu.Unlock()
	if wrap == nil {
		s.next.ServeHTTP(w, r)
		return
	}
	wrap(w, r, s.next)
}

// front puts a handler in front of the registry.
func (s *server) front(wrap func(w http.ResponseWriter, r *http.Request, next http.Handler)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wrap = wrap
}

// requests returns what was asked since the last call, of the kind that begins with prefix.
func (s *server) requests(prefix string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []string
	for _, r := range s.log {
		if strings.HasPrefix(r, prefix) {
			list = append(list, r)
		}
	}
	s.log = nil
	return list
}

// ask sends a request of the test itself.
func ask(t testing.TB, user, method, address string, header map[string]string, body []byte, want int) http.Header {
	t.Helper()
	req, err := http.NewRequest(method, address, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Test", "1")
	for k, v := range header {
		req.Header.Set(k, v)
	}
	if name, password, ok := strings.Cut(user, ":"); ok {
		req.SetBasicAuth(name, password)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	text, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if resp.StatusCode != want {
		t.Fatalf("%s %s: %s %s", method, address, resp.Status, text)
	}
	return resp.Header
}

// push puts a blob into a repository.
func (s *server) push(repo, mediaType string, b []byte) v1.Descriptor {
	s.Helper()
	d := v1.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	base := "http://" + s.host
	header := ask(s, s.user, http.MethodPost, base+"/v2/"+repo+"/blobs/uploads/", nil, nil, http.StatusAccepted)
	u, err := url.Parse(header.Get("Location"))
	if err != nil {
		s.Fatal(err)
	}
	q := u.Query()
	q.Set("digest", d.Digest.String())
	ask(s, s.user, http.MethodPut, base+u.Path+"?"+q.Encode(), map[string]string{"Content-Type": "application/octet-stream"}, b, http.StatusCreated)
	return d
}

// put puts a manifest under a tag, and under its digest if that is empty.
func (s *server) put(repo, tag, mediaType string, manifest any) v1.Descriptor {
	s.Helper()
	b, ok := manifest.([]byte)
	if !ok {
		var err error
		if b, err = json.Marshal(manifest); err != nil {
			s.Fatal(err)
		}
	}
	d := v1.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	if tag == "" {
		tag = d.Digest.String()
	}
	ask(s, s.user, http.MethodPut, "http://"+s.host+"/v2/"+repo+"/manifests/"+tag, map[string]string{"Content-Type": mediaType}, b, http.StatusCreated)
	return d
}

// A made image is what was pushed.
type made struct {
	v1.Descriptor
	config v1.Descriptor
	layers []v1.Descriptor
	blobs  [][]byte
	tars   [][]byte
}

// image pushes an image with a layer for each tar, compressed as kind says.
func (s *server) image(repo, tag string, kind layer.Compression, tars ...[]byte) made {
	s.Helper()
	m := made{tars: tars}
	var ids []digest.Digest
	suffix := map[layer.Compression]string{layer.Gzip: "+gzip", layer.Zstd: "+zstd"}[kind]
	for _, b := range tars {
		blob := compress(s, kind, b)
		m.blobs = append(m.blobs, blob)
		m.layers = append(m.layers, s.push(repo, v1.MediaTypeImageLayer+suffix, blob))
		ids = append(ids, digest.FromBytes(b))
	}
	config, err := json.Marshal(v1.Image{Platform: v1.Platform{OS: "linux", Architecture: "amd64"}, Author: tag, RootFS: v1.RootFS{Type: "layers", DiffIDs: ids}})
	if err != nil {
		s.Fatal(err)
	}
	m.config = s.push(repo, v1.MediaTypeImageConfig, config)
	manifest := v1.Manifest{MediaType: v1.MediaTypeImageManifest, Config: m.config, Layers: m.layers}
	manifest.SchemaVersion = 2
	m.Descriptor = s.put(repo, tag, v1.MediaTypeImageManifest, manifest)
	return m
}

func compress(t testing.TB, kind layer.Compression, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	var w io.WriteCloser
	var err error
	switch kind {
	case layer.None:
		return b
	case layer.Gzip:
		w = gzip.NewWriter(&out)
	case layer.Zstd:
		w, err = zstd.NewWriter(&out)
	}
	if err == nil {
		_, err = w.Write(b)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// tarOf is a tar of a root directory and files, which are name and content by turns.
func tarOf(t testing.TB, files ...string) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	if err := w.WriteHeader(&tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o755}); err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(files); i += 2 {
		if err := w.WriteHeader(&tar.Header{Name: files[i], Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(files[i+1]))}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, files[i+1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// noise returns n bytes that do not compress, the same for the same n.
func noise(n int) string {
	r := rand.New(rand.NewPCG(1, uint64(n)))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return string(b)
}

// htpasswd has the user "tester" with the password "s3cret" (bcrypt).
const htpasswd = "tester:$2a$04$si50ejUVTa//eBuQOX0N4OiThFrjgIyGnPMPo59VfdELTMJGTvqzC\n"

// startDistribution runs Debian's docker-registry until the test ends. With passwords it asks for them.
func startDistribution(t testing.TB, passwords string) *server {
	t.Helper()
	needs.Programs(t, "docker-registry")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	host := l.Addr().String()
	l.Close()
	dir := t.TempDir()
	config := fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s/data}, delete: {enabled: true}}\ncompatibility: {schema1: {enabled: true}}\nhttp: {addr: %q}\n", dir, host)
	if passwords != "" {
		write(t, dir+"/htpasswd", passwords)
		config += fmt.Sprintf("auth: {htpasswd: {realm: test, path: %s/htpasswd}}\n", dir)
	}
	write(t, dir+"/config.yml", config)
	cmd := exec.Command("docker-registry", "serve", dir+"/config.yml")
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
			return &server{TB: t, host: host}
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatal("docker-registry does not answer")
	return nil
}

var discardLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
