package ops

import (
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// An engine that stops in the middle of a push is given up; one that takes its time is not, as long as it answers.
func TestPushToSilentEngine(t *testing.T) {
	const limit = 200 * time.Millisecond
	img := smallImage(t)
	for name, test := range map[string]struct {
		reads   bool // what it is sent
		answers bool // a ping
		want    error
	}{
		"stops":               {false, false, syscall.ETIMEDOUT},
		"stops when it is in": {true, false, syscall.ETIMEDOUT},
		"takes its time":      {true, true, nil},
	} {
		t.Run(name, func(t *testing.T) {
			socket := filepath.Join(t.TempDir(), "sock")
			l, err := net.Listen("unix", socket)
			if err != nil {
				t.Fatal(err)
			}
			var pings atomic.Int32
			gate := make(chan struct{})
			stopped := func(r *http.Request) {
				select {
				case <-gate:
				case <-r.Context().Done():
				}
			}
			server := &httptest.Server{Listener: l, Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				switch {
				case strings.HasSuffix(r.URL.Path, "/_ping"):
					if pings.Add(1) == 3 {
						close(gate)
					}
					if !test.answers {
						stopped(r)
					}
				case strings.HasSuffix(r.URL.Path, "/images/load"):
					if test.reads {
						_, _ = io.Copy(io.Discard, r.Body)
					}
					stopped(r)
				default:
					http.NotFound(w, r)
				}
			})}}
			server.Start()
			t.Cleanup(server.Close)
			t.Setenv("DOCKER_HOST", "unix://"+socket)
			o, _ := newOps(t, Options{Timeout: limit}, img)
			err = o.Do(t.Context(), pushTo(img, "docker-daemon:localhost/web:1"))
			if test.want == nil && err != nil || !errors.Is(err, test.want) {
				t.Errorf("%v, want %v", err, test.want)
			}
			if err != nil && !strings.Contains(err.Error(), "the engine kept silent") {
				t.Errorf("%v", err)
			}
			if j := jobOf(t, o, 1); j.Retries != 0 {
				t.Errorf("tried again %d times", j.Retries)
			}
		})
	}
}
