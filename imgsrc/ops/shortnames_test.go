package ops

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"go.podman.io/image/v5/pkg/sysregistriesv2"
)

func TestShortNames(t *testing.T) {
	dir := t.TempDir()
	conf := filepath.Join(dir, "registries.conf")
	text := "unqualified-search-registries = [\"registry.example\", \"other.example:5000\"]\n[aliases]\n\"tool\" = \"alias.example/x/tool\"\n"
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CONTAINERS_REGISTRIES_CONF", conf)
	t.Setenv("HOME", dir)
	sysregistriesv2.InvalidateCache()
	o := New(Options{})
	for name, want := range map[string][]string{
		"web":                 {"localhost/web:latest", "registry.example/web:latest", "other.example:5000/web:latest", "docker.io/library/web:latest"},
		"team/web:1":          {"localhost/team/web:1", "registry.example/team/web:1", "other.example:5000/team/web:1", "docker.io/team/web:1"},
		"tool:2":              {"alias.example/x/tool:2", "localhost/tool:2", "registry.example/tool:2", "other.example:5000/tool:2", "docker.io/library/tool:2"},
		"quay.io/a/b":         {"quay.io/a/b:latest"},
		"docker.io/library/a": {"docker.io/library/a:latest"},
		"UPPER":               nil,
		"":                    nil,
		"a b":                 nil,
	} {
		if got := o.ShortNames(name); !slices.Equal(got, want) {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
	}

	t.Run("a broken configuration", func(t *testing.T) {
		broken := filepath.Join(t.TempDir(), "registries.conf")
		if err := os.WriteFile(broken, []byte("unqualified"), 0o644); err != nil {
			t.Fatal(err)
		}
		t.Setenv("CONTAINERS_REGISTRIES_CONF", broken)
		sysregistriesv2.InvalidateCache()
		t.Cleanup(sysregistriesv2.InvalidateCache)
		if got, want := o.ShortNames("web"), []string{"localhost/web:latest", "docker.io/library/web:latest"}; !slices.Equal(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	})
}
