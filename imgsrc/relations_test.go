package imgsrc

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

// fixedSource lists the same images always.
type fixedSource struct {
	Source
	images []Listed
}

func (s fixedSource) Name() string                           { return "fixed:" }
func (s fixedSource) Stamp() Stamp                           { return "" }
func (s fixedSource) List(context.Context) (*Listing, error) { return &Listing{Images: s.images}, nil }

func digestOf(name string) digest.Digest { return digest.FromString(name) }

// related makes a snapshot of images by name; with lists and subjects of each by name too.
func relatedSnapshot(t *testing.T, images map[string]Desc, names map[string][]string) *Snapshot {
	t.Helper()
	var list []Listed
	for name, d := range images {
		d.ID, d.Digest = digestOf("id of "+name).Encoded(), digestOf(name)
		list = append(list, Listed{Image: &fakeImage{desc: d}, Names: names[name]})
	}
	c := NewCatalog(slog.New(slog.DiscardHandler), fixedSource{images: list})
	s, err := c.Refresh(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestReferrers(t *testing.T) {
	subject := func(name string) Desc { return Desc{Subject: digestOf(name)} }
	index := func(names ...string) Desc {
		var d Desc
		for _, name := range names {
			d.Lists = append(d.Lists, digestOf(name))
		}
		return d
	}
	circular := index("listed")
	circular.Subject = digestOf("listed")
	s := relatedSnapshot(t, map[string]Desc{
		"app": {}, "sbom": subject("app"), "signature of the sbom": subject("sbom"), "nothing's": subject("nowhere"),
		"index": index("app"), "cosign": {}, "attestation": {},
		// Neither of these may lead to the other.
		"a": {}, "b": {},
		"listed": {}, "index of its subject": circular, "alone": subject("alone"),
	}, map[string][]string{
		"cosign":      {"localhost/app:sha256-" + digestOf("app").Encoded() + ".sig", "localhost/app:other"},
		"attestation": {"sha256-" + digestOf("app").Encoded() + ".att"},
		"a":           {"localhost/a:sha256-" + digestOf("b").Encoded() + ".sig"},
		"b":           {"localhost/b:sha256-" + digestOf("a").Encoded() + ".sig"},
		"alone":       {"localhost/b:sha256-" + digestOf("alone").Encoded() + ".sig", "localhost/c:xsha256-" + digestOf("app").Encoded() + ".sig"},
	})
	want := map[string][]string{"app": {"sbom", "cosign", "attestation"}, "sbom": {"signature of the sbom"}}
	for _, name := range []string{"app", "sbom", "signature of the sbom", "index", "cosign", "a", "b", "listed", "index of its subject", "alone"} {
		var got, wanted []string
		for _, e := range s.Referrers(s.ByDigest(digestOf(name))) {
			got = append(got, e.ID)
		}
		for _, w := range want[name] {
			wanted = append(wanted, digestOf("id of "+w).Encoded())
		}
		slices.Sort(wanted)
		slices.Sort(got)
		if !slices.Equal(got, wanted) {
			t.Errorf("referrers of %s: %q, want %q", name, got, want[name])
		}
	}
}

// lineageFacts makes an image of these diff ids and steps ("-" begins one that made no layer).
func lineageFacts(t *testing.T, layers int, steps ...string) Lineage {
	t.Helper()
	var blobs, ids, history []string
	for i := range layers {
		d := digest.FromString(fmt.Sprint("layer ", i))
		blobs = append(blobs, fmt.Sprintf(`{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":%q,"size":1}`, d))
		ids = append(ids, fmt.Sprintf("%q", d))
	}
	for _, step := range steps {
		history = append(history, fmt.Sprintf(`{"created":"2024-01-01T00:00:00Z","created_by":%q,"empty_layer":%v}`, step, strings.HasPrefix(step, "-")))
	}
	manifest := `{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:` + strings.Repeat("1", 64) +
		`","size":1},"layers":[` + strings.Join(blobs, ",") + `]}`
	config := `{"rootfs":{"type":"layers","diff_ids":[` + strings.Join(ids, ",") + `]},"history":[` + strings.Join(history, ",") + `]}`
	return load(t, []byte(manifest), []byte(config)).Lineage()
}

func TestLineage(t *testing.T) {
	base := lineageFacts(t, 1, "a")
	env := lineageFacts(t, 1, "a", "-b")
	top := lineageFacts(t, 2, "a", "-b", "c")
	for _, tt := range []struct {
		name          string
		parent, child Lineage
		want          bool
	}{
		{"an empty step", base, env, true},
		{"a layer", env, top, true},
		{"two steps", base, top, false},
		{"the other way", env, base, false},
		{"itself", base, base, false},
		{"another history", lineageFacts(t, 1, "x"), env, false},
		{"two layers in a step", base, lineageFacts(t, 3, "a", "b"), false},
		{"other layers", lineageFacts(t, 2, "a"), lineageFacts(t, 1, "a", "b"), false},
		{"nothing and a first layer", lineageFacts(t, 0), base, true},
		{"nothing twice", lineageFacts(t, 0), lineageFacts(t, 0), false},
		{"empty images", lineageFacts(t, 0, "-a"), lineageFacts(t, 0, "-a", "-b"), true},
		{"an image without a config", Lineage{}, base, false},
		{"a child without a config", base, Lineage{}, false},
	} {
		if got := tt.parent.IsParentOf(tt.child); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}
