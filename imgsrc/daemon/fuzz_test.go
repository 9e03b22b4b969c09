package daemon

import (
	"bytes"
	"io"
	"testing"

	"github.com/opencontainers/go-digest"
)

// FuzzArchive reads anything as a saved image. What is taken for one has a config and layers that can be opened.
func FuzzArchive(f *testing.F) {
	p := partsOf(f, tarOf(f, tarFile{name: "a", body: []byte("a")}), tarOf(f, tarFile{name: "b"}))
	f.Add(p.legacy(f), p.id())
	id, modern := p.modern(f, false)
	f.Add(modern, id)
	id, stored := p.modern(f, true)
	f.Add(stored, id)
	f.Add([]byte(`{"errorDetail":{"message":"x"},"error":"x"}`), id)
	f.Fuzz(func(t *testing.T, b []byte, id string) {
		r := bytes.NewReader(b)
		_ = engineError(r, r.Size())
		a, err := readArchive(t.Context(), r, r.Size())
		if err != nil {
			return
		}
		doc, layers, err := a.image(t.Context(), id)
		if err != nil {
			return
		}
		if digest.FromBytes(doc.config) != doc.configDigest || len(doc.sizes) != len(doc.diffIDs) {
			t.Errorf("%+v", doc)
		}
		for _, id := range doc.diffIDs {
			r, err := layers[id].open()
			if err != nil {
				continue
			}
			if _, err := io.Copy(io.Discard, io.LimitReader(r, 1<<20)); err == nil && r.Close() != nil {
				t.Error("closing")
			}
		}
	})
}
