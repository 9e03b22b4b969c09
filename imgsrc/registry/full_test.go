package registry

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc/layer"
	"github.com/imgfs/imgfs/test/needs"
)

// Where blobs fill the disk of the cache, the next takes the place of those that were not used for long. One for which all of them
// would not make room takes none.
func TestFullOfBlobs(t *testing.T) {
	const size = 3 << 20
	srv := newServer(t)
	var all []made
	for i := range 5 {
		all = append(all, srv.image("web", fmt.Sprint(i), layer.None, tarOf(t, "f", noise(size+i))))
	}
	large := srv.image("web", "large", layer.None, tarOf(t, "f", noise(4*size)))
	disk := t.TempDir()
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=8m,mode=0700"); err != nil {
		needs.Unmet(t, "mounting a tmpfs: "+err.Error())
	}
	t.Cleanup(func() {
		if err := unix.Unmount(disk, 0); err != nil {
			t.Error(err)
			_ = unix.Unmount(disk, unix.MNT_DETACH)
		}
	})
	o := newSetup(t, srv.host+"/web")
	o.CacheDir = filepath.Join(disk, "cache")
	o.newCache(t)
	s := o.mustOpen(t)
	for i, img := range all {
		wantBlob(t, named(t, s, fmt.Sprintf("%s/web:%d", srv.host, i)), img)
	}
	const elsewhere = "using a temporary file for a blob"
	if log := o.logged.String(); strings.Contains(log, elsewhere) {
		t.Errorf("the disk stays full: %s", log)
	}
	kept := func() []string {
		t.Helper()
		files, err := filepath.Glob(filepath.Join(o.CacheDir, "v1", fetchedDir, "sha256", "*"))
		if err != nil {
			t.Fatal(err)
		}
		return files
	}
	before := kept()
	if len(before) == 0 {
		t.Error("nothing is kept")
	}
	wantBlob(t, named(t, s, srv.host+"/web:large"), large)
	if after := kept(); len(after) != len(before) || !strings.Contains(o.logged.String(), elsewhere) {
		t.Errorf("after one that is too large %d of %d blobs are left", len(after), len(before))
	}
}
