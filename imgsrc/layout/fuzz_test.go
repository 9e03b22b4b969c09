package layout

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/blobs"
	"github.com/imgfs/imgfs/imgsrc/indexjson"
)

// seeds are index.json files that name the manifests of l.
func seeds(f *testing.F, l *testLayout) {
	a, b := l.image("a"), l.image("b", "c")
	ix := l.nested(a, b)
	for _, s := range []string{"", "{}", "[]", "null", `{"manifests":7}`, `{"manifests":[null,{},[],{"digest":""}]}`, `{"Manifests":[],"manifests":[{"Digest":"x"}]}`} {
		f.Add([]byte(s))
	}
	l.name(a, "a")
	l.name(b, "b/c:d")
	l.name(a, "e")
	l.name(ix, "ix")
	l.add(b, indexjson.NameContainerd, "docker.io/library/b:1", v1.AnnotationRefName, "1")
	l.made(a, l.asDocker(a), "f")
	l.made(b, a, "")
	s := text(f, map[string]any{"schemaVersion": 2, "manifests": l.entries, "x": 1.5})
	f.Add([]byte(s))
	f.Add([]byte(strings.ReplaceAll(s, `"annotations":{`, `"annotations":{"a":"<\ud800>","a":1,`)))
	f.Add([]byte(strings.ReplaceAll(s, ",", "\n ,\t")))
	f.Add([]byte(strings.ReplaceAll(s, `"size":`, `"size":1,"size":`)))
}

// FuzzList lists whatever an index.json says, over a layout with real blobs.
func FuzzList(f *testing.F) {
	l := newLayout(f)
	seeds(f, l)
	f.Fuzz(func(t *testing.T, b []byte) {
		l := &testLayout{TB: t, dir: l.dir}
		l.file("index.json", string(b))
		ix, err := parseIndex(b)
		root, rootErr := os.OpenRoot(l.dir)
		if rootErr != nil {
			t.Fatal(rootErr)
		}
		s := &images{log: discard, store: openStore(blobs.NewOSDir(root), "oci:"+l.dir, Options{})}
		defer s.Close()
		if err != nil {
			return // List would wait for the rest
		}
		got, err := s.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		seen := map[digest.Digest]bool{}
		for _, img := range got.Images {
			d := img.Desc()
			if seen[d.Digest] || len(d.ID) != 64 {
				t.Errorf("%+v", d)
			}
			seen[d.Digest] = true
			if m, err := img.Manifest(t.Context()); err == nil && digest.FromBytes(m) != d.Digest && d.Digest.Algorithm() == digest.SHA256 {
				t.Errorf("manifest %s has other bytes", d.Digest)
			}
		}
		for _, e := range ix.entries { // what an entry leads to is listed as that, or as what it was made from
			if e.err == nil && e.original != "" && seen[e.original] {
				seen[e.digest] = true
			}
		}
		for _, e := range ix.entries {
			if e.err == nil && !seen[e.digest] {
				t.Errorf("%s is not listed", e.digest)
			}
		}
	})
}

// FuzzTag changes names in whatever an index.json says: the names are then as asked for, and nothing else is lost.
func FuzzTag(f *testing.F) {
	l := newLayout(f)
	seeds(f, l)
	f.Fuzz(func(t *testing.T, b []byte) {
		ix, err := parseIndex(b)
		if err != nil {
			return
		}
		target := descriptor{mediaType: v1.MediaTypeImageManifest, digest: digest.FromString("target"), size: 1}
		var remove []string
		for _, e := range ix.entries {
			if e.err == nil {
				target = e.descriptor
				if e.name != "" {
					remove = []string{e.name}
				}
				break
			}
		}
		const name = "a/new:name"
		out, err := ix.retag(target, []string{name}, remove)
		if err != nil {
			t.Fatal(err)
		}
		if out == nil {
			out = b
		}
		got, err := parseIndex(out)
		if err != nil {
			t.Fatalf("%v: %q", err, out)
		}
		if _, err := ix.retag(target, nil, []string{"no such name"}); !errors.Is(err, imgsrc.ErrNotFound) {
			t.Errorf("an absent name: %v", err)
		}
		// Who has which name.
		type tag struct {
			digest digest.Digest
			name   string
		}
		var want, have []tag
		manifests := map[digest.Digest]bool{target.digest: true}
		for _, e := range ix.entries {
			if e.err != nil {
				continue
			}
			manifests[e.digest] = true
			if e.name != "" && e.name != name && !(e.digest == target.digest && slices.Contains(remove, e.name)) {
				want = append(want, tag{e.digest, e.name})
			}
		}
		left := map[digest.Digest]bool{}
		for _, e := range got.entries {
			if e.err != nil {
				continue
			}
			left[e.digest] = true
			if e.name != "" && e.name != name {
				have = append(have, tag{e.digest, e.name})
			}
			if e.name == name && e.digest != target.digest || e.digest != target.digest && e.isNamed(name) {
				t.Errorf("%s still has the name", e.digest)
			}
		}
		if !slices.ContainsFunc(got.entries, func(e entry) bool {
			return e.err == nil && e.digest == target.digest && e.name == name && e.isNamed(name)
		}) && !slices.Contains(remove, name) {
			t.Errorf("%s did not get the name: %s", target.digest, out)
		}
		if !slices.Equal(want, have) {
			t.Errorf("the other names are %v, want %v", have, want)
		}
		if len(left) != len(manifests) {
			t.Errorf("%d manifests, want %d", len(left), len(manifests))
		}
		// What is not understood is as it was.
		for _, m := range ix.object {
			if m.name == "manifests" {
				continue
			}
			var x, y json.RawMessage = compact(t, ix.object.get(m.name)), compact(t, got.object.get(m.name))
			if string(x) != string(y) {
				t.Errorf("%q was %s and is %s", m.name, x, y)
			}
		}
	})
}

func compact(t *testing.T, raw json.RawMessage) []byte {
	t.Helper()
	if raw == nil {
		return nil
	}
	var b bytes.Buffer
	if err := json.Compact(&b, raw); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
