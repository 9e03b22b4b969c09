package registry

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/layer"
)

func newFollowed(t *testing.T) *Followed {
	t.Helper()
	o := newSetup(t, "")
	o.configure(t)
	f := NewFollowed(o.Options)
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Errorf("closing: %v", err)
		}
	})
	return f
}

func TestFollow(t *testing.T) {
	one, two := newServer(t), newServer(t)
	a := one.image("lib/a", "1", layer.Gzip, tarOf(one, "f", "a"))
	b := two.image("b", "latest", layer.Gzip, tarOf(two, "f", "b"))
	one.requests("")
	two.requests("")
	f := newFollowed(t)

	// Nobody is asked before somebody asks.
	l, err := f.List(t.Context())
	if err != nil || len(l.Images) != 0 || len(one.requests("")) > 0 {
		t.Fatalf("%+v, %v", l, err)
	}
	watched := make(chan struct{}, 100)
	go func() {
		_ = f.Watch(t.Context(), func() { watched <- struct{}{} })
	}()
	stamp := f.Stamp()
	for ref, want := range map[string]string{one.host + "/lib/a:1": a.Digest.String(), two.host + "/b:latest": b.Digest.String()} {
		id, err := f.Follow(t.Context(), ref)
		if err != nil {
			t.Fatal(err)
		}
		l, err := f.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for _, img := range l.Images {
			found = found || img.Desc().ID == id && img.Desc().Digest.String() == want && len(img.RemoteNames) == 1 && img.RemoteNames[0] == ref
		}
		if !found {
			t.Errorf("%s is not in the listing: %+v", ref, l.Images)
		}
	}
	if f.Stamp() == stamp {
		t.Error("the stamp has not moved")
	}
	if blobs := len(one.requests("GET /v2/lib/a/blobs")); blobs > 0 {
		t.Errorf("%d blobs were fetched", blobs)
	}

	// What is not there is asked for once in a while, and not each time.
	for range 3 {
		if _, err := f.Follow(t.Context(), one.host+"/lib/a:2"); !errors.Is(err, imgsrc.ErrNotFound) {
			t.Errorf("a tag that is not there: %v", err)
		}
	}
	if n := len(one.requests("HEAD /v2/lib/a/manifests/2")); n != 1 {
		t.Errorf("asked %d times for what is not there", n)
	}
	one.image("lib/a", "2", layer.Gzip, tarOf(one, "f", "a2"))
	f.Pushed(one.host + "/lib/a:2")
	if _, err := f.Follow(t.Context(), one.host+"/lib/a:2"); err != nil {
		t.Errorf("what was pushed since: %v", err)
	}
	if _, err := f.Follow(t.Context(), one.host+"/UPPER:1"); !errors.Is(err, imgsrc.ErrInvalid) {
		t.Errorf("no reference: %v", err)
	}
	select {
	case <-watched:
	case <-time.After(10 * time.Second):
		t.Error("the watch was not told")
	}
}

// A registry that fails costs its own images, and only as long as it does.
func TestFollowFailing(t *testing.T) {
	one, two := newServer(t), newServer(t)
	one.image("a", "1", layer.Gzip, tarOf(one, "f", "a"))
	two.image("b", "1", layer.Gzip, tarOf(two, "f", "b"))
	f := newFollowed(t)
	refuse(one, "/", http.StatusForbidden)
	if _, err := f.Follow(t.Context(), one.host+"/a:1"); !errors.Is(err, imgsrc.ErrDenied) {
		t.Errorf("a registry that refuses: %v", err)
	}
	if _, err := f.Follow(t.Context(), two.host+"/b:1"); err != nil {
		t.Errorf("the other: %v", err)
	}
	one.front(nil)
	if _, err := f.Follow(t.Context(), one.host+"/a:1"); err != nil {
		t.Errorf("it refuses no more: %v", err)
	}
	if l, err := f.List(t.Context()); err != nil || len(l.Images) != 2 {
		t.Errorf("%+v, %v", l, err)
	}
}

// Of an index that two registries have one lacks an image: it is taken from the other. It is not there when both lack it.
func TestFollowElsewhere(t *testing.T) {
	one, two := newServer(t), newServer(t)
	_, children := index(one, "multi", "1")
	index(two, "multi", "1")
	lack := func(srv *server, d digest.Digest) {
		srv.front(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if strings.HasSuffix(r.URL.Path, d.String()) {
				w.WriteHeader(http.StatusNotFound)
				return
			}
			next.ServeHTTP(w, r)
		})
	}
	arm, attestation := children[0].Digest, children[2].Digest
	follow := func() *Followed {
		t.Helper()
		f := newFollowed(t)
		for _, srv := range []*server{one, two} {
			if _, err := f.Follow(t.Context(), srv.host+"/multi:1"); err != nil {
				t.Fatal(err)
			}
		}
		return f
	}
	f := follow()
	listed := func() *imgsrc.Listing {
		t.Helper()
		l, err := f.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	desc := listed().Images[0].Desc()
	lack(one, arm)
	if _, err := f.sources()[0].Instance(t.Context(), desc, arm); !errors.Is(err, imgsrc.ErrNotFound) {
		t.Fatalf("the first has it: %v", err)
	}
	if img, err := f.Instance(t.Context(), desc, arm); err != nil || img.Desc().Digest != arm {
		t.Errorf("an instance: %v", err)
	}

	lack(one, attestation)
	if err := f.sources()[0].Ask(t.Context(), desc, attestation); !errors.Is(err, imgsrc.ErrNotFound) {
		t.Fatalf("the first has it: %v", err)
	}
	if f.Lacks(desc, attestation) {
		t.Error("what only one lacks is said to be lacking")
	}
	if err := f.Ask(t.Context(), desc, attestation); err != nil {
		t.Error(err)
	}
	if !slices.Contains(digestsOf(listed()), attestation) {
		t.Error("what was asked for is not listed")
	}

	f = follow()
	lack(one, arm)
	lack(two, arm)
	if err := f.Ask(t.Context(), desc, arm); !errors.Is(err, imgsrc.ErrNotFound) || !f.Lacks(desc, arm) {
		t.Errorf("what both lack: %v, known: %v", err, f.Lacks(desc, arm))
	}
}
