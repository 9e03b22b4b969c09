package registry

import (
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/imgfs/imgfs/imgsrc/layer"
)

// A registry that goes away in the middle of a blob is given up after as many attempts as another, however much has come.
func TestGivenUpInTheMiddle(t *testing.T) {
	srv := newServer(t)
	img := srv.image("big", "1", layer.Gzip, tarOf(t, "f", noise(9<<20)))
	_, m, _ := openBig(t, srv)
	var asked atomic.Int64
	srv.front(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if !strings.Contains(r.URL.Path, "/blobs/"+img.layers[0].Digest.String()) {
			next.ServeHTTP(w, r)
			return
		}
		n := int64(0)
		if asked.Add(1) == 1 {
			n = 8 << 20
		}
		next.ServeHTTP(&shortWriter{w, n}, r)
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	})
	if b, err := readBlob(t, m, img.layers[0].Digest); err == nil {
		t.Fatalf("%d bytes, and no error", len(b))
	}
	if n := asked.Load(); n != int64(quick.attempts) {
		t.Errorf("asked %d times, not %d", n, quick.attempts)
	}
}
