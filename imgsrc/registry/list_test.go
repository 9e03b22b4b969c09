package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/layer"
)

// index pushes an index over images of two platforms and an attestation.
func index(srv *server, repo, tag string) (ix v1.Descriptor, children []made) {
	srv.Helper()
	list := v1.Index{MediaType: v1.MediaTypeImageIndex}
	list.SchemaVersion = 2
	for _, p := range []v1.Platform{{OS: "linux", Architecture: "arm64"}, {OS: "linux", Architecture: "amd64"}, {OS: "unknown", Architecture: "unknown"}} {
		img := srv.image(repo, "", layer.Gzip, tarOf(srv, "f", p.Architecture))
		img.Platform = &p
		children = append(children, img)
		list.Manifests = append(list.Manifests, img.Descriptor)
	}
	return srv.put(repo, tag, v1.MediaTypeImageIndex, list), children
}

func TestIndex(t *testing.T) {
	srv := newServer(t)
	ix, children := index(srv, "multi", "1")
	// Where many tags are listed, an index brings the image for the platform.
	o := newSetup(t, srv.host)
	s := o.mustOpen(t)
	l := list(t, s)
	if got, want := digestsOf(l), []digest.Digest{ix.Digest, children[1].Digest}; !slices.Equal(got, want) {
		t.Errorf("listed: %v, want %v", got, want)
	}
	d := l.Images[0].Desc()
	if d.ID != ix.Digest.Encoded() || d.MediaType != v1.MediaTypeImageIndex || len(d.Lists) != 3 || d.Config != "" {
		t.Errorf("the index is %+v", d)
	}
	if l.Images[1].RemoteNames != nil || !slices.Equal(l.Images[1].RepoDigests, []string{srv.host + "/multi@" + children[1].Digest.String()}) {
		t.Errorf("the child is %+v", l.Images[1])
	}
	// Another that is asked for is listed from then on.
	stamp := s.Stamp()
	name := srv.host + "/multi@" + children[2].Digest.String()
	got, err := s.Resolve(t.Context(), name)
	if err != nil || got.Desc().Digest != children[2].Digest {
		t.Fatalf("%+v, %v", got, err)
	}
	if s.Stamp() == stamp {
		t.Error("the stamp has not moved")
	}
	if got, want := digestsOf(list(t, s)), []digest.Digest{ix.Digest, children[1].Digest, children[2].Digest}; len(got) != 3 || !slices.Contains(got, want[2]) {
		t.Errorf("listed: %v, want %v", got, want)
	}
	// One that the registry does not have is not there.
	srv.front(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.HasSuffix(r.URL.Path, children[0].Digest.String()) {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		next.ServeHTTP(w, r)
	})
	o = newSetup(t, srv.host+"/multi:1")
	if l, want := list(t, o.mustOpen(t)), []digest.Digest{ix.Digest, children[1].Digest}; !slices.Equal(digestsOf(l), want) {
		t.Errorf("listed: %v, want %v", digestsOf(l), want)
	}
	srv.front(nil)
	// A single reference brings all its platforms.
	o = newSetup(t, srv.host+"/multi:1")
	o.Platform = imgsrc.Platform{OS: "linux", Architecture: "arm64"}
	if got, want := digestsOf(list(t, o.mustOpen(t))), []digest.Digest{ix.Digest, children[0].Digest, children[1].Digest}; !slices.Equal(got, want) {
		t.Errorf("listed: %v, want %v", got, want)
	}
}

func TestResolve(t *testing.T) {
	srv := newServer(t)
	srv.image("web", "1", layer.None, tarOf(t))
	other := srv.image("a/other", "latest", layer.None, tarOf(t, "f", "x"))
	o := newSetup(t, srv.host+"/web:1")
	s := o.mustOpen(t)
	for _, name := range []string{srv.host + "/a/other", srv.host + "/a/other:latest", srv.host + "/a/other@" + other.Digest.String()} {
		got, err := s.Resolve(t.Context(), name)
		if err != nil || got.Desc().Digest != other.Digest {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	named(t, s, srv.host+"/a/other:latest")
	named(t, s, srv.host+"/web:1")
	for name, want := range map[string]error{
		srv.host + "/web:2": imgsrc.ErrNotFound, "docker.io/library/web:1": imgsrc.ErrInvalid, "%": imgsrc.ErrInvalid,
	} {
		if _, err := s.Resolve(t.Context(), name); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
	// What was asked for is kept, and what it means is looked at as well.
	o2 := *o
	o2.Offline = true
	named(t, o2.mustOpen(t), srv.host+"/a/other:latest")
	names, err := s.Names(t.Context())
	slices.Sort(names)
	if want := []string{srv.host + "/a/other:latest", srv.host + "/web:1"}; err != nil || !slices.Equal(names, want) {
		t.Errorf("names: %q, %v", names, err)
	}
}

// Names asks for nothing but names.
func TestNames(t *testing.T) {
	srv := newServer(t)
	srv.image("a/web", "1", layer.None, tarOf(t))
	srv.image("b", "x", layer.None, tarOf(t))
	s := newSetup(t, srv.host).mustOpen(t)
	srv.requests("")
	names, err := s.Names(t.Context())
	slices.Sort(names)
	if want := []string{srv.host + "/a/web:1", srv.host + "/b:x"}; err != nil || !slices.Equal(names, want) {
		t.Errorf("names: %q, %v", names, err)
	}
	if again := srv.requests("HEAD"); len(again) != 0 {
		t.Errorf("asked: %q", again)
	}
}

func TestPages(t *testing.T) {
	srv := newServer(t)
	const n = 25
	for _, style := range []string{"relative", "absolute", "no link", "endless", "junk"} {
		srv.front(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if !strings.HasSuffix(r.URL.Path, "/tags/list") && !strings.HasSuffix(r.URL.Path, "/_catalog") {
				next.ServeHTTP(w, r)
				return
			}
			if style == "junk" {
				fmt.Fprint(w, "<html>")
				return
			}
			size := 10
			if style == "no link" {
				fmt.Sscan(r.URL.Query().Get("n"), &size)
			}
			from := 0
			if last := r.URL.Query().Get("last"); last != "" {
				fmt.Sscanf(last, "t%d", &from)
				from++
			}
			names := []string{"../etc", "a b"} // no names
			for i := from; i < min(n, from+size-2); i++ {
				names = append(names, fmt.Sprintf("t%03d", i))
			}
			if next := from + size - 3; style == "endless" {
				w.Header().Set("Link", fmt.Sprintf(`<%s?last=t0>; rel="next"`, r.URL.Path))
			} else if next < n-1 && style != "no link" {
				base := ""
				if style == "absolute" {
					base = "http://elsewhere.invalid"
				}
				w.Header().Set("Link", fmt.Sprintf(`<%s%s?last=t%03d&n=10>; rel="next"`, base, r.URL.Path, next))
			}
			_ = json.NewEncoder(w).Encode(map[string]any{"tags": names, "repositories": names})
		})
		o := newSetup(t, srv.host)
		s := o.mustOpen(t)
		for _, limit := range []int{5, 1000} {
			for what, ask := range map[string]func() ([]string, bool, error){
				"tags":    func() ([]string, bool, error) { return s.client.Tags(t.Context(), "x", limit) },
				"catalog": func() ([]string, bool, error) { return s.client.Catalog(t.Context(), limit) },
			} {
				got, more, err := ask()
				if style == "junk" {
					if !errors.Is(err, imgsrc.ErrDamaged) {
						t.Errorf("%s, %s: %v", what, style, err)
					}
					continue
				}
				want := min(limit, n)
				if err != nil || more != (limit < n) && style != "endless" || len(got) != want && (style != "endless" || len(got) < 5) || got[0] != "t000" {
					t.Errorf("%s, %s, limit %d: %d names, more %v, %v", what, style, limit, len(got), more, err)
				}
			}
		}
	}
}

// The link to the next page is found whatever stands beside it, and a page may have much beside the names.
func TestNextPage(t *testing.T) {
	for link, want := range map[string]string{
		`</v2/a/tags/list?last=x&n=2>; rel="next"`:                   "x",
		`<?last=x>;rel=next`:                                         "x",
		`<https://h/?last=x> ; title="b, c"; REL = "next"`:           "x",
		`</?last=y>; rel="prev", </?last=x>; rel='next'; type="a/b"`: "x",
		`</?last=x>; rel="next", </?last=y>; rel="last"`:             "x",
		`</?last=y>; rel="prev"`:                                     "",
		`</?last=y>; rel="next-archive"`:                             "",
		`</?last=y>; type="rel=next"`:                                "",
		`</v2/a/tags/list>; rel="next"`:                              "",
		`?last=y; rel="next"`:                                        "",
	} {
		if got := nextQuery(http.Header{"Link": {link}}).Get("last"); got != want {
			t.Errorf("%s: %q, want %q", link, got, want)
		}
	}
	srv := newServer(t)
	srv.front(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.HasSuffix(r.URL.Path, "/tags/list") {
			fmt.Fprintf(w, `{"manifest":{"":{"tag":[%q]}},"tags":["1"]}`, strings.Repeat("x", 10<<20))
			return
		}
		next.ServeHTTP(w, r)
	})
	if tags, _, err := newSetup(t, srv.host).mustOpen(t).client.Tags(t.Context(), "a", 10); len(tags) != 1 || err != nil {
		t.Errorf("%q, %v", tags, err)
	}
}

// A page without names, as users get who may see nothing of it, is not the end of a list; one that leads to itself is.
func TestEmptyPages(t *testing.T) {
	srv := newServer(t)
	asked := 0
	srv.front(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.URL.Path != "/v2/_catalog" {
			next.ServeHTTP(w, r)
			return
		}
		names, last := `[]`, "n"
		switch r.URL.Query().Get("last") {
		case "":
			last = "m"
		case "m":
			names = `["m1","m2"]`
		}
		asked++
		w.Header().Set("Link", fmt.Sprintf(`</v2/_catalog?last=%s>; rel="next"`, last))
		fmt.Fprintf(w, `{"repositories":%s}`, names)
	})
	got, more, err := newSetup(t, srv.host).mustOpen(t).client.Catalog(t.Context(), 10)
	if !slices.Equal(got, []string{"m1", "m2"}) || more || err != nil || asked != 3 {
		t.Errorf("%q, more: %v, %v, after %d requests", got, more, err, asked)
	}
}

// A registry with too many repositories and tags is cut, and the log says so. One that cannot be asked is a problem.
func TestBounds(t *testing.T) {
	srv := newServer(t)
	srv.image("good", "1", layer.None, tarOf(t))
	srv.front(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		switch {
		case r.URL.Path == "/v2/_catalog":
			repos := []string{"good", "secret"}
			for i := range 2000 {
				repos = append(repos, fmt.Sprintf("r%04d", i))
			}
			_ = json.NewEncoder(w).Encode(map[string]any{"repositories": repos})
		case strings.Contains(r.URL.Path, "/secret/"):
			w.WriteHeader(http.StatusForbidden)
		case strings.HasSuffix(r.URL.Path, "/tags/list"):
			tags := []string{}
			for i := range 200 {
				tags = append(tags, fmt.Sprint(i))
			}
			_ = json.NewEncoder(w).Encode(map[string]any{"tags": tags})
		case strings.Contains(r.URL.Path, "/manifests/"):
			r.URL.Path = "/v2/good/manifests/1"
			next.ServeHTTP(w, r)
		default:
			next.ServeHTTP(w, r)
		}
	})
	o := newSetup(t, srv.host)
	s := o.mustOpen(t)
	began := time.Now()
	l := list(t, s)
	t.Logf("it took %s", time.Since(began))
	if len(l.Images) != 1 || len(l.Images[0].RemoteNames) != maxImages || len(l.Problems) != 1 || !strings.Contains(l.Problems[0].Error(), "secret") {
		t.Errorf("%d images, %d names, %v", len(l.Images), len(l.Images[0].RemoteNames), l.Problems)
	}
	for _, want := range []string{"rest of its repositories", "rest of its tags"} {
		if !strings.Contains(o.logged.String(), want) {
			t.Errorf("the log does not say: %s", want)
		}
	}
}

// A tag that is listed and gone, and one whose manifest is gone: the rest of the listing stands.
func TestHolesInListing(t *testing.T) {
	srv := newServer(t)
	srv.image("web", "good", layer.None, tarOf(t))
	bad := srv.image("web", "bad", layer.None, tarOf(t, "f", "x"))
	srv.image("web", "gone", layer.None, tarOf(t, "f", "y"))
	srv.put("web", "odd", v1.MediaTypeImageManifest, []byte("not JSON"))
	srv.front(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.HasSuffix(r.URL.Path, "/manifests/gone") || r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, bad.Digest.String()) {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		next.ServeHTTP(w, r)
	})
	s := newSetup(t, srv.host+"/web").mustOpen(t)
	l := list(t, s)
	damaged := map[string]bool{}
	for _, i := range l.Images {
		damaged[strings.TrimPrefix(i.RemoteNames[0], srv.host+"/web:")] = i.Desc().Damaged != nil
	}
	if len(damaged) != 3 || damaged["good"] || !damaged["bad"] || !damaged["odd"] || len(l.Problems) != 1 {
		t.Errorf("damaged: %v, problems: %v", damaged, l.Problems)
	}
}

// A registry that does not tell its repositories still has them.
func TestNoCatalog(t *testing.T) {
	for _, status := range []int{http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusMethodNotAllowed} {
		srv := newServer(t)
		img := srv.image("web", "1", layer.None, tarOf(t))
		srv.front(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if r.URL.Path == "/v2/_catalog" {
				w.WriteHeader(status)
				return
			}
			next.ServeHTTP(w, r)
		})
		s := newSetup(t, srv.host).mustOpen(t)
		if l := list(t, s); len(l.Images) != 0 || len(l.Problems) != 1 {
			t.Errorf("%d: %d images, %v", status, len(l.Images), l.Problems)
		}
		if got, err := s.Resolve(t.Context(), srv.host+"/web:1"); err != nil || got.Desc().Digest != img.Digest {
			t.Errorf("%d: %v", status, err)
		}
		named(t, s, srv.host+"/web:1")
	}
}
