package registry

import (
	"encoding/json"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/imgfs/imgfs/imgsrc/layer"
	"github.com/imgfs/imgfs/test/images"
	"github.com/imgfs/imgfs/test/servers"
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
	s := &server{TB: t, next: servers.NewRegistry()}
	s.host = servers.Serve(t, s)
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

// client pushes without being seen by the test.
func (s *server) client() servers.Client {
	return servers.Client{TB: s.TB, Host: s.host, User: s.user, Header: map[string]string{"X-Test": "1"}}
}

// push puts a blob into a repository.
func (s *server) push(repo, mediaType string, b []byte) v1.Descriptor {
	s.Helper()
	return s.client().Push(repo, mediaType, b)
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
	return s.client().Put(repo, tag, mediaType, b)
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
		blob := compress(kind, b)
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

func compress(kind layer.Compression, b []byte) []byte {
	switch kind {
	case layer.Gzip:
		return images.Gzipped(b)
	case layer.Zstd:
		return images.Zstded(b)
	}
	return b
}

// tarOf is a tar of a root directory and files, which are name and content by turns.
func tarOf(t testing.TB, files ...string) []byte {
	t.Helper()
	entries := []images.Entry{images.Dir(".")}
	for i := 0; i < len(files); i += 2 {
		entries = append(entries, images.File(files[i], files[i+1]))
	}
	return images.Tar(entries...)
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

// startDistribution runs Debian's docker-registry until the test ends. With passwords it asks for them.
func startDistribution(t testing.TB, passwords string) *server {
	t.Helper()
	return &server{TB: t, host: servers.Distribution(t, passwords)}
}

var discardLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
