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

// smallDisk is a file system of 8 MiB.
func smallDisk(t *testing.T) string {
	t.Helper()
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
	return disk
}

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
	o := newSetup(t, srv.host+"/web")
	o.CacheDir = filepath.Join(smallDisk(t), "cache")
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

// So do parts of blobs.
func TestFullOfParts(t *testing.T) {
	srv := newServer(t)
	m := lazyImages(t, lazyEntries())[1]
	srv.pushLazy("lazy", "1", m)
	o := newSetup(t, srv.host+"/lazy:1")
	o.CacheDir = filepath.Join(smallDisk(t), "cache")
	o.newCache(t)
	r := lookInto(t, named(t, o.mustOpen(t), srv.host+"/lazy:1"))
	for i := range 2 {
		img := srv.image("web", fmt.Sprint(i), layer.None, tarOf(t, "f", noise(3<<20+i*800_000)))
		o.Ref = fmt.Sprintf("%s/web:%d", srv.host, i)
		s, err := o.open(t)
		if err != nil {
			t.Fatal(err)
		}
		wantBlob(t, named(t, s, o.Ref), img)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	r.check("large", noise(1<<20))
	o.Ref, o.Offline = srv.host+"/lazy:1", true
	o.newCache(t)
	lookInto(t, named(t, o.mustOpen(t), o.Ref)).check("large", noise(1<<20))
}
