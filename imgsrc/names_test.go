package imgsrc

import (
	"slices"
	"strings"
	"testing"

	"go.podman.io/image/v5/docker/reference"
	"pgregory.net/rapid"
)

func TestEscapeKey(t *testing.T) {
	for _, tt := range []struct {
		key, name string
		ok        bool
	}{
		{"maintainer", "maintainer", true},
		{"org.opencontainers.image.title", "org.opencontainers.image.title", true},
		{"a/b", "a%2Fb", true},
		{"100%", "100%25", true},
		{"%2F", "%252F", true},
		{".", "%2E", true},
		{"..", "%2E%2E", true},
		{"...", "...", true},
		{".hidden", ".hidden", true},
		{" ", " ", true},
		{"a\nb", "a%0Ab", true},
		{"\x01\t\r\x1b[1m\x7f", "%01%09%0D%1B[1m%7F", true},
		{"%0A", "%250A", true},
		{"\u0085\u2028", "\u0085\u2028", true},
		{"\xff", "\xff", true},
		{strings.Repeat("x", 255), strings.Repeat("x", 255), true},
		{strings.Repeat("x", 256), "", false},
		{strings.Repeat("/", 86), "", false}, // 258 bytes when escaped
		{"", "", false},
		{"a\x00b", "", false},
	} {
		name, ok := EscapeKey(tt.key)
		if ok != tt.ok || ok && name != tt.name {
			t.Errorf("EscapeKey(%q) = %q, %v", tt.key, name, ok)
		}
		if !ok {
			continue
		}
		if key, ok := UnescapeKey(name); !ok || key != tt.key {
			t.Errorf("UnescapeKey(%q) = %q, %v", name, key, ok)
		}
	}
	for _, name := range []string{"", ".", "..", "a/b", "%", "%2", "%2f", "%0a", "a\nb", "%00", "%20", "a%2Eb", "%2E%2E%2E", "%41", "a\x00", strings.Repeat("x", 256)} {
		if key, ok := UnescapeKey(name); ok {
			t.Errorf("UnescapeKey(%q) = %q: no key has this name", name, key)
		}
	}
}

func TestNamePath(t *testing.T) {
	sha := "@sha256:" + strings.Repeat("1", 64)
	for _, tt := range []struct {
		name  string
		elems []string
	}{
		{"docker.io/library/nginx:1.27", []string{"docker.io", "library", "nginx:1.27"}},
		{"localhost/web:latest", []string{"localhost", "web:latest"}},
		{"host:5000/a/b:tag", []string{"host:5000", "a", "b:tag"}},
		{"[::1]:5000/a:1", []string{"[::1]:5000%2Fa:1"}}, // the reference grammar of containers/image has no IPv6 hosts
		{"h.io/a", []string{"h.io", "a"}},
		{"h.io/a" + sha, []string{"h.io", "a" + sha}},
		{"h.io/a:1" + sha, []string{"h.io", "a:1" + sha}},
		{"latest", []string{"latest"}},
		{"web-1.0", []string{"web-1.0"}},
		{"a/b:c", []string{"a%2Fb:c"}},
		{"nginx:1.27", []string{"nginx:1.27"}},
		{"library/nginx", []string{"library%2Fnginx"}},
		{"docker.io/nginx:1.27", []string{"docker.io%2Fnginx:1.27"}},                     // normalising puts library in
		{"index.docker.io/library/nginx", []string{"index.docker.io%2Flibrary%2Fnginx"}}, // and takes index off
		{"h.io/A:1", []string{"h.io%2FA:1"}},
		{"h.io/../x", []string{"h.io%2F..%2Fx"}},
		{"h.io//x", []string{"h.io%2F%2Fx"}},
		{"h.io/a/", []string{"h.io%2Fa%2F"}},
		{"h.io/a:", []string{"h.io%2Fa:"}},
		{"/a", []string{"%2Fa"}},
		{".", []string{"%2E"}},
		{"..", []string{"%2E%2E"}},
		{"./a", []string{".%2Fa"}},
		{"50%", []string{"50%25"}},
		{"a/b\nh.io/c:1", []string{"a%2Fb%0Ah.io%2Fc:1"}},
		{"h.io/a:1\n", []string{"h.io%2Fa:1%0A"}},
		{"localhost", []string{"localhost"}},
		{"localhost:", []string{"localhost:"}},
		{"", nil},
		{"a\x00", nil},
		{strings.Repeat("x", 256), nil},
		{"h.io/" + strings.Repeat("x", 200) + ":" + strings.Repeat("t", 100), nil},
	} {
		elems, ok := NamePath(tt.name)
		if ok != (tt.elems != nil) || !slices.Equal(elems, tt.elems) {
			t.Errorf("NamePath(%q) = %q, %v", tt.name, elems, ok)
		}
		if !ok {
			continue
		}
		if name, ok := NameFromPath(elems); !ok || name != tt.name {
			t.Errorf("NameFromPath(%q) = %q, %v", elems, name, ok)
		}
	}
	for _, elems := range [][]string{
		nil, {}, {""}, {"."}, {"a", "b"}, {"h.io", ".."}, {"h.io", ""}, {"", "a"}, {"h.io", "a%2Fb"}, {"h.io", "a/b"},
		{"docker.io", "nginx"}, {"h.io%2Fa"}, {"h.io", "a:"}, {"h.io", "A"}, {"h.io", strings.Repeat("x", 256)},
		{"h.io", strings.Repeat("x", 200) + ":" + strings.Repeat("t", 100)},
	} {
		if name, ok := NameFromPath(elems); ok {
			t.Errorf("NameFromPath(%q) = %q: no name stands there", elems, name)
		}
	}
}

// drawName draws names of all kinds, near the borders of what is a reference.
func drawName(t *rapid.T, label string) string {
	part := rapid.SampledFrom([]string{"a", "b", "library", "nginx", "h.io", "docker.io", "localhost", "host:5000", ".", "..", "%", "%2F", "A", "", "x-y"})
	return rapid.OneOf(
		rapid.String(),
		rapid.Custom(func(t *rapid.T) string { return string(rapid.SliceOf(rapid.Byte()).Draw(t, "bytes")) }),
		rapid.Custom(func(t *rapid.T) string {
			name := strings.Join(rapid.SliceOfN(part, 1, 4).Draw(t, "parts"), "/")
			return name + rapid.SampledFrom([]string{"", ":1", ":latest", ":", "@sha256:" + strings.Repeat("a", 64)}).Draw(t, "tag")
		}),
		rapid.Custom(func(t *rapid.T) string {
			return strings.Repeat(rapid.SampledFrom([]string{"x", "/", "%"}).Draw(t, "char"), rapid.IntRange(80, 260).Draw(t, "length"))
		}),
	).Draw(t, label)
}

// drawReference draws names with a registry, most of them references.
func drawReference(t *rapid.T) string {
	word := rapid.StringMatching(`[a-z0-9A-Z]{1,3}([._-]{1,2}[a-z0-9]{1,3}){0,2}[-._]?`)
	host := rapid.OneOf(
		rapid.SampledFrom([]string{"docker.io", "index.docker.io", "localhost", "h.io:5000", "h:1"}),
		rapid.StringMatching(`[a-zA-Z0-9-]{1,3}[.:][a-z0-9.:-]{0,4}`),
	).Draw(t, "host")
	repo := rapid.OneOf(
		rapid.StringMatching(`[a-z0-9]{1,3}([._-]{1,2}[a-z0-9]{1,2}){0,2}(/[a-z0-9]{1,3}){0,2}`),
		word,
		rapid.StringMatching(`[a-z]{244,256}`),
	).Draw(t, "repository")
	return host + "/" + repo + rapid.StringMatching(`(:[a-zA-Z0-9_.-]{0,4}|:[a-z]{127,129})?(@sha256:[0-9a-f]{64})?`).Draw(t, "tag")
}

func checkElem(t *rapid.T, e string) {
	if e == "" || e == "." || e == ".." || len(e) > 255 || strings.ContainsAny(e, "/\x00") {
		t.Fatalf("%q is no file name", e)
	}
}

func TestNamesProperties(t *testing.T) {
	t.Run("EscapeKey", rapid.MakeCheck(func(t *rapid.T) {
		a, b := drawName(t, "a"), drawName(t, "b")
		nameA, okA := EscapeKey(a)
		nameB, okB := EscapeKey(b)
		if !okA {
			return
		}
		checkElem(t, nameA)
		if back, ok := UnescapeKey(nameA); !ok || back != a {
			t.Fatalf("%q came back as %q, %v", a, back, ok)
		}
		if okB && (nameA == nameB) != (a == b) {
			t.Fatalf("%q and %q are %q and %q", a, b, nameA, nameB)
		}
	}))
	t.Run("UnescapeKey", rapid.MakeCheck(func(t *rapid.T) {
		name := drawName(t, "name")
		if key, ok := UnescapeKey(name); ok {
			if again, ok := EscapeKey(key); !ok || again != name {
				t.Fatalf("%q came back as %q, %v", name, again, ok)
			}
		}
	}))
	t.Run("NamePath", rapid.MakeCheck(func(t *rapid.T) {
		a, b := drawName(t, "a"), drawName(t, "b")
		elemsA, okA := NamePath(a)
		elemsB, okB := NamePath(b)
		if !okA {
			return
		}
		for _, e := range elemsA {
			checkElem(t, e)
		}
		if back, ok := NameFromPath(elemsA); !ok || back != a {
			t.Fatalf("%q came back as %q, %v", a, back, ok)
		}
		if okB && slices.Equal(elemsA, elemsB) != (a == b) {
			t.Fatalf("%q and %q are %q and %q", a, b, elemsA, elemsB)
		}
	}))
	t.Run("isPlainReference", rapid.MakeCheck(func(t *rapid.T) {
		name := drawReference(t)
		ref, err := reference.ParseNormalizedNamed(name)
		want := err == nil && ref.String() == name
		if got := isFullReference(name); got != want {
			t.Fatalf("%q: %v, the reference package says %v", name, got, want)
		}
	}))
	t.Run("NameFromPath", rapid.MakeCheck(func(t *rapid.T) {
		elems := strings.Split(drawName(t, "path"), "/")
		if name, ok := NameFromPath(elems); ok {
			if again, ok := NamePath(name); !ok || !slices.Equal(again, elems) {
				t.Fatalf("%q came back as %q, %v", elems, again, ok)
			}
		}
	}))
}

func TestRemotePaths(t *testing.T) {
	for path, want := range map[string]string{
		"localhost:5000": "repository", "quay.io": "repository", "docker.io": "repository", "docker.io/library": "repository",
		"quay.io/team/app": "repository", "localhost": "repository", "quay.io/team/app:1": "reference", "docker.io/nginx:1": "reference",
		"quay.io/app@sha256:" + strings.Repeat("0", 64): "reference", "localhost:5000/app:latest": "reference",
		"nginx": "", "nginx:1.27": "", "team/app:1": "", "quay.io/UPPER": "", "quay.io/app:": "", "quay.io/app@sha256:0": "", "quay.io/a:1/b": "",
		"": "", "quay.io/": "", "quay.io/..": "", "quay.io/a b": "",
	} {
		got := ""
		switch {
		case IsRepository(path) && IsRemoteReference(path):
			got = "both"
		case IsRepository(path):
			got = "repository"
		case IsRemoteReference(path):
			got = "reference"
		}
		if got != want {
			t.Errorf("%q: %q, want %q", path, got, want)
		}
	}
}
