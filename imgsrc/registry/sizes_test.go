package registry

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/imgfs/imgfs/imgsrc"
)

// A manifest that says a wrong size of a layer takes nothing from another that says the right one: neither while its layer is
// open, nor out of the cache.
func TestTwoSizes(t *testing.T) {
	srv := newServer(t)
	tar := tarOf(t, "f", noise(1000))
	blob := srv.push("web", v1.MediaTypeImageLayer, tar)
	for tag, size := range map[string]int64{"right": blob.Size, "wrong": blob.Size - 10} {
		l := blob
		l.Size = size
		config := fmt.Sprintf(`{"author":%q,"rootfs":{"type":"layers","diff_ids":[%q]}}`, tag, digest.FromBytes(tar))
		m := v1.Manifest{MediaType: v1.MediaTypeImageManifest, Config: srv.push("web", v1.MediaTypeImageConfig, []byte(config)), Layers: []v1.Descriptor{l}}
		m.SchemaVersion = 2
		srv.put("web", tag, v1.MediaTypeImageManifest, m)
	}
	o := newSetup(t, srv.host+"/web")
	s := o.mustOpen(t)
	right, wrong := named(t, s, srv.host+"/web:right"), named(t, s, srv.host+"/web:wrong")
	srv.requests("")
	for range 2 { // before the right one is here, and then
		c, err := wrong.Blob(t.Context(), blob.Digest)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.ReadAt(t.Context(), make([]byte, 1), 0); !errors.Is(err, imgsrc.ErrDamaged) {
			t.Errorf("the wrong size: %v", err)
		}
		if b, err := readBlob(t, right, blob.Digest); err != nil || !bytes.Equal(b, tar) {
			t.Errorf("the right size: %d bytes, %v", len(b), err)
		}
	}
	if asked := srv.requests("GET /v2/web/blobs/" + blob.Digest.String()); len(asked) > 2 {
		t.Errorf("it was asked for %d times", len(asked))
	}
	if strings.Contains(o.logged.String(), "discarding") {
		t.Error(o.logged.String())
	}
}
