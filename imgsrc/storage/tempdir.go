package storage

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc/cachefile"
)

const (
	tempPrefix    = "imgfs-receive-"  // of directories whose lock somebody holds, or that were left behind
	newTempPrefix = ".imgfs-receive-" // until the lock is held
)

// tempDir makes the directory in which the compressed layers of an image wait to be unpacked, where podman has them too
// (TMPDIR, else /var/tmp), and removes those that were left by processes that were killed: whoever uses one holds a lock
// on it.
func tempDir() (dir string, remove func(), err error) {
	place := os.Getenv("TMPDIR")
	if place == "" {
		place = "/var/tmp"
	}
	sweep(place)
	made, err := os.MkdirTemp(place, newTempPrefix)
	if err != nil {
		return "", nil, fmt.Errorf("making a directory for layers: %w", err)
	}
	lock, err := os.Open(made)
	if err != nil {
		_ = os.Remove(made)
		return "", nil, fmt.Errorf("making a directory for layers: %w", err)
	}
	dir = filepath.Join(place, tempPrefix+strings.TrimPrefix(filepath.Base(made), newTempPrefix))
	err = cachefile.Flock(lock, unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		err = os.Rename(made, dir)
	}
	if err != nil {
		lock.Close()
		_ = os.Remove(made)
		return "", nil, fmt.Errorf("making a directory for layers: %w", err)
	}
	return dir, func() {
		_ = os.RemoveAll(dir)
		lock.Close()
	}, nil
}

// sweep removes this user's directories that nobody holds any more.
func sweep(place string) {
	left, _ := filepath.Glob(filepath.Join(place, tempPrefix+"*"))
	for _, dir := range left {
		removeAbandoned(dir)
	}
}

func removeAbandoned(dir string) {
	f, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return
	}
	defer f.Close()
	var st unix.Stat_t
	if unix.Fstat(int(f.Fd()), &st) != nil || int(st.Uid) != os.Geteuid() {
		return
	}
	if err := cachefile.Flock(f, unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) || err != nil {
		return
	}
	_ = os.RemoveAll(dir)
}
