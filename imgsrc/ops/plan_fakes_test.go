package ops

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/types"
)

// A heldRegistry answers with the first half of a layer, and with the second when it is told to.
type heldRegistry struct {
	host string
	gate chan struct{}
	held chan struct{} // closed when a layer waits
	once sync.Once

	manifests atomic.Int32 // how many were asked for
	busy      atomic.Int32 // how many requests for layers are refused before that
}

func newHeldRegistry(t *testing.T) *heldRegistry {
	h := &heldRegistry{gate: make(chan struct{}), held: make(chan struct{})}
	h.host = startEmbedded(t, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h.serve(w, r, next) })
	})
	return h
}

func (h *heldRegistry) serve(w http.ResponseWriter, r *http.Request, next http.Handler) {
	if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/manifests/") {
		h.manifests.Add(1)
	}
	if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/sha256:") {
		next.ServeHTTP(w, r)
		return
	}
	answer := httptest.NewRecorder()
	next.ServeHTTP(answer, r)
	body := answer.Body.Bytes()
	part := len(body) / 2
	if json.Valid(body) {
		part = len(body) // a config
	} else if h.busy.Add(-1) >= 0 {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	_, _ = w.Write(body[:part])
	_ = http.NewResponseController(w).Flush()
	if part == len(body) {
		return
	}
	h.once.Do(func() { close(h.held) })
	select {
	case <-h.gate:
		_, _ = w.Write(body[part:])
	case <-r.Context().Done():
	}
}

// A knowingReceiver has some blobs, perhaps leaves foreign layers where they are, and has indexes or not.
type knowingReceiver struct {
	*receiving
	has     []digest.Digest
	foreign bool
	asked   func() // called before each image; may be nil
}

func (r *knowingReceiver) Receive(ctx context.Context, name, id string, copy func(to types.ImageReference) error) error {
	if r.asked != nil {
		r.asked()
	}
	return r.receiving.Receive(ctx, name, id, func(to types.ImageReference) error { return copy(&knowingRef{to, r}) })
}

type knowingRef struct {
	types.ImageReference
	r *knowingReceiver
}

func (r *knowingRef) NewImageDestination(ctx context.Context, sys *types.SystemContext) (types.ImageDestination, error) {
	to, err := r.ImageReference.NewImageDestination(ctx, sys)
	return &knowingDestination{to, r.r}, err
}

type knowingDestination struct {
	types.ImageDestination
	r *knowingReceiver
}

func (d *knowingDestination) AcceptsForeignLayerURLs() bool { return d.r.foreign }
func (d *knowingDestination) HasThreadSafePutBlob() bool    { return false } // the last layers wait for the first
func (d *knowingDestination) TryReusingBlob(ctx context.Context, info types.BlobInfo, cache types.BlobInfoCache, substitute bool) (bool, types.BlobInfo, error) {
	if slices.Contains(d.r.has, info.Digest) {
		return true, info, nil
	}
	return d.ImageDestination.TryReusingBlob(ctx, info, cache, substitute)
}

type indexReceiving struct{ *knowingReceiver }

func (r *indexReceiving) AddIndex(_ context.Context, name string, _ []byte, _ map[digest.Digest]string, _ string) (string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.names = append(r.names, name)
	return "", nil
}
