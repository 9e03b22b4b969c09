package registry

import (
	"testing"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/layer"
	"github.com/imgfs/imgfs/imgsrc/sourcetest"
)

// The suite that every source passes, over each kind of reference.
func TestSuite(t *testing.T) {
	for name, srv := range map[string]*server{"embedded": newServer(t), "distribution": startDistribution(t, "")} {
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
			t.Run(name+"/"+ref[len(host):], func(t *testing.T) {
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
}
