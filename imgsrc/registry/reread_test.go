package registry

import (
	"context"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/layer"
)

// openIll opens a source that could not read the index when it made its listing, as the registry was ill then.
func openIll(t *testing.T, srv *server, ref string, ix digest.Digest) *Source {
	t.Helper()
	srv.front(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, ix.String()) {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		next.ServeHTTP(w, r)
	})
	s := newSetup(t, ref).mustOpen(t)
	if list(t, s).Images[0].Desc().Damaged == nil {
		t.Fatal("the index was read")
	}
	srv.front(nil)
	return s
}

func wantListed(t *testing.T, s *Source, all ...digest.Digest) {
	t.Helper()
	l := list(t, s)
	for _, d := range all {
		i := slices.IndexFunc(l.Images, func(l imgsrc.Listed) bool { return l.Desc().Digest == d })
		if i < 0 {
			t.Errorf("%s is not listed", d)
		} else if bad := l.Images[i].Desc().Damaged; bad != nil {
			t.Errorf("%s is listed as damaged: %v", d, bad)
		}
	}
}

// An index that a registry did not give out when it was listed is there with all of its images as soon as it does: what was known
// of it before does not take the place of what has just been read.
func TestReadAgain(t *testing.T) {
	srv := newServer(t)
	ix, children := index(srv, "multi", "1")
	other := srv.image("multi", "other", layer.Gzip, tarOf(t, "f", "other"))
	all := []digest.Digest{ix.Digest}
	for _, c := range children {
		all = append(all, c.Digest)
	}
	ref := srv.host + "/multi:1"
	for name, test := range map[string]struct {
		ask  func(s *Source) error
		want []digest.Digest
	}{
		"all":  {func(s *Source) error { return s.AskAll(t.Context()) }, all},
		"name": {func(s *Source) error { return s.add(t.Context(), tagged{Repo: "multi", Tag: "1"}) }, all[:1]},
	} {
		t.Run(name, func(t *testing.T) {
			s := openIll(t, srv, ref, ix.Digest)
			if err := test.ask(s); err != nil {
				t.Fatal(err)
			}
			wantListed(t, s, test.want...)
		})
	}

	// Also by a listing during which something else happens, of which the first bytes that it reads are the sign.
	for name, meanwhile := range map[string]func(ctx context.Context, s *Source) error{
		"follow": func(ctx context.Context, s *Source) error {
			_, err := s.Resolve(ctx, srv.host+"/multi:other")
			return err
		},
		"tag": func(ctx context.Context, s *Source) error {
			return s.Tag(ctx, imgsrc.Desc{Digest: other.Digest}, []string{srv.host + "/multi:new"}, nil)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := openIll(t, srv, ref, ix.Digest)
			if name == "tag" {
				if _, err := s.Resolve(t.Context(), srv.host+"/multi:other"); err != nil {
					t.Fatal(err)
				}
			}
			lookMeanwhile(t, srv, s, ix.Digest, func(ctx context.Context) error { return meanwhile(ctx, s) }, false)
			wantListed(t, s, ix.Digest, children[1].Digest, other.Digest)
		})
	}

	// And a listing that could not read it does not take away what has been read meanwhile.
	s := openIll(t, srv, ref, ix.Digest)
	well := newSetup(t, ref).mustOpen(t)
	list(t, well)
	if err := well.AskAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	lookMeanwhile(t, srv, s, ix.Digest, func(context.Context) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.extend(maps.Clone(well.state.entries)) // as AskAll does; but that would wait for the same request
		return nil
	}, true)
	wantListed(t, s, all...)
}

// While an index cannot be read it is not said that all there is has been asked for.
func TestAskAllOfIllRegistry(t *testing.T) {
	srv := newServer(t)
	ix, _ := index(srv, "multi", "1")
	s := openIll(t, srv, srv.host+"/multi:1", ix.Digest)
	srv.front(func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		w.WriteHeader(http.StatusInternalServerError)
	})
	if err := s.AskAll(t.Context()); err == nil {
		t.Error("no error")
	}
}

// lookMeanwhile makes a listing, during which something happens when the index is first asked for. With ill that request fails.
func lookMeanwhile(t *testing.T, srv *server, s *Source, ix digest.Digest, meanwhile func(context.Context) error, ill bool) {
	t.Helper()
	begun, happened := make(chan struct{}), make(chan struct{})
	defer srv.front(nil)
	srv.front(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, ix.String()) {
			select {
			case <-begun:
			default:
				close(begun)
				<-happened
				if ill {
					w.WriteHeader(http.StatusForbidden)
					return
				}
			}
		}
		next.ServeHTTP(w, r)
	})
	done := make(chan error, 1)
	go func() {
		_, err := s.look(t.Context())
		done <- err
	}()
	<-begun
	err := meanwhile(t.Context())
	close(happened)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err != nil {
		t.Fatal(err)
	}
}
