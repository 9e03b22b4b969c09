package storage

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/sourcetest"
)

// TestSuite runs over this source what every source has to pass.
func TestSuite(t *testing.T) {
	for _, driver := range drivers {
		t.Run(driver, func(t *testing.T) {
			r := newReal(t, driver)
			src := t.TempDir()
			curious(t, filepath.Join(src, "one"))
			write(t, []byte("other\n"), src, "two", "hello")
			r.commit(t, "localhost/multi:1", "oci", filepath.Join(src, "one"), filepath.Join(src, "two"))
			r.commit(t, "localhost/docker:1", "docker", filepath.Join(src, "two"))
			sourcetest.Run(t, func(t *testing.T) imgsrc.Source { return r.source(t) }, sourcetest.Expect{
				Images:   3, // with the one that multi:1 was made from
				Names:    []string{"localhost/multi:1", "localhost/multi:1-0", "localhost/docker:1"},
				Diffs:    4,
				Blobs:    true, // the manifests of what was built here name uncompressed layers
				NewName:  "localhost/new:2",
				BadNames: []string{"", "UPPER", "a b", "localhost/a@sha256:" + strings.Repeat("0", 64), strings.Repeat("x", 300)},
			})
		})
	}
}
