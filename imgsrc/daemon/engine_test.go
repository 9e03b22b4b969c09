package daemon

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/test/servers"
)

func TestSocketThatMayNotBeUsed(t *testing.T) {
	e, err := newEngine("unix:///run/docker.sock")
	if err != nil {
		t.Fatal(err)
	}
	denied := error(&os.PathError{Op: "dial", Path: "/run/docker.sock", Err: syscall.EACCES})
	e.lastDial.Store(&denied)
	if err := e.unreachable(errors.New("no connection")); !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), "the group docker") {
		t.Error(err)
	}
}

func TestFailuresOfTheEngine(t *testing.T) {
	f := newFake(t, three(t)...)
	s := openSource(t, Options{Host: f.host})
	img := find(t, s, "docker.io/library/a:1")
	f.fail["GET get"] = http.StatusInternalServerError
	if _, err := img.Config(t.Context()); err == nil || errors.Is(err, imgsrc.ErrNotFound) || !strings.Contains(err.Error(), "the fake refuses") {
		t.Error(err)
	}
	f.fail["GET json"] = http.StatusForbidden
	if _, err := s.List(t.Context()); !errors.Is(err, imgsrc.ErrDenied) {
		t.Error(err)
	}
	f.stop()
	if _, err := s.List(t.Context()); !errors.Is(err, imgsrc.ErrNotFound) || !strings.Contains(err.Error(), "no engine answers at "+f.host) {
		t.Error(err)
	}
}

// An engine that takes a question and says nothing is not asked the same of each image.
func TestSilentEngine(t *testing.T) {
	for _, call := range []string{"GET json", "inspect", "GET history"} {
		t.Run(call, func(t *testing.T) {
			var images []*fakeImage
			for n := range 3 * inspectors {
				p := partsOf(t, []byte(fmt.Sprint(n)))
				images = append(images, p.image(nil, fmt.Sprintf("a:%d", n)))
			}
			f := newFake(t, images...)
			f.docker, f.silent = true, map[string]bool{call: true}
			s := openSource(t, Options{Host: f.host})
			s.engine.answer = 200 * time.Millisecond
			if _, err := s.List(t.Context()); !errors.Is(err, syscall.ETIMEDOUT) || !strings.Contains(err.Error(), f.host) {
				t.Error(err)
			}
			if n := f.count(call); n == 0 || n > inspectors {
				t.Errorf("it was asked %d times", n)
			}
		})
	}
}

// An engine that is gone, before a save or in the middle of one, with its socket or without, is not one without the image.
func TestEngineIsGone(t *testing.T) {
	images := three(t)
	f := newFake(t, images...)
	s := openSource(t, Options{Host: f.host})
	a, b := find(t, s, "docker.io/library/a:1"), find(t, s, "docker.io/library/b:1")
	f.save = func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write(images[0].archive[:20_000])
		w.(http.Flusher).Flush()
		_ = f.server.Listener.Close()
		go f.server.CloseClientConnections()
		<-r.Context().Done()
	}
	_, inSave := a.Config(t.Context())
	_, before := b.Files(t.Context(), 0)
	for when, err := range map[string]error{"in the middle of a save": inSave, "before it": before} {
		if !errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist) || !strings.Contains(fmt.Sprint(err), "no engine answers at "+f.host) {
			t.Errorf("%s: %v", when, err)
		}
	}
}

func TestOpenWithoutAnEngine(t *testing.T) {
	dir := servers.ShortDir(t)
	for host, text := range map[string]string{
		"unix://" + dir + "/none": "no engine answers at unix://" + dir + "/none: is it running, and DOCKER_HOST right?",
		"tcp://127.0.0.1:1":       "no engine answers at tcp://127.0.0.1:1: is it running, and DOCKER_HOST right?",
		"ssh://there":             "ssh is not supported",
		"npipe:////./pipe/docker": "not supported",
		"junk":                    "no engine's address",
	} {
		_, err := Open(t.Context(), Options{Host: host})
		if !errors.Is(err, imgsrc.ErrNoSource) || !strings.HasPrefix(err.Error(), "docker-daemon: ") || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v", host, err)
		}
		t.Setenv("DOCKER_HOST", host)
		if _, again := Open(t.Context(), Options{}); again == nil || again.Error() != err.Error() {
			t.Errorf("%s as DOCKER_HOST: %v", host, again)
		}
	}
	f := newFake(t)
	t.Setenv("DOCKER_HOST", f.host)
	if openSource(t, Options{}).Name() != "docker-daemon:" {
		t.Error("another name")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Open(ctx, Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("with a cancelled context: %v", err)
	}
}

func TestTLS(t *testing.T) {
	f := newFake(t, three(t)...)
	server := httptest.NewUnstartedServer(http.HandlerFunc(f.serve))
	server.StartTLS()
	defer server.Close()
	cert := server.TLS.Certificates[0]
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	pemCert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]})
	for name, b := range map[string][]byte{"ca.pem": pemCert, "cert.pem": pemCert, "key.pem": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	server.TLS.ClientAuth = tls.RequireAnyClientCert
	host := "tcp://" + server.Listener.Addr().String()
	if _, err := Open(t.Context(), Options{Host: host}); !errors.Is(err, imgsrc.ErrNoSource) {
		t.Errorf("without TLS: %v", err)
	}
	t.Setenv("DOCKER_TLS_VERIFY", "1")
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	if _, err := Open(t.Context(), Options{Host: host}); !errors.Is(err, imgsrc.ErrNoSource) || !strings.Contains(err.Error(), "ca.pem") {
		t.Errorf("without certificates: %v", err)
	}
	t.Setenv("DOCKER_CONFIG", dir)
	checkLayers(t, find(t, openSource(t, Options{Host: host}), "docker.io/library/a:1"))
	t.Setenv("DOCKER_CERT_PATH", dir)
	checkLayers(t, find(t, openSource(t, Options{Host: host}), "docker.io/library/a:1"))
	// A socket is never asked by TLS.
	find(t, openSource(t, Options{Host: f.host}), "docker.io/library/a:1")
}
