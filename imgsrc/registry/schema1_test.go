package registry

import (
	"net/http"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"testing"

	"github.com/imgfs/imgfs/test/needs"
	"github.com/imgfs/imgfs/test/servers"
)

// startSigned runs a registry that has old:1, a signed manifest of schema 1.
func startSigned(t *testing.T) *server {
	t.Helper()
	needs.Programs(t, "umoci", "skopeo")
	srv := startDistribution(t, "")
	made := filepath.Join(t.TempDir(), "made")
	needs.Run(t, "umoci", "init", "--layout", made)
	needs.Run(t, "umoci", "new", "--image", made+":base")
	needs.Run(t, "umoci", "insert", "--image", made+":base", "/etc/passwd", "/f")
	needs.Run(t, "skopeo", "copy", "-q", "--dest-tls-verify=false", "--format", "v2s1", "oci:"+made+":base", "docker://"+srv.host+"/old:1")
	return srv
}

// A manifest of schema 1 is stored with its signatures, which are not part of what its digest is of.
func TestTagSchema1(t *testing.T) {
	srv := startSigned(t)
	s := newSetup(t, srv.host+"/old:1").mustOpen(t)
	m := named(t, s, srv.host+"/old:1")
	for _, name := range []string{"old:2", "older:1"} {
		if err := s.Tag(t.Context(), m.desc, []string{srv.host + "/" + name}, nil); err != nil {
			t.Fatal(err)
		}
		if d := needs.Line(t, "skopeo", "inspect", "--tls-verify=false", "--format", "{{.Digest}}", "docker://"+srv.host+"/"+name); d != m.desc.Digest.String() {
			t.Errorf("%s is %s, want %s", name, d, m.desc.Digest)
		}
	}
}

// Where the registry does not say the digest of one it is the one that skopeo tells.
func TestDigestOfSchema1(t *testing.T) {
	srv := startSigned(t)
	silent := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: srv.host})
	silent.ModifyResponse = func(r *http.Response) error {
		r.Header.Del("Docker-Content-Digest")
		return nil
	}
	host := servers.Serve(t, silent)
	raw := filepath.Join(t.TempDir(), "manifest")
	write(t, raw, needs.Run(t, "skopeo", "inspect", "--raw", "--tls-verify=false", "docker://"+srv.host+"/old:1"))
	want := needs.Line(t, "skopeo", "manifest-digest", raw)
	m := named(t, newSetup(t, host+"/old:1").mustOpen(t), host+"/old:1")
	if m.desc.Digest.String() != want || m.desc.ID != m.desc.Digest.Encoded() {
		t.Errorf("digest %s, id %s, want %s", m.desc.Digest, m.desc.ID, want)
	}
	if b, err := m.Manifest(t.Context()); err != nil || m.desc.Digest.Algorithm().FromBytes(b) != m.desc.Digest {
		t.Errorf("the manifest is of %d bytes, %v", len(b), err)
	}
	if _, err := readDiff(t, m, 0); err != nil {
		t.Error(err)
	}
}
