package imgsrc

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

// FuzzLoad makes every file of an image of any manifest and config.
func FuzzLoad(f *testing.F) {
	for _, dir := range cases(f) {
		manifest, config := readCase(f, dir)
		f.Add(manifest, config)
	}
	f.Fuzz(func(t *testing.T, manifest, config []byte) {
		facts := load(t, manifest, config)
		if again := load(t, manifest, config); !bytes.Equal(describe(facts), describe(again)) {
			t.Fatal("two loads of the same bytes say different things")
		}
		if !bytes.Equal(describe(facts), describe(facts)) {
			t.Fatal("reading has changed what there is to read")
		}
		if facts.ManifestErr != nil && len(facts.Layers) > 0 {
			t.Fatal("layers of a damaged manifest")
		}
		for _, l := range facts.Layers {
			if checkDigest(l.Digest) != nil || l.Size < -1 || l.DiffID != "" && checkDigest(l.DiffID) != nil {
				t.Fatalf("layer %+v", l)
			}
		}
		names := map[string]bool{"": true}
		for _, c := range facts.Children {
			if checkDigest(c.Digest) != nil || c.Size < -1 {
				t.Fatalf("child %+v", c)
			}
			if c.Name != "" && (names[c.Name] || c.Name == "." || c.Name == ".." || len(c.Name) > maxName || strings.ContainsAny(c.Name, "/\x00")) {
				t.Fatalf("%q is twice or no file name", c.Name)
			}
			names[c.Name] = c.Name != ""
		}
		Choose(facts.Children, HostPlatform())
		for _, ff := range allFuncs(facts) {
			out, err := ff.get(facts)
			switch {
			case err != nil && out != nil:
				t.Fatalf("%s: both a value and %v", ff.name, err)
			case err != nil && !errors.Is(err, ErrAbsent) && !errors.Is(err, ErrDamaged):
				t.Fatalf("%s: %v is neither absent nor damaged", ff.name, err)
			case err == nil && out == nil:
				t.Fatalf("%s: neither a value nor an error", ff.name)
			case err == nil && ff.json && !json.Valid(out):
				t.Fatalf("%s is no JSON: %q", ff.name, out)
			case err == nil && !ff.json && len(out) > 0 && out[len(out)-1] != '\n':
				t.Fatalf("%s does not end in a newline: %q", ff.name, out)
			}
		}
	})
}
