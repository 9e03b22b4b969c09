package mount

import (
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestSourceText(t *testing.T) {
	long := strings.Repeat("x", 100)
	var many []string
	for i := range 10_000 {
		many = append(many, fmt.Sprintf("oci:/srv/layouts/%d", i))
	}
	for _, test := range []struct {
		sources []string
		want    string
	}{
		{[]string{"a"}, "a"},
		{[]string{"a", "b", "c"}, "a b c"},
		{[]string{long, long, "b"}, long + " " + long + " b"},
		{[]string{long, long, long}, long + ", " + long + " and 1 more"},
		{[]string{long, long, long, "b"}, long + ", " + long + " and 2 more"},
		{[]string{strings.Repeat("x", 255)}, strings.Repeat("x", 255)},
		{[]string{strings.Repeat("x", 256)}, strings.Repeat("x", 252) + "..."},
		{[]string{strings.Repeat("x", 256), "b"}, strings.Repeat("x", 241) + "..., b"},
		{[]string{strings.Repeat("ä", 200)}, strings.Repeat("ä", 126) + "..."},
		{[]string{strings.Repeat("\xbf", 300)}, "..."},
	} {
		if got := sourceText(test.sources); got != test.want {
			t.Errorf("%q: %q, want %q", test.sources, got, test.want)
		}
	}
	got := sourceText(many)
	if len(got) > maxSource || len(got) < maxSource-40 || !strings.HasSuffix(got, fmt.Sprintf(" and %d more", len(many)-strings.Count(got, "oci:"))) || !utf8.ValidString(got) {
		t.Errorf("%q", got)
	}
}
