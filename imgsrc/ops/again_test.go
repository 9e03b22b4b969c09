package ops

import (
	"bytes"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/docker"
	"go.podman.io/image/v5/types"

	"github.com/imgfs/imgfs/imgsrc"
)

// A layer, manifest or config of a pull that a registry is too busy for, or that breaks off, is asked for again.
func TestPullAgain(t *testing.T) {
	img := newImage(t, imgspecv1.MediaTypeImageManifest, true, "", tarOf("a", noise(300_000)), tarOf("b", noise(301_000)))
	status := func(code int) func(http.ResponseWriter, *http.Request, http.Handler) {
		return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			w.Header().Set("Retry-After", "0")
			w.WriteHeader(code)
		}
	}
	cut := func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		answer := httptest.NewRecorder()
		next.ServeHTTP(answer, r)
		w.Header().Set("Content-Length", strconv.Itoa(answer.Body.Len()))
		_, _ = w.Write(answer.Body.Bytes()[:answer.Body.Len()/2])
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
	rest := func(w http.ResponseWriter, r *http.Request, next http.Handler) { // the embedded one knows no open ranges
		answer := httptest.NewRecorder()
		whole := r.Clone(r.Context())
		whole.Header.Del("Range")
		next.ServeHTTP(answer, whole)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(answer.Body.Bytes()))
	}
	whole := func(w http.ResponseWriter, r *http.Request, next http.Handler) { // as registries that know no ranges
		r.Header.Del("Range")
		next.ServeHTTP(w, r)
	}
	layer := "/blobs/" + string(img.facts(t).Layers[1].Digest)
	for name, test := range map[string]struct {
		what    string // of the path
		answers []func(http.ResponseWriter, *http.Request, http.Handler)
		always  bool // the last answer is that of all that follow
		want    string
		retries int // of ours; the library has its own
	}{
		"429 of a manifest":   {"/manifests/", fakes(status(429)), false, "", 0},
		"503 of a manifest":   {"/manifests/", fakes(status(503), status(503)), false, "", 2},
		"429 of a layer":      {layer, fakes(status(429)), false, "", 0},
		"503 of a layer":      {layer, fakes(status(503), status(503), status(503)), false, "", 3},
		"502 of the first":    {"/v2/", fakes(status(502)), false, "", 1},
		"cut":                 {layer, fakes(cut, rest), false, "", 0},
		"cut, without ranges": {layer, fakes(cut, whole), false, "", 1},
		"always 503":          {layer, fakes(status(503)), true, "(tried 4 times)", 3},
		"501":                 {layer, fakes(status(501)), true, "501", 0},
		"404":                 {layer, fakes(status(404)), true, "404", 0},
		"403":                 {layer, fakes(status(403)), true, "podman login", 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var begun atomic.Bool
			var asked atomic.Int32
			host := startEmbedded(t, func(next http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					n := len(test.answers)
					if begun.Load() && strings.Contains(r.URL.Path, test.what) {
						n = int(asked.Add(1)) - 1
					}
					if test.always {
						n = min(n, len(test.answers)-1)
					}
					if begun.Load() && n < len(test.answers) && strings.Contains(r.URL.Path, test.what) {
						test.answers[n](w, r, next)
						return
					}
					next.ServeHTTP(w, r)
				})
			})
			from, _ := newOps(t, Options{}, img)
			if err := from.Do(t.Context(), pushTo(img, host+"/web:1")); err != nil {
				t.Fatal(err)
			}
			begun.Store(true)
			to := newReceiving(t)
			o, log := newOpsOn(t, Options{}, to)
			err := o.Do(t.Context(), request("pull", host+"/web:1"))
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v", err)
			}
			if n := strings.Count(log.String(), "\n"); err == nil && n != 0 || err != nil && n != 1 {
				t.Errorf("log: %s", log)
			}
			if j := jobOf(t, o, 1); j.Retries != test.retries {
				t.Errorf("tried again %d times, not %d", j.Retries, test.retries)
			}
			if parts := to.parts(t); len(parts) > 0 || (len(to.names) == 1) != (err == nil) {
				t.Errorf("arrived %q, parts %q", to.names, parts)
			}
		})
	}
}

type fakeAnswer = func(http.ResponseWriter, *http.Request, http.Handler)

func fakes(all ...fakeAnswer) []fakeAnswer { return all }

// What only asks is repeated as well, and so is the look at an index.
func TestAskAgain(t *testing.T) {
	img := smallImage(t)
	index := newIndex(t, img)
	for _, words := range [][]string{{"dry-run=true"}, {"all=true"}} {
		var begun atomic.Bool
		var refused atomic.Int32
		host := startEmbedded(t, func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if begun.Load() && strings.Contains(r.URL.Path, "/manifests/") && refused.Add(1) <= 2 {
					w.WriteHeader(http.StatusServiceUnavailable)
					return
				}
				next.ServeHTTP(w, r)
			})
		})
		from, _ := newOps(t, Options{}, img, index)
		if err := from.Do(t.Context(), pushTo(index, host+"/web:1", "all=true")); err != nil {
			t.Fatal(err)
		}
		begun.Store(true)
		o, _ := newOpsOn(t, Options{}, newReceiving(t))
		if err := o.Do(t.Context(), request("pull", append([]string{host + "/web:1"}, words...)...)); err != nil {
			t.Errorf("%s: %v", words, err)
		}
		if n := refused.Load(); n < 3 {
			t.Errorf("%s: asked %d times", words, n)
		}
	}
}

// A registry that stops once it has given its manifest was there a moment ago, and is asked again. A store has the config read
// before anything is said to arrive.
func TestManifestIsAnAnswer(t *testing.T) {
	img := smallImage(t)
	host := startEmbedded(t, func(next http.Handler) http.Handler { return next })
	from, _ := newOps(t, Options{}, img)
	if err := from.Do(t.Context(), pushTo(img, host+"/web:1")); err != nil {
		t.Fatal(err)
	}
	ref, err := docker.ParseReference("//" + host + "/web:1")
	if err != nil {
		t.Fatal(err)
	}
	watch := &watchdog{}
	src, err := (&plannedSource{ref, &planner{watch: watch}}).NewImageSource(t.Context(), &types.SystemContext{DockerInsecureSkipTLSVerify: types.OptionalBoolTrue})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	refused := &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
	if !temporary(refused, watch.reached.Load()) || temporary(refused, (&watchdog{}).reached.Load()) {
		t.Error("not tried again, or also when nothing has ever answered")
	}
}

// A registry that never answers is given up, and once: what hangs is not what a little later may succeed.
func TestPullFromRegistryThatHangs(t *testing.T) {
	o, _ := newOpsOn(t, Options{Timeout: 300 * time.Millisecond}, newReceiving(t))
	for _, words := range [][]string{nil, {"dry-run=true"}} {
		err := o.Do(t.Context(), request("pull", append([]string{silent(t) + "/web:1"}, words...)...))
		if !errors.Is(err, syscall.ETIMEDOUT) || !strings.Contains(err.Error(), "kept silent") {
			t.Errorf("%s: %v", words, err)
		}
	}
	if j := jobOf(t, o, 1); j.Retries != 0 {
		t.Errorf("tried again %d times", j.Retries)
	}
}

// facts are what the image's manifest says.
func (i *fakeImage) facts(t *testing.T) *imgsrc.Facts {
	t.Helper()
	facts, err := imgsrc.Load(t.Context(), i)
	if err != nil {
		t.Fatal(err)
	}
	return facts
}
