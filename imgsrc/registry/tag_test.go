package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/layer"
	"github.com/imgfs/imgfs/test/servers"
)

// rawManifest is what a registry has under a tag; empty if nothing.
func rawManifest(t *testing.T, srv *server, repo, tag string) (text, mediaType string) {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, "http://"+srv.host+"/v2/"+repo+"/manifests/"+tag, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", accepted)
	req.Header.Set("X-Test", "1")
	if name, password, ok := strings.Cut(srv.user, ":"); ok {
		req.SetBasicAuth(name, password)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		return "", ""
	}
	return string(b), resp.Header.Get("Content-Type")
}

func namesOf(t *testing.T, s *Source) []string {
	t.Helper()
	var names []string
	for _, l := range list(t, s).Images {
		for _, n := range l.RemoteNames {
			names = append(names, strings.TrimPrefix(n, s.Host()+"/"))
		}
	}
	slices.Sort(names)
	return names
}

// In its own repository and in another one the image keeps its bytes, and nothing of it is sent but the manifest.
func TestTag(t *testing.T) {
	for name, srv := range map[string]*server{"embedded": newServer(t), "distribution": startDistribution(t, "")} {
		t.Run(name, func(t *testing.T) {
			img := srv.image("team/web", "1", layer.Gzip, tarOf(t, "f", noise(100_000)), tarOf(t, "g", "x"))
			arm := srv.image("team/web", "arm", layer.Gzip, tarOf(t, "f", noise(100_000)))
			index := v1.Index{MediaType: v1.MediaTypeImageIndex, Manifests: []v1.Descriptor{img.Descriptor, arm.Descriptor}}
			index.SchemaVersion = 2
			for i, arch := range []string{"amd64", "arm64"} {
				index.Manifests[i].Platform = &v1.Platform{OS: "linux", Architecture: arch}
			}
			multi := srv.put("team/web", "multi", v1.MediaTypeImageIndex, index)

			o := newSetup(t, srv.host+"/team/web")
			s := o.mustOpen(t)
			m := named(t, s, srv.host+"/team/web:1")
			srv.requests("")
			host := srv.host + "/"
			if err := s.Tag(t.Context(), m.desc, []string{host + "team/web:2", host + "other:latest", host + "arm/other:3"}, nil); err != nil {
				t.Fatal(err)
			}
			for _, r := range srv.requests("") {
				if strings.HasPrefix(r, "PATCH ") || strings.HasPrefix(r, "PUT ") && strings.Contains(r, "/blobs/") {
					t.Errorf("bytes of a blob were sent: %s", r)
				}
			}
			if got, want := strings.Join(namesOf(t, s), " "), "arm/other:3 other:latest team/web:1 team/web:2 team/web:arm team/web:multi"; got != want {
				t.Errorf("names %s, want %s", got, want)
			}
			want, mediaType := rawManifest(t, srv, "team/web", "1")
			for _, ref := range [][2]string{{"team/web", "2"}, {"other", "latest"}, {"arm/other", "3"}} {
				if got, typ := rawManifest(t, srv, ref[0], ref[1]); got != want || typ != mediaType {
					t.Errorf("%s: %s %q", ref, typ, got)
				}
			}
			if err := s.Tag(t.Context(), imgsrc.Desc{Digest: multi.Digest}, []string{host + "copies:multi"}, nil); err != nil {
				t.Fatal(err)
			}
			again := newSetup(t, srv.host+"/copies:multi").mustOpen(t)
			list(t, again)
			for _, d := range []v1.Descriptor{img.Descriptor, arm.Descriptor, multi} {
				if m, _ := again.held(d.Digest); m == nil {
					t.Errorf("%s is not in the other repository", d.Digest)
				} else if d.MediaType == v1.MediaTypeImageManifest {
					if _, err := readDiff(t, m, 0); err != nil {
						t.Error(err)
					}
				}
			}
			// It is taken from the image that has it; the same once more changes nothing.
			for range 2 {
				if err := s.Tag(t.Context(), imgsrc.Desc{Digest: arm.Digest}, []string{host + "team/web:1"}, nil); err != nil {
					t.Fatal(err)
				}
			}
			if got := named(t, s, host+"team/web:1").desc.Digest; got != arm.Digest {
				t.Errorf("the tag means %s", got)
			}
			s.mu.Lock()
			s.state.at = time.Time{}
			s.mu.Unlock()
			if got, want := strings.Join(namesOf(t, s), " "), "arm/other:3 copies:multi other:latest team/web:1 team/web:2 team/web:arm team/web:multi"; got != want {
				t.Errorf("listed anew: %s, want %s", got, want)
			}
		})
	}
}

func TestUntag(t *testing.T) {
	srv := newServer(t)
	img := srv.image("web", "1", layer.Gzip, tarOf(t, "f", "x"))
	srv.put("web", "2", img.MediaType, []byte(first(rawManifest(t, srv, "web", "1"))))
	o := newSetup(t, srv.host+"/web")
	s := o.mustOpen(t)
	desc := named(t, s, srv.host+"/web:1").desc
	srv.requests("")
	if err := s.Tag(t.Context(), desc, nil, []string{srv.host + "/web:1"}); err != nil {
		t.Fatal(err)
	}
	for _, r := range srv.requests("DELETE") {
		if r != "DELETE /v2/web/manifests/1" {
			t.Errorf("%s", r)
		}
	}
	if got := namesOf(t, s); len(got) != 1 || got[0] != "web:2" {
		t.Errorf("names %q", got)
	}
	if text, _ := rawManifest(t, srv, "web", "1"); text != "" {
		t.Error("the tag is there")
	}
	if text, _ := rawManifest(t, srv, "web", "2"); text == "" {
		t.Error("the other tag is gone")
	}

	// Somebody else has moved it: what it means now is not touched.
	srv.image("web", "2", layer.Gzip, tarOf(t, "f", "another"))
	if err := s.Tag(t.Context(), desc, nil, []string{srv.host + "/web:2"}); !errors.Is(err, imgsrc.ErrNotFound) || !strings.Contains(err.Error(), "another image") {
		t.Errorf("%v", err)
	}
	if text, _ := rawManifest(t, srv, "web", "2"); text == "" {
		t.Error("another image's tag was removed")
	}
	// An answer that is lost, and a request that is repeated.
	s = newSetup(t, srv.host+"/web").mustOpen(t)
	var lost atomic.Bool
	srv.front(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method == http.MethodDelete && !lost.Swap(true) {
			next.ServeHTTP(&shortWriter{w, 0}, r)
			panic(http.ErrAbortHandler)
		}
		next.ServeHTTP(w, r)
	})
	if err := s.Tag(t.Context(), named(t, s, srv.host+"/web:2").desc, nil, []string{srv.host + "/web:2"}); err != nil || !lost.Load() {
		t.Errorf("%v", err)
	}
}

func first(text, _ string) string { return text }

// A registry that removes no tags says so in one way or another. The image and its tags stay.
func TestUntagUnsupported(t *testing.T) {
	real := startDistribution(t, "")
	embedded := newServer(t)
	answers := map[string]func(http.ResponseWriter){"Debian's": nil}
	for name, test := range map[string]struct {
		status int
		text   string
	}{
		"405": {405, `{"errors":[{"code":"UNSUPPORTED","message":"The operation is unsupported."}]}`}, "404": {404, `{"errors":[{"code":"UNSUPPORTED"}]}`},
		"400": {400, `{"errors":[{"code":"DIGEST_INVALID"}]}`}, "501": {501, ``}, "404, no JSON": {404, `<html>`},
	} {
		answers[name] = func(w http.ResponseWriter) {
			w.WriteHeader(test.status)
			_, _ = io.WriteString(w, test.text)
		}
	}
	for name, answer := range answers {
		t.Run(name, func(t *testing.T) {
			srv := embedded
			if answer == nil {
				srv = real
			}
			srv.image("web", "1", layer.Gzip, tarOf(t, "f", "x"))
			s := newSetup(t, srv.host+"/web:1").mustOpen(t)
			desc := named(t, s, srv.host+"/web:1").desc
			if err := s.Tag(t.Context(), desc, []string{srv.host + "/web:2"}, nil); err != nil {
				t.Fatal(err)
			}
			if answer != nil {
				srv.front(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
					if r.Method == http.MethodDelete {
						answer(w)
						return
					}
					next.ServeHTTP(w, r)
				})
				defer srv.front(nil)
			}
			err := s.Tag(t.Context(), desc, nil, []string{srv.host + "/web:2"})
			if !errors.Is(err, imgsrc.ErrUnsupported) || !strings.Contains(err.Error(), "does not remove single tags") {
				t.Errorf("%v", err)
			}
			if got := strings.Join(namesOf(t, s), " "); got != "web:1 web:2" {
				t.Errorf("names %s", got)
			}
			for _, tag := range []string{"1", "2"} {
				if text, _ := rawManifest(t, srv, "web", tag); text == "" {
					t.Errorf("web:%s is gone", tag)
				}
			}
		})
	}
}

// A registry that mounts nothing is not given the bytes: that is a push.
func TestTagNoMount(t *testing.T) {
	srv := newServer(t)
	srv.image("web", "1", layer.Gzip, tarOf(t, "f", "x"))
	s := newSetup(t, srv.host+"/web:1").mustOpen(t)
	srv.front(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method == http.MethodHead && strings.HasPrefix(r.URL.Path, "/v2/other/blobs/") {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		next.ServeHTTP(w, r)
	})
	srv.requests("")
	err := s.Tag(t.Context(), named(t, s, srv.host+"/web:1").desc, []string{srv.host + "/other:1"}, nil)
	if !errors.Is(err, imgsrc.ErrUnsupported) || !strings.Contains(err.Error(), "push") {
		t.Errorf("%v", err)
	}
	if text, _ := rawManifest(t, srv, "other", "1"); text != "" {
		t.Error("it was tagged without its blobs")
	}
}

func TestTagDenied(t *testing.T) {
	srv := startDistribution(t, servers.Passwords)
	srv.user = "tester:s3cret"
	srv.image("web", "1", layer.Gzip, tarOf(t, "f", "x"))
	o := newSetup(t, srv.host+"/web:1")
	o.login(t, srv.host, srv.user)
	s := o.mustOpen(t)
	desc := named(t, s, srv.host+"/web:1").desc
	if err := s.Tag(t.Context(), desc, []string{srv.host + "/web:2", srv.host + "/more:1"}, nil); err != nil {
		t.Fatal(err)
	}
	o.login(t, srv.host, "tester:wr0ng")
	for _, e := range s.client.endpoints {
		clear(e.logins)
	}
	err := s.Tag(t.Context(), desc, []string{srv.host + "/web:3"}, nil)
	if !errors.Is(err, imgsrc.ErrDenied) || !strings.Contains(err.Error(), "podman login") {
		t.Errorf("%v", err)
	}
	secretsIn(t, fmt.Sprint(err)+o.logged.String(), "wr0ng", "s3cret")

	readers := newServer(t)
	readers.image("web", "1", layer.Gzip, tarOf(t, "f", "x"))
	s = newSetup(t, readers.host+"/web:1").mustOpen(t)
	readers.front(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method == http.MethodPut || r.Method == http.MethodDelete || r.Method == http.MethodPost {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
	desc = named(t, s, readers.host+"/web:1").desc
	for _, names := range [][2][]string{{{readers.host + "/web:2"}, nil}, {nil, {readers.host + "/web:1"}}} {
		if err := s.Tag(t.Context(), desc, names[0], names[1]); !errors.Is(err, imgsrc.ErrDenied) || !strings.Contains(err.Error(), "may not write") {
			t.Errorf("%q: %v", names, err)
		}
	}
}

// With tokens, each request has one that allows what it does.
func TestTagTokens(t *testing.T) {
	srv := newServer(t)
	srv.image("a/web", "1", layer.Gzip, tarOf(t, "f", "x"))
	tokens := newTokenServer(t, srv)
	o := newSetup(t, srv.host+"/a/web:1")
	o.login(t, srv.host, "tester:s3cret")
	s := o.mustOpen(t)
	desc := named(t, s, srv.host+"/a/web:1").desc
	for _, names := range [][2][]string{{{srv.host + "/a/web:2", srv.host + "/b:1"}, nil}, {nil, {srv.host + "/a/web:2"}}} {
		srv.requests("")
		if err := s.Tag(t.Context(), desc, names[0], names[1]); err != nil {
			t.Fatal(err)
		}
		tokens.revoke() // in the middle of the session
	}
	if got := strings.Join(namesOf(t, s), " "); got != "a/web:1 b:1" {
		t.Errorf("names %s", got)
	}
	secretsIn(t, o.logged.String(), "s3cret", "token-1", "token-2")
}

func TestTagRepeated(t *testing.T) {
	srv := newServer(t)
	srv.image("web", "1", layer.Gzip, tarOf(t, "f", "x"))
	for name, answer := range map[string]func(http.ResponseWriter){
		"429": func(w http.ResponseWriter) { w.WriteHeader(http.StatusTooManyRequests) },
		"503": func(w http.ResponseWriter) { w.WriteHeader(http.StatusServiceUnavailable) },
		"cut": func(http.ResponseWriter) { panic(http.ErrAbortHandler) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newSetup(t, srv.host+"/web:1").mustOpen(t)
			desc := named(t, s, srv.host+"/web:1").desc
			var left atomic.Int32
			srv.front(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if r.Method == http.MethodPut && left.Add(-1) >= 0 {
					answer(w)
					return
				}
				next.ServeHTTP(w, r)
			})
			defer srv.front(nil)
			left.Store(3)
			if err := s.Tag(t.Context(), desc, []string{srv.host + "/web:" + name}, nil); err != nil {
				t.Error(err)
			}
			left.Store(1000)
			if err := s.Tag(t.Context(), desc, []string{srv.host + "/web:not-" + name}, nil); err == nil {
				t.Error("no error")
			}
		})
	}
}

func TestTagNowhere(t *testing.T) {
	srv := newServer(t)
	srv.image("web", "1", layer.Gzip, tarOf(t, "f", "x"))
	o := newSetup(t, srv.host+"/web:1")
	s := o.mustOpen(t)
	desc := named(t, s, srv.host+"/web:1").desc
	list(t, s)
	s.Close()
	o.Offline = true
	off := o.mustOpen(t)
	list(t, off)
	if err := off.Tag(t.Context(), desc, []string{srv.host + "/web:2"}, nil); !errors.Is(err, syscall.EHOSTUNREACH) || !strings.Contains(err.Error(), "offline") {
		t.Errorf("offline: %v", err)
	}
	o.Offline = false
	s = o.mustOpen(t)
	list(t, s)
	for name, want := range map[string]string{
		"new":                 "HOST/web:TAG",
		"web:2":               "HOST/web:TAG",
		"other.example.org/a": "push",
		srv.host:              "names no registry",
		"docker://x.io/web:1": "the reference alone",
		srv.host + "/a:1@" + desc.Digest.String(): "no digest",
	} {
		if _, err := s.CheckName(name); !errors.Is(err, imgsrc.ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if name, err := s.CheckName(srv.host + "/web"); err != nil || name != srv.host+"/web:latest" {
		t.Errorf("%s, %v", name, err)
	}
}

// What another look at the registry brings that began before does not undo a change.
func TestTagWhileListing(t *testing.T) {
	srv := newServer(t)
	srv.image("web", "1", layer.Gzip, tarOf(t, "f", "x"))
	b := srv.image("web", "2", layer.Gzip, tarOf(t, "f", "y"))
	s := newSetup(t, srv.host+"/web").mustOpen(t)
	list(t, s)
	asked, release := make(chan struct{}, 10), make(chan struct{})
	srv.front(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		next.ServeHTTP(w, r)
		if r.Method == http.MethodHead && r.Header.Get("X-Test") == "" && strings.HasSuffix(r.URL.Path, "/manifests/1") {
			asked <- struct{}{}
			<-release
		}
	})
	done := make(chan error, 1)
	go func() { _, err := s.look(context.Background()); done <- err }()
	<-asked
	if err := s.Tag(t.Context(), b.desc(), []string{srv.host + "/web:1", srv.host + "/web:3"}, nil); err != nil {
		t.Fatal(err)
	}
	if err := s.Tag(t.Context(), b.desc(), nil, []string{srv.host + "/web:2"}); err != nil {
		t.Fatal(err)
	}
	close(release)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(namesOf(t, s), " "); got != "web:1 web:3" || named(t, s, srv.host+"/web:1").desc.Digest != b.Digest {
		t.Errorf("names %s", got)
	}
}

func (m made) desc() imgsrc.Desc { return imgsrc.Desc{Digest: m.Digest} }

// What was followed is tagged in its own registry.
func TestTagFollowed(t *testing.T) {
	one, two := newServer(t), newServer(t)
	img := one.image("web", "1", layer.Gzip, tarOf(t, "f", "x"))
	other := two.image("web", "1", layer.Gzip, tarOf(t, "f", "y"))
	o := newSetup(t, "")
	o.configure(t)
	f := NewFollowed(o.Options)
	defer f.Close()
	for _, srv := range []*server{one, two} {
		if _, err := f.Follow(t.Context(), srv.host+"/web:1"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.Follow(t.Context(), one.host+"/web:2"); !errors.Is(err, imgsrc.ErrNotFound) {
		t.Fatal(err)
	}
	if err := f.Tag(t.Context(), img.desc(), []string{one.host + "/web:2", one.host + "/new:1"}, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Follow(t.Context(), one.host+"/web:2"); err != nil {
		t.Errorf("a name that was not there is not found now: %v", err)
	}
	if err := f.Tag(t.Context(), img.desc(), []string{two.host + "/web:2"}, nil); !errors.Is(err, imgsrc.ErrInvalid) || !strings.Contains(err.Error(), "push") {
		t.Errorf("%v", err)
	}
	if err := f.Tag(t.Context(), imgsrc.Desc{Digest: digest.FromString("x")}, []string{two.host + "/web:2"}, nil); !errors.Is(err, imgsrc.ErrNotFound) {
		t.Errorf("%v", err)
	}
	if err := f.Tag(t.Context(), other.desc(), nil, []string{two.host + "/web:1"}); err != nil {
		t.Errorf("%v", err)
	}
	l, err := f.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, i := range l.Images {
		names = append(names, i.RemoteNames...)
	}
	slices.Sort(names)
	if want := []string{one.host + "/new:1", one.host + "/web:1", one.host + "/web:2"}; !slices.Equal(names, want) {
		t.Errorf("%q, want %q", names, want)
	}
}
