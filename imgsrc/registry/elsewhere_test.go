package registry

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/layer"
)

// refuse answers with a status what is asked below a path.
func refuse(srv *server, path string, status int) {
	srv.front(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.HasPrefix(r.URL.Path, path) {
			w.WriteHeader(status)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// A layer that one repository does not give out comes from another whose image has it too, also while somebody has it open who
// has only been refused.
func TestBlobElsewhere(t *testing.T) {
	for _, cacheDir := range []bool{true, false} {
		for _, status := range []int{http.StatusNotFound, http.StatusForbidden} {
			srv := newServer(t)
			tar := tarOf(t, "f", noise(100_000))
			img := srv.image("a", "1", layer.Gzip, tar)
			srv.image("b", "2", layer.Gzip, tar)
			o := newSetup(t, srv.host)
			if !cacheDir {
				o.CacheDir = ""
			}
			s := o.mustOpen(t)
			a, b := named(t, s, srv.host+"/a:1"), named(t, s, srv.host+"/b:2")
			refuse(srv, "/v2/a/blobs/", status)
			c, err := a.Blob(t.Context(), img.layers[0].Digest)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := c.ReadAt(t.Context(), make([]byte, 1), 0); err == nil {
				t.Errorf("%d: read from a repository that does not have it", status)
			}
			wantBlob(t, b, img)
			wantBlob(t, a, img)
		}
	}
}

// So it is with the parts of a layer, and with what is missing of it: who has it open in a repository that is gone reads on, also if
// nothing of it was read before that.
func TestLazyElsewhere(t *testing.T) {
	for name, status := range map[string]int{"gone": http.StatusNotFound, "denied": http.StatusForbidden} {
		for _, m := range lazyImages(t, lazyEntries()) {
			for _, before := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s/%s/read before %v", m.form, name, before), func(t *testing.T) {
					srv := newServer(t)
					l := srv.pushLazy("a", "1", m)
					srv.pushLazy("b", "2", m)
					s := newSetup(t, srv.host).mustOpen(t)
					a, b := named(t, s, srv.host+"/a:1"), named(t, s, srv.host+"/b:2")
					var first *reader
					if before {
						first = lookInto(t, a)
						first.check("d/100", lazyFile(100))
					}
					files, err := a.Files(t.Context(), 0)
					if err != nil {
						t.Fatal(err)
					}
					defer files.Close()
					refuse(srv, "/v2/a/", status)
					if _, err := files.Root(t.Context()); err == nil && !before {
						t.Error("read from a repository that does not have it")
					}
					r := lookInto(t, b)
					r.check("d/300", lazyFile(300))
					if before {
						first.check("d/400", lazyFile(400))
					}
					srv.requests("")
					r.check("d/200", lazyFile(200))
					if asked := srv.requests("GET /v2/a/"); len(asked) > 0 {
						t.Errorf("asked where it is not: %q", asked)
					}
					r.checkAll()
					eventually(t, "the layer to be local", func() bool { return b.Local(0) })
					if got, err := readBlob(t, b, l.Digest); err != nil || !bytes.Equal(got, m.blob) {
						t.Errorf("blob: %v", err)
					}
				})
			}
		}
	}
}

// Who joins a fetch that fails in the repository of another gets the layer from his own.
func TestBlobElsewhereMeanwhile(t *testing.T) {
	srv := newServer(t)
	tar := tarOf(t, "f", noise(100_000))
	img := srv.image("a", "1", layer.Gzip, tar)
	srv.image("b", "2", layer.Gzip, tar)
	s := newSetup(t, srv.host).mustOpen(t)
	a, b := named(t, s, srv.host+"/a:1"), named(t, s, srv.host+"/b:2")
	asked, joined := make(chan struct{}, 1), make(chan struct{})
	srv.front(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.HasPrefix(r.URL.Path, "/v2/a/blobs/") {
			asked <- struct{}{}
			<-joined
			w.WriteHeader(http.StatusNotFound)
			return
		}
		next.ServeHTTP(w, r)
	})
	first := make(chan error)
	go func() {
		_, err := readBlob(t, a, img.layers[0].Digest)
		first <- err
	}()
	<-asked
	x, err := s.blobs.use(b.repo, img.layers[0].Digest, img.layers[0].Size)
	if err != nil {
		t.Fatal(err)
	}
	defer s.blobs.release(x)
	close(joined)
	if err := <-first; err != nil {
		t.Errorf("who was first: %v", err)
	}
	wantBlob(t, b, img)
}

// A manifest that is being asked for in one repository is not waited for, nor its answer believed, by who wants that of another.
func TestManifestElsewhere(t *testing.T) {
	srv := newServer(t)
	img := srv.image("a", "1", layer.Gzip, tarOf(t, "f", "1"))
	srv.image("b", "1", layer.Gzip, tarOf(t, "f", "1"))
	o := newSetup(t, srv.host)
	o.Asked = true
	s := o.mustOpen(t)
	asked, answer := make(chan struct{}, 1), make(chan struct{})
	srv.front(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method == http.MethodGet && strings.HasPrefix(r.URL.Path, "/v2/a/manifests/") {
			asked <- struct{}{}
			<-answer
			w.WriteHeader(http.StatusNotFound)
			return
		}
		next.ServeHTTP(w, r)
	})
	first := make(chan error)
	go func() {
		_, err := s.manifest(t.Context(), "a", img.Digest)
		first <- err
	}()
	<-asked
	if _, err := s.manifest(t.Context(), "b", img.Digest); err != nil {
		t.Errorf("the repository that has it: %v", err)
	}
	close(answer)
	if err := <-first; !errors.Is(err, imgsrc.ErrNotFound) {
		t.Errorf("the one that does not: %v", err)
	}
}

// An image that two repositories had is read from the one that has it still.
func TestRepositoryIsGone(t *testing.T) {
	srv := newServer(t)
	tar := tarOf(t, "f", noise(100_000))
	img := srv.image("a", "1", layer.Gzip, tar)
	srv.image("b", "1", layer.Gzip, tar)
	s := newSetup(t, srv.host).mustOpen(t)
	was := named(t, s, srv.host+"/b:1")
	if _, err := s.look(t.Context()); err != nil || named(t, s, srv.host+"/b:1") != was {
		t.Errorf("another image although nothing has changed, %v", err)
	}
	srv.front(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		switch {
		case strings.HasPrefix(r.URL.Path, "/v2/a/"):
			w.WriteHeader(http.StatusNotFound)
		case r.URL.Path == "/v2/_catalog":
			fmt.Fprint(w, `{"repositories":["b"]}`)
		default:
			next.ServeHTTP(w, r)
		}
	})
	if _, err := s.look(t.Context()); err != nil {
		t.Fatal(err)
	}
	m := named(t, s, srv.host+"/b:1")
	if _, err := m.Config(t.Context()); err != nil {
		t.Error(err)
	}
	wantBlob(t, m, img)
}

// That a repository need not have a layer, and does not, says nothing of another.
func TestForeignElsewhere(t *testing.T) {
	srv := newServer(t)
	const mediaType = "application/vnd.docker.image.rootfs.foreign.diff.tar"
	tar := tarOf(t, "f", "x")
	put := func(repo string, l v1.Descriptor) {
		config := fmt.Sprintf(`{"author":%q,"rootfs":{"type":"layers","diff_ids":[%q]}}`, repo, l.Digest)
		manifest := v1.Manifest{
			MediaType: v1.MediaTypeImageManifest, Config: srv.push(repo, v1.MediaTypeImageConfig, []byte(config)), Layers: []v1.Descriptor{l},
		}
		manifest.SchemaVersion = 2
		srv.put(repo, "1", v1.MediaTypeImageManifest, manifest)
	}
	put("a", v1.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(tar), Size: int64(len(tar))})
	put("b", srv.push("b", mediaType, tar))
	refuse(srv, "/v2/a/blobs/"+digest.FromBytes(tar).String(), http.StatusNotFound)
	s := newSetup(t, srv.host).mustOpen(t)
	for repo, want := range map[string]error{"a": imgsrc.ErrAbsent, "b": nil} {
		if _, err := named(t, s, srv.host+"/"+repo+":1").Files(t.Context(), 0); !errors.Is(err, want) {
			t.Errorf("%s: %v", repo, err)
		}
	}
}
