package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// A slowRegistry serves the blobs of a layout, from this machine, as if it were some way off: each answer comes late. It
// counts what it sends of blobs.
type slowRegistry struct {
	*httptest.Server
	dir      string
	names    map[string]v1.Descriptor // of manifests, by repository:tag
	late     time.Duration
	sent     atomic.Int64
	requests atomic.Int64
}

func newSlowRegistry(dir string, names map[string]v1.Descriptor) *slowRegistry {
	r := &slowRegistry{dir: dir, names: names}
	r.Server = httptest.NewServer(r)
	return r
}

func (r *slowRegistry) host() string { return strings.TrimPrefix(r.URL, "http://") }

func (r *slowRegistry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	time.Sleep(r.late)
	repo, rest, _ := strings.Cut(strings.TrimPrefix(req.URL.Path, "/v2/"), "/")
	kind, name, _ := strings.Cut(rest, "/")
	switch kind {
	case "":
	case "manifests":
		d, ok := r.names[repo+":"+name]
		if !ok {
			d = v1.Descriptor{MediaType: v1.MediaTypeImageManifest, Digest: digest.Digest(name)}
		}
		w.Header().Set("Content-Type", d.MediaType)
		w.Header().Set("Docker-Content-Digest", d.Digest.String())
		r.file(w, req, d.Digest)
	case "blobs":
		r.requests.Add(1)
		w.Header().Set("Content-Type", "application/octet-stream")
		r.file(&countedAnswer{w, &r.sent}, req, digest.Digest(name))
	default:
		http.NotFound(w, req)
	}
}

func (r *slowRegistry) file(w http.ResponseWriter, req *http.Request, d digest.Digest) {
	if d.Validate() != nil {
		http.NotFound(w, req)
		return
	}
	f, err := os.Open(filepath.Join(r.dir, v1.ImageBlobsDir, "sha256", d.Encoded()))
	if err != nil {
		http.NotFound(w, req)
		return
	}
	defer f.Close()
	http.ServeContent(w, req, "", time.Time{}, f)
}

// count returns what was sent of blobs since the last call, and in how many answers.
func (r *slowRegistry) count() (bytes, requests int64) { return r.sent.Swap(0), r.requests.Swap(0) }

type countedAnswer struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (c *countedAnswer) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.n.Add(int64(n))
	return n, err
}

func percent(part, whole int64) string {
	return fmt.Sprintf("%.2f %%", 100*float64(part)/float64(whole))
}
