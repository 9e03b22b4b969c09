package registry

import (
	"net/http"
	"slices"
	"testing"

	"github.com/imgfs/imgfs/imgsrc/layer"
)

// A write that is redirected is made elsewhere or fails: a redirect that makes a read of it, which succeeds, is not followed.
func TestRedirectedWrite(t *testing.T) {
	srv := newServer(t)
	srv.image("web", "1", layer.Gzip, tarOf(t, "f", "1"))
	srv.image("web", "2", layer.Gzip, tarOf(t, "f", "2"))
	elsewhere := newServer(t)
	elsewhere.next = srv.next
	s := newSetup(t, srv.host+"/web").mustOpen(t)
	one := srv.host + "/web:1"
	desc := named(t, s, one).desc
	for status, followed := range map[int]bool{
		http.StatusMovedPermanently: false, http.StatusFound: false, http.StatusSeeOther: false,
		http.StatusTemporaryRedirect: true, http.StatusPermanentRedirect: true,
	} {
		srv.front(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if r.Method == http.MethodPut || r.Method == http.MethodDelete {
				http.Redirect(w, r, "http://"+elsewhere.host+r.URL.Path, status)
				return
			}
			next.ServeHTTP(w, r)
		})
		elsewhere.requests("")
		there := one
		add := s.Tag(t.Context(), desc, []string{srv.host + "/web:new"}, nil)
		if add == nil {
			there = srv.host + "/web:new"
		}
		remove := s.Tag(t.Context(), desc, nil, []string{there})
		if (add == nil) != followed || (remove == nil) != followed || len(elsewhere.requests("GET")) > 0 {
			t.Errorf("%d: adding a tag: %v; removing one: %v", status, add, remove)
		}
		if got := namesOf(t, s); !slices.Equal(got, []string{"web:1", "web:2"}) {
			t.Errorf("%d: the tags are %q", status, got)
		}
	}
	if text, _ := rawManifest(t, srv, "web", "1"); text == "" {
		t.Error("web:1 is gone")
	}
}
