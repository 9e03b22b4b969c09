package registry

import (
	"fmt"
	"net/http"
	"testing"
	"time"
)

// A mirror that says nothing leaves the registry the time to answer, whatever somebody waits for.
func TestMirrorHangs(t *testing.T) {
	home, mirror := newServer(t), newServer(t)
	img := big(t, home)
	open := func() *Source {
		t.Helper()
		o := newSetup(t, "registry.test")
		o.Asked = true
		o.test.limits.stall = time.Minute
		o.registries = fmt.Sprintf("[[registry]]\nprefix = \"registry.test\"\nlocation = %q\n[[registry.mirror]]\nlocation = %q\n", home.host, mirror.host)
		return o.mustOpen(t)
	}
	hang := func(_ http.ResponseWriter, r *http.Request, _ http.Handler) { <-r.Context().Done() }
	mirror.front(hang)
	s := open()
	if _, err := s.Resolve(t.Context(), "registry.test/big:1"); err != nil {
		t.Errorf("a name: %v", err)
	}
	if asked := mirror.requests(""); len(asked) != 1 {
		t.Errorf("it was asked %q", asked)
	}
	for what, read := range map[string]func(m *image) error{
		"manifest": func(m *image) error { _, err := m.Manifest(t.Context()); return err },
		"config":   func(m *image) error { _, err := m.Config(t.Context()); return err },
	} {
		mirror.front(nil)
		s = open()
		if _, err := s.Resolve(t.Context(), "registry.test/big:1"); err != nil {
			t.Fatal(err)
		}
		m, _ := s.held(img.Digest)
		if err := s.docs.dir.Remove(documentPath(img.Digest)); err != nil {
			t.Fatal(err)
		}
		mirror.front(hang)
		if err := read(m); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}
