package imgsrc

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

func TestParsePlatform(t *testing.T) {
	for text, want := range map[string]string{
		"linux/amd64": "linux amd64 ", "linux/arm/v7": "linux arm v7", "windows/amd64": "windows amd64 ",
		"linux": "", "linux/": "", "/amd64": "", "linux/arm/v7/x": "", "linux/arm/": "", "a b/c": "", "": "",
	} {
		p, err := ParsePlatform(text)
		if want == "" {
			if !errors.Is(err, ErrInvalid) {
				t.Errorf("%q: %+v, %v", text, p, err)
			}
			continue
		}
		if got := p.OS + " " + p.Architecture + " " + p.Variant; err != nil || got != want {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
}

// indexOf is an index with these platforms ("linux/arm/v7"; "-": none), each entry with a digest of its own.
func indexOf(t *testing.T, platforms ...string) *Facts {
	t.Helper()
	var entries []string
	for i, text := range platforms {
		platform := ""
		if text != "-" {
			p, err := ParsePlatform(text)
			if err != nil {
				t.Fatal(err)
			}
			platform = fmt.Sprintf(`,"platform":{"os":%q,"architecture":%q,"variant":%q}`, p.OS, p.Architecture, p.Variant)
		}
		entries = append(entries, fmt.Sprintf(`{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:%064x","size":1%s}`, i, platform))
	}
	return load(t, []byte(`{"schemaVersion":2,"manifests":[`+strings.Join(entries, ",")+`]}`), nil)
}

func TestChoose(t *testing.T) {
	all := []string{"linux/arm/v5", "linux/arm/v7", "linux/arm", "linux/arm64/v8", "linux/amd64", "linux/amd64", "linux/amd64/v3", "unknown/unknown", "unknown/unknown"}
	for _, tt := range []struct {
		platform, want string
		index          []string
	}{
		{"linux/amd64", "linux-amd64", all},
		{"linux/amd64/v3", "linux-amd64-v3", all},
		{"linux/amd64/v2", "linux-amd64", all},
		{"linux/arm64", "linux-arm64-v8", all},
		{"linux/arm64/v8", "linux-arm64-v8", all},
		{"linux/arm/v8", "linux-arm-v7", all},
		{"linux/arm/v6", "linux-arm-v5", all},
		{"linux/arm", "linux-arm", all},
		{"linux/s390x", "", all},
		{"linux/s390x", "sha256-" + strings.Repeat("0", 63) + "1", []string{"linux/amd64", "-", "-"}},
		{"linux/amd64", "", nil},
	} {
		p, err := ParsePlatform(tt.platform)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		if c := Choose(indexOf(t, tt.index...).Children, p); c != nil {
			got = c.Name
		}
		if got != tt.want {
			t.Errorf("%s in %q: %q, want %q", tt.platform, tt.index, got, tt.want)
		}
	}
}

func TestChildNames(t *testing.T) {
	f := indexOf(t, "linux/amd64", "linux/amd64", "unknown/unknown", "unknown/unknown", "-", "linux/arm64/v8")
	want := []string{
		"linux-amd64", "linux-amd64@000000000000", "unknown-unknown", "unknown-unknown@000000000000",
		"sha256-" + strings.Repeat("0", 63) + "4", "linux-arm64-v8",
	}
	for i, c := range f.Children {
		if c.Name != want[i] {
			t.Errorf("entry %d is %q, want %q", i, c.Name, want[i])
		}
	}
}

func TestPlatformRuns(t *testing.T) {
	for _, test := range []struct {
		on, image string
		want      bool
	}{
		{"linux/amd64", "linux/amd64", true},
		{"linux/amd64", "linux/amd64/v2", true},
		{"linux/amd64", "linux/arm64", false},
		{"linux/amd64", "windows/amd64", false},
		{"linux/arm64", "linux/arm64/v8", true},
		{"linux/arm64/v8", "linux/arm64", true},
		{"linux/arm/v7", "linux/arm/v6", true},
		{"linux/arm/v6", "linux/arm/v7", false},
		{"linux/arm64", "/", true}, // it does not say
		{"linux/arm64", "linux/", true},
		{"linux/arm64", "/amd64", false},
	} {
		parse := func(text string) (p Platform) {
			parts := append(strings.Split(text, "/"), "")
			return Platform{OS: parts[0], Architecture: parts[1], Variant: parts[2]}
		}
		if got := parse(test.on).Runs(parse(test.image)); got != test.want {
			t.Errorf("%s on %s: %v", test.image, test.on, got)
		}
		if text := parse(test.on).String(); text != test.on {
			t.Errorf("%s is %s", test.on, text)
		}
	}
}
