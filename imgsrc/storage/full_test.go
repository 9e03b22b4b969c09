package storage

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	cs "go.podman.io/storage"
	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/test/needs"
)

// onDisk puts a store, which must not have been used, on a file system of its own, of 8 MiB.
func (r real) onDisk(t *testing.T) {
	t.Helper()
	disk := filepath.Dir(r.root)
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=8m"); err != nil {
		needs.Unmet(t, "to mount a tmpfs: "+err.Error())
	}
	t.Cleanup(func() {
		_ = unix.Unmount(filepath.Join(r.root, r.driver), unix.MNT_DETACH) // podman makes a mount of its own, now and then
		if err := unix.Unmount(disk, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

// fill leaves no room on the store's file system, until room is called.
func (r real) fill(t *testing.T) (room func()) {
	t.Helper()
	f, err := os.Create(filepath.Join(filepath.Dir(r.root), "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(f.Name()); err != nil {
			t.Fatal(err)
		}
	}
}

// A name that found no room is not given later, with what somebody else writes.
func TestTagNoSpaceBesideReceive(t *testing.T) {
	r := newReal(t, "overlay")
	r.onDisk(t)
	src := t.TempDir()
	write(t, []byte("a"), src, "file")
	r.commit(t, "localhost/a", "oci", src)
	t.Setenv("TMPDIR", t.TempDir())
	s := r.source(t)
	a := find(t, s, "localhost/a:latest").Desc()
	dir := sample(t)
	full := func() error {
		defer r.fill(t)()
		if err := s.Tag(t.Context(), a, []string{"localhost/late:1"}, nil); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("tagging on a full disk: %v", err)
		}
		return nil
	}
	if err := s.Receive(t.Context(), "localhost/app:1", "", copyFrom(t.Context(), t, dir, "localhost/app:1.0", full)); err != nil {
		t.Fatal(err)
	}
	if names := r.names(t, a.ID); len(names) != 1 {
		t.Errorf("the names are %q", names)
	}
	find(t, s, "localhost/app:1")
}

// However little room there is, an image is put into the store whole or not at all: podman lists nothing if one lacks its
// manifest.
func TestReceiveWithLittleRoom(t *testing.T) {
	r := newReal(t, "overlay")
	r.onDisk(t)
	src := t.TempDir()
	write(t, []byte("a"), src, "file")
	r.commit(t, "localhost/a", "oci", src)
	t.Setenv("TMPDIR", t.TempDir())
	dir := sample(t)
	filler := filepath.Join(filepath.Dir(r.root), "filler")
	refused, taken := 0, 0
	for left := int64(0); left < 1<<20 && taken == 0; left += 4 << 10 {
		r.fill(t)
		if info, err := os.Stat(filler); err != nil {
			t.Fatal(err)
		} else if err := os.Truncate(filler, info.Size()-left); err != nil {
			t.Fatal(err)
		}
		s := r.source(t)
		switch err := s.Receive(t.Context(), "localhost/app:1", "", copyFrom(t.Context(), t, dir, "localhost/app:1.0", nil)); {
		case err == nil:
			taken++
		case errors.Is(err, unix.ENOSPC):
			refused++
		default:
			t.Errorf("with %d KiB: %v", left>>10, err)
		}
		store, err := cs.GetStore(s.writable())
		if err != nil {
			t.Fatal(err)
		}
		images, err := store.Images()
		if err != nil {
			t.Fatal(err)
		}
		for _, img := range images {
			if _, err := store.ImageBigData(img.ID, cs.ImageDigestBigDataKey); err != nil {
				t.Fatalf("with %d KiB: image %s %q is there without its manifest: %v", left>>10, img.ID, img.Names, err)
			}
		}
		store.Free()
		if err := os.Remove(filler); err != nil {
			t.Fatal(err)
		}
	}
	if refused == 0 || taken == 0 {
		t.Errorf("refused %d times, taken %d times", refused, taken)
	}
}

// broken is a store in which nothing more is done once names have been added, as if the process had been killed.
type broken struct{ cs.Store }

func (broken) RemoveNames(string, []string) error { return unix.EIO }

// Between the two steps of a new name in the place of an old one the image has both.
func TestRenameBrokenOff(t *testing.T) {
	r, s, a, _ := tagged(t, "vfs")
	store, err := s.openReal()
	if err != nil {
		t.Fatal(err)
	}
	if err := changeNames(broken{store}, a.ID, []string{"localhost/new:1"}, []string{"localhost/a:latest"}, nil); !errors.Is(err, unix.EIO) {
		t.Error(err)
	}
	if names := r.names(t, a.ID); !slices.Equal(names, []string{"localhost/a:latest", "localhost/new:1"}) {
		t.Errorf("the names are %q", names)
	}
}
