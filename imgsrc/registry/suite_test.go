package registry

import (
	"strings"
	"testing"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/layer"
	"github.com/imgfs/imgfs/imgsrc/sourcetest"
)

// The suite that every source passes, over each kind of reference; package sourcetest runs it over a whole registry of each
// kind.
func TestSuite(t *testing.T) {
	srv := newServer(t)
	srv.image("lib/one", "1", layer.Gzip, tarOf(t, "a", "aaa"), tarOf(t, "b", noise(300_000)))
	srv.image("lib/one", "2", layer.Zstd, tarOf(t, "a", "aaa"))
	srv.image("two", "latest", layer.None, tarOf(t, "c", noise(3_000_000)))
	host := srv.host
	for ref, want := range map[string]sourcetest.Expect{
		host:                 {Images: 3, Names: []string{host + "/lib/one:1", host + "/lib/one:2", host + "/two:latest"}, Diffs: 4},
		host + "/lib/one":    {Images: 2, Names: []string{host + "/lib/one:1", host + "/lib/one:2"}, Diffs: 3},
		host + "/two:latest": {Images: 1, Names: []string{host + "/two:latest"}, Diffs: 1},
	} {
		want.Blobs = true
		want.BadNames = []string{"web:1", "1", "other.example.org/a:1", host + "/UPPER:1", host + "/a@sha256:" + strings.Repeat("0", 64), "docker://" + host + "/a:1", host}
		want.NewName = host + "/two:new"
		if ref == host+"/lib/one" {
			want.NewName = host + "/lib/one:new"
		}
		t.Run("ref "+ref[len(host):], func(t *testing.T) {
			o := newSetup(t, ref)
			sourcetest.Run(t, func(t *testing.T) imgsrc.Source {
				s, err := o.open(t)
				if err != nil {
					t.Fatal(err)
				}
				return s
			}, want)
		})
	}
}
