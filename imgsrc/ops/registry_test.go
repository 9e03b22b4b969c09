package ops

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/test/servers"
)

// startEmbedded runs a registry of this process.
func startEmbedded(t *testing.T, wrap func(http.Handler) http.Handler) (host string) {
	t.Helper()
	return servers.Serve(t, wrap(servers.NewRegistry()))
}

func authFile(t *testing.T, host, user, password string) string {
	t.Helper()
	auth := base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
	return write(t, fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, host, auth))
}

func smallImage(t testing.TB) *fakeImage {
	return newImage(t, imgspecv1.MediaTypeImageManifest, false, "", tarOf("f", noise(1000)))
}

func TestPushWithPassword(t *testing.T) {
	host := servers.Distribution(t, servers.Passwords)
	img := smallImage(t)
	good, bad := authFile(t, host, "tester", "s3cret"), authFile(t, host, "tester", "wr0ng")
	for _, test := range []struct {
		mount string
		words []string
		want  error
	}{
		{"", nil, imgsrc.ErrDenied},
		{bad, nil, imgsrc.ErrDenied},
		{good, nil, nil},
		{bad, []string{"authfile=" + good}, nil},
		{good, []string{"authfile=" + bad}, imgsrc.ErrDenied},
		{"", []string{"authfile=" + good, "tls-verify=false"}, nil},
	} {
		if test.mount == "" {
			test.mount = write(t, "{}") // and not that of whoever runs the test
		}
		o, log := newOps(t, Options{AuthFile: test.mount}, img)
		err := o.Do(t.Context(), pushTo(img, append([]string{host + "/web:1"}, test.words...)...))
		if !errors.Is(err, test.want) {
			t.Errorf("%v: %v, want %v", test.words, err, test.want)
		}
		if test.want != nil && !strings.Contains(err.Error(), "podman login "+host) {
			t.Errorf("nothing is said about what to do: %v", err)
		}
		text, _ := o.LastError(img.desc.ID)
		events, _ := o.Events()
		for _, where := range []string{fmt.Sprint(err), text, string(events), log.String()} {
			for _, secret := range []string{"s3cret", "wr0ng", base64.StdEncoding.EncodeToString([]byte("tester:s3cret"))} {
				if strings.Contains(where, secret) {
					t.Errorf("the password is in %s", where)
				}
			}
		}
	}
}

func TestPushRefused(t *testing.T) {
	img := smallImage(t)
	answer := func(status int, body string) string {
		return startEmbedded(t, func(h http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/v2/" || r.Method == http.MethodHead { // whose answer has no body
					h.ServeHTTP(w, r)
					return
				}
				w.WriteHeader(status)
				_, _ = io.WriteString(w, body)
			})
		})
	}
	tlsServer := httptest.NewUnstartedServer(servers.NewRegistry())
	tlsServer.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	tlsServer.StartTLS()
	t.Cleanup(tlsServer.Close)
	tlsHost := strings.TrimPrefix(tlsServer.URL, "https://")
	plainHost := startEmbedded(t, func(h http.Handler) http.Handler { return h })
	yes, no := true, false
	for _, test := range []struct {
		name   string
		verify *bool
		line   []string
		want   error // nil: an error without a name
		text   string
	}{
		{"refused", nil, []string{servers.FreeAddress(t) + "/web:1"}, syscall.ECONNREFUSED, "is a registry running"},
		{"unknown host", nil, []string{"no-such-host.invalid/web:1"}, syscall.EHOSTUNREACH, "no-such-host.invalid"},
		{"forbidden", nil, []string{answer(403, `{"errors":[{"code":"DENIED","message":"not yours"}]}`) + "/web:1"}, imgsrc.ErrDenied, "not yours"},
		{"forbidden, no JSON", nil, []string{answer(403, `<html>`) + "/web:1"}, imgsrc.ErrDenied, "podman login"},
		{"unauthorized", nil, []string{answer(401, ``) + "/web:1"}, imgsrc.ErrDenied, "podman login"},
		{"unsupported", nil, []string{answer(405, `{"errors":[{"code":"UNSUPPORTED"}]}`) + "/web:1"}, imgsrc.ErrUnsupported, "unsupported"},
		{"no repository", nil, []string{answer(404, `{"errors":[{"code":"NAME_UNKNOWN","message":"no such repository"}]}`) + "/web:1"}, imgsrc.ErrNotFound, "make it there first"},
		{"server error", nil, []string{answer(500, `oops`) + "/web:1"}, nil, "500"},
		{"certificate", nil, []string{tlsHost + "/web:1", "tls-verify=true"}, nil, "tls-verify=false"},
		{"certificate, mount", &yes, []string{tlsHost + "/web:1"}, nil, "tls-verify=false"},
		{"http, line", nil, []string{plainHost + "/web:1", "tls-verify=true"}, nil, "tls-verify=false"},
		{"http, mount", &yes, []string{plainHost + "/web:1"}, nil, "tls-verify=false"},
		{"line before mount", &yes, []string{plainHost + "/web:1", "tls-verify=false"}, errNone, ""},
		{"mount", &no, []string{tlsHost + "/web:1"}, errNone, ""},
		{"loopback", nil, []string{tlsHost + "/web:1"}, errNone, ""},
		{"digest", nil, []string{plainHost + "/web@sha256:" + strings.Repeat("0", 64)}, nil, "Digest"},
	} {
		t.Run(test.name, func(t *testing.T) {
			o, _ := newOps(t, Options{TLSVerify: test.verify, AuthFile: write(t, "{}")}, img)
			err := o.Do(t.Context(), pushTo(img, test.line...))
			if errors.Is(test.want, errNone) {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil || !errors.Is(err, test.want) && test.want != nil || test.want == nil && errors.Unwrap(err) != nil {
				t.Fatalf("%v, want %v", err, test.want)
			}
			if !strings.Contains(err.Error(), test.text) || !strings.HasPrefix(err.Error(), "pushing "+img.desc.ID[:12]+" to docker://") {
				t.Errorf("%v", err)
			}
		})
	}
}

var errNone = errors.New("no error")

// silent listens, accepts, and never answers.
func silent(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { c.Close() })
		}
	}()
	return l.Addr().String()
}

func TestPushSilence(t *testing.T) {
	img := smallImage(t)
	upload := func(h http.Handler) http.Handler { // answers until the first byte of a layer comes
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPatch {
				_, _ = io.Copy(io.Discard, r.Body)
				<-r.Context().Done()
				return
			}
			h.ServeHTTP(w, r)
		})
	}
	for name, host := range map[string]string{"from the beginning": silent(t), "halfway": startEmbedded(t, upload)} {
		t.Run(name, func(t *testing.T) {
			o, _ := newOps(t, Options{Timeout: 300 * time.Millisecond}, img)
			if err := o.Do(t.Context(), pushTo(img, host+"/web:1")); !errors.Is(err, syscall.ETIMEDOUT) || !strings.Contains(err.Error(), "silent") {
				t.Errorf("%v", err)
			}
		})
	}
}

// TestPushCancelled cancels pushes that have begun to move bytes, into everything there is.
func TestPushCancelled(t *testing.T) {
	for _, dest := range []string{"HOST/web:1", "docker-archive:DIR/out", "oci-archive:DIR/out:x", "dir:DIR/out", "oci:DIR/out:x"} {
		t.Run(dest, func(t *testing.T) {
			t.Parallel()
			stalled, release := make(chan struct{}, 10), make(chan struct{})
			host := startEmbedded(t, func(h http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.Method == http.MethodPatch {
						_, _ = io.CopyN(io.Discard, r.Body, 1000)
						stalled <- struct{}{}
						<-release // a server does not see its client go while there is something left to read
						return
					}
					h.ServeHTTP(w, r)
				})
			})
			t.Cleanup(func() { close(release) })
			img := newImage(t, imgspecv1.MediaTypeImageManifest, false, "", tarOf("f", noise(20_000_000)))
			if !strings.HasPrefix(dest, "HOST") {
				var once sync.Once
				img.read = func(ctx context.Context, off int64) error {
					if off < 10_000_000 {
						return nil
					}
					once.Do(func() { stalled <- struct{}{} })
					<-ctx.Done()
					return ctx.Err()
				}
			}
			dir := t.TempDir()
			o, _ := newOps(t, Options{}, img)
			gone := make(chan struct{})
			work := o.copy
			o.copy = func(ctx context.Context, p pushJob) error {
				defer close(gone)
				return work(ctx, p)
			}
			ctx, cancel := context.WithCancel(t.Context())
			var left time.Time
			go func() {
				<-stalled
				left = time.Now() // and not when Do has returned: the job need not wait for that
				cancel()
			}()
			if err := o.Do(ctx, pushTo(img, strings.NewReplacer("HOST", host, "DIR", dir).Replace(dest))); !errors.Is(err, context.Canceled) {
				t.Fatalf("%v", err)
			}
			<-gone
			took := time.Since(left)
			t.Logf("the job was gone %s after its writer", took)
			if took < grace {
				t.Error("before its writer could come back")
			}
			if err := o.Close(t.Context()); err != nil { // and the event is written
				t.Fatal(err)
			}
			text, _ := o.Events()
			if e := lastEvent(t, text); !strings.HasSuffix(e.Type, "-error") || !strings.Contains(e.Error, "cancelled") {
				t.Errorf("event %s", text)
			}
			if job, _, ok := o.Job(1, true); !ok || strings.Contains(string(job), `"running"`) || !strings.Contains(string(job), `"cancelled"`) {
				t.Errorf("the job is %s", job)
			}
			if entries, _ := os.ReadDir(dir); len(entries) > 0 {
				t.Errorf("left %v", entries)
			}
		})
	}
}

func TestPushManyAtOnce(t *testing.T) {
	host := startEmbedded(t, func(h http.Handler) http.Handler { return h })
	var running, most atomic.Int64
	var images []*fakeImage
	for i := range 50 {
		images = append(images, newImage(t, imgspecv1.MediaTypeImageManifest, false, "", tarOf("f", noise(1000+i))))
	}
	o, _ := newOps(t, Options{Pushes: 3}, images...)
	work := o.copy
	o.copy = func(ctx context.Context, p pushJob) error {
		most.Store(max(most.Load(), running.Add(1)))
		defer running.Add(-1)
		return work(ctx, p)
	}
	errs := make(chan error)
	for i, img := range images {
		go func() { errs <- o.Do(t.Context(), pushTo(img, fmt.Sprintf("%s/web:%d", host, i))) }()
	}
	for range images {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if n := most.Load(); n < 1 || n > 3 {
		t.Errorf("%d pushes at once", n)
	}
	for i, img := range images {
		resp, err := http.Get(fmt.Sprintf("http://%s/v2/web/manifests/%d", host, i))
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if !strings.Contains(string(text), img.desc.ID) {
			t.Errorf("web:%d is %s", i, text)
		}
	}
}

// TestPushLeftAtItsEnd: what is done but for its last step when its writer leaves is not there, unless the writer comes back.
func TestPushLeftAtItsEnd(t *testing.T) {
	for _, dest := range []string{"HOST/web:1", "docker-archive:DIR/out", "oci-archive:DIR/out:x", "dir:DIR/out", "oci:DIR/out:x"} {
		for _, back := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/%v", dest, back), func(t *testing.T) {
				t.Parallel()
				var manifests atomic.Int64
				host := startEmbedded(t, func(h http.Handler) http.Handler {
					return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						if r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/manifests/") {
							manifests.Add(1)
						}
						h.ServeHTTP(w, r)
					})
				})
				img := newImage(t, imgspecv1.MediaTypeImageManifest, false, "", tarOf("f", noise(1_000_000)))
				reached, left := make(chan struct{}), make(chan struct{})
				var once sync.Once
				img.read = func(context.Context, int64) error {
					once.Do(func() { close(reached) })
					<-left
					return nil
				}
				dir := t.TempDir()
				o, _ := newOps(t, Options{}, img)
				ctx, cancel := context.WithCancel(t.Context())
				go func() {
					<-reached
					cancel()
				}()
				request := pushTo(img, strings.NewReplacer("HOST", host, "DIR", dir).Replace(dest))
				if err := o.Do(ctx, request); !errors.Is(err, context.Canceled) {
					t.Fatalf("%v", err)
				}
				close(left)
				if back {
					if err := o.Do(t.Context(), request); err != nil {
						t.Error(err)
					}
				} else {
					o.jobs.wg.Wait()
				}
				entries, _ := os.ReadDir(dir)
				if there := len(entries) > 0 || manifests.Load() > 0; there != back {
					t.Errorf("there: %v, want %v", there, back)
				}
			})
		}
	}
}
