package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/layer"
)

func digestsOf(l *imgsrc.Listing) (list []digest.Digest) {
	for _, i := range l.Images {
		list = append(list, i.Desc().Digest)
	}
	return list
}

// A listing costs no request for what nobody asks for, and what was asked for stays listed.
func TestAsk(t *testing.T) {
	srv := newServer(t)
	ix, children := index(srv, "multi", "1")
	for n := range 20 {
		index(srv, "multi", fmt.Sprint("more", n))
	}
	srv.requests("")
	s := newSetup(t, srv.host+"/multi").mustOpen(t)
	l := list(t, s)
	if n := len(srv.requests("GET /v2/multi/manifests/")); n != 2 { // the tags are of one index, and it lists one for the platform
		t.Errorf("%d manifests were read", n)
	}
	desc := l.Images[0].Desc()
	stamp := s.Stamp()
	if err := s.Ask(t.Context(), desc, children[0].Digest); err != nil {
		t.Fatal(err)
	}
	want := []digest.Digest{ix.Digest, children[1].Digest, children[0].Digest}
	if got := digestsOf(list(t, s)); !slices.Equal(got, want) {
		t.Errorf("listed: %v, want %v", got, want)
	}
	if s.Stamp() == stamp {
		t.Error("the stamp has not moved")
	}
	// Also by the next listing, which asks for none of it again, and by one that was under way.
	srv.requests("")
	if _, err := s.look(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := digestsOf(list(t, s)); !slices.Equal(got, want) || len(srv.requests("GET /v2/multi/manifests/")) > 0 {
		t.Errorf("listed again: %v, want %v", got, want)
	}
	late := srv.image("multi", "", layer.Gzip, tarOf(srv, "late", ""))
	late.Platform = &v1.Platform{OS: "linux", Architecture: "amd64"}
	srv.put("multi", "late", v1.MediaTypeImageIndex, v1.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex, Manifests: []v1.Descriptor{late.Descriptor},
	})
	asked := make(chan error, 1)
	srv.front(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.HasSuffix(r.URL.Path, late.Digest.String()) { // then what the first index is to bring is known
			asked <- s.Ask(r.Context(), desc, children[2].Digest)
		}
		next.ServeHTTP(w, r)
	})
	if _, err := s.look(t.Context()); err != nil || <-asked != nil {
		t.Fatal(err)
	}
	srv.front(nil)
	if got := digestsOf(list(t, s)); !slices.Contains(got, children[2].Digest) || !slices.Contains(got, late.Digest) {
		t.Errorf("listed after one that was under way: %v", got)
	}
	if err := s.Ask(t.Context(), desc, digest.FromString("not in it")); !errors.Is(err, imgsrc.ErrNotFound) {
		t.Errorf("what the index does not list: %v", err)
	}
}

// What is not there, or cannot be asked for.
func TestAskAbsent(t *testing.T) {
	srv := newServer(t)
	_, children := index(srv, "multi", "1")
	o := newSetup(t, srv.host)
	s := o.mustOpen(t)
	desc := list(t, s).Images[0].Desc()
	gone, other := children[0].Digest, children[2].Digest
	if s.Lacks(desc, gone) {
		t.Error("nobody has asked yet")
	}
	status := http.StatusNotFound
	srv.front(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.HasSuffix(r.URL.Path, gone.String()) {
			w.WriteHeader(status)
			return
		}
		next.ServeHTTP(w, r)
	})
	for range 3 {
		if err := s.Ask(t.Context(), desc, gone); !errors.Is(err, imgsrc.ErrNotFound) {
			t.Errorf("what is not there: %v", err)
		}
	}
	if n := len(srv.requests("GET /v2/multi/manifests/" + gone.String())); n != 1 || !s.Lacks(desc, gone) {
		t.Errorf("asked %d times for what is not there; known: %v", n, s.Lacks(desc, gone))
	}
	if err := s.AskAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := digestsOf(list(t, s)); slices.Contains(got, gone) || !slices.Contains(got, other) || len(got) != 3 {
		t.Errorf("of all there is %v", got)
	}
	srv.requests("")
	if err := s.AskAll(t.Context()); err != nil || len(srv.requests("")) > 0 {
		t.Errorf("once more: %v", err)
	}

	// Where the registry refuses, or nobody is to be asked, it is not told that they are not there.
	status = http.StatusForbidden
	again := newSetup(t, srv.host).mustOpen(t)
	list(t, again)
	if err := again.AskAll(t.Context()); !errors.Is(err, imgsrc.ErrDenied) {
		t.Errorf("a registry that refuses: %v", err)
	}
	if got := digestsOf(list(t, again)); len(got) != 2 {
		t.Errorf("after that there is %v", got)
	}
	srv.front(nil)
	o = newSetup(t, srv.host)
	list(t, o.mustOpen(t))
	o.Offline = true
	off := o.mustOpen(t)
	list(t, off)
	if err := off.Ask(t.Context(), desc, other); !errors.Is(err, syscall.EHOSTUNREACH) || errors.Is(err, imgsrc.ErrNotFound) {
		t.Errorf("offline: %v", err)
	}
	if err := off.AskAll(t.Context()); !errors.Is(err, syscall.EHOSTUNREACH) {
		t.Errorf("all, offline: %v", err)
	}
}

// What one repository lacks another may have.
func TestAskElsewhere(t *testing.T) {
	srv := newServer(t)
	_, children := index(srv, "a", "1")
	index(srv, "b", "1")
	lost := "/manifests/" + children[0].Digest.String()
	srv.front(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.URL.Path == "/v2/a"+lost {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		next.ServeHTTP(w, r)
	})
	for name, ask := range map[string]func(*Source, imgsrc.Desc) error{
		"one": func(s *Source, desc imgsrc.Desc) error { return s.Ask(t.Context(), desc, children[0].Digest) },
		"all": func(s *Source, _ imgsrc.Desc) error { return s.AskAll(t.Context()) },
	} {
		s := newSetup(t, srv.host).mustOpen(t)
		desc := list(t, s).Images[0].Desc()
		if err := ask(s, desc); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		l := list(t, s)
		i := slices.IndexFunc(l.Images, func(l imgsrc.Listed) bool { return l.Desc().Digest == children[0].Digest })
		if i < 0 || l.Images[i].Image.(*image).repo != "b" {
			t.Errorf("%s: listed: %v", name, digestsOf(l))
		}
	}
}

// An index that comes after all were asked for is listed with what it lists.
func TestAskAllLater(t *testing.T) {
	srv := newServer(t)
	srv.image("multi", "0", layer.Gzip, tarOf(srv, "f", "0"))
	s := newSetup(t, srv.host).mustOpen(t)
	list(t, s)
	if err := s.AskAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, children := index(srv, "multi", "1")
	if _, err := s.look(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i, c := range children {
		if !slices.Contains(digestsOf(list(t, s)), c.Digest) {
			t.Errorf("image %d of the index is not listed", i)
		}
	}
}

// A registry that says nothing is waited for ten seconds, or as long as the reader wants.
func TestAskHung(t *testing.T) {
	srv := newServer(t)
	_, children := index(srv, "multi", "1")
	f := newFollowed(t)
	if _, err := f.Follow(t.Context(), srv.host+"/multi:1"); err != nil {
		t.Fatal(err)
	}
	l, err := f.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	srv.front(func(_ http.ResponseWriter, r *http.Request, _ http.Handler) {
		cancel()
		<-r.Context().Done()
	})
	if err := f.Ask(ctx, l.Images[0].Desc(), children[0].Digest); !errors.Is(err, context.Canceled) {
		t.Errorf("a reader who leaves: %v", err)
	}
	if err := f.Ask(t.Context(), l.Images[0].Desc(), children[0].Digest); err == nil || !isTimeout(err) {
		t.Errorf("a registry that says nothing: %v", err)
	}
	srv.front(nil)
}

func isTimeout(err error) bool {
	var e interface{ Timeout() bool }
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, syscall.ETIMEDOUT) || errors.As(err, &e) && e.Timeout()
}

// Of an index that cannot be read it is known that it is one: the registry has said so, also to a mount that is offline later.
func TestIndexThatCannotBeRead(t *testing.T) {
	srv := newServer(t)
	index(srv, "multi", "1")
	srv.front(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/manifests/sha256:") {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
	o := newSetup(t, srv.host+"/multi")
	for _, offline := range []bool{false, true} {
		o.Offline = offline
		desc := list(t, o.mustOpen(t)).Images[0].Desc()
		if desc.Damaged == nil || desc.MediaType != v1.MediaTypeImageIndex {
			t.Errorf("offline: %t: it is of type %q, %v", offline, desc.MediaType, desc.Damaged)
		}
	}
}
