package ops

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc/cachefile"
)

// stagingPrefix begins the name of the directory that a push writes into until it is done.
const stagingPrefix = ".imgfs-push-"

// stageIn makes a directory for a push in another one, on the same file system. It is locked (flock(2)) for as long as the
// push goes on, and the lock is the kernel's, so that a directory without one is what a push has left whose process was
// killed: those of this user are removed.
func stageIn(parent string, log *slog.Logger) (dir string, discard func(), err error) {
	removeDead(parent, log)
	for {
		if dir, err = os.MkdirTemp(parent, stagingPrefix); err != nil {
			var why *fs.PathError // whose path nobody knows
			if errors.As(err, &why) {
				err = why.Err
			}
			return "", func() {}, fmt.Errorf("making a directory in %s: %w", parent, err)
		}
		lock, err := lockDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue // taken for a dead one before it was locked
		}
		if err != nil { // not on this file system: nobody can tell whether this one is alive, and nobody removes it
			log.Debug("locking the directory of a push", "directory", dir, "error", err)
		}
		return dir, func() {
			_ = os.RemoveAll(dir)
			if lock != nil {
				_ = lock.Close()
			}
		}, nil
	}
}

// stageBeside makes a directory for a push beside the path that it is for, see stageIn.
func stageBeside(path string, log *slog.Logger) (dir string, discard func(), err error) {
	return stageIn(filepath.Dir(path), log)
}

// lockDir locks a directory that has just been made, waiting for whoever looks whether it is dead. Error: fs.ErrNotExist if
// that one has removed it.
func lockDir(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := cachefile.Flock(f, unix.LOCK_EX); err != nil {
		f.Close()
		return nil, err
	}
	if !sameFile(f, dir) {
		f.Close()
		return nil, fs.ErrNotExist
	}
	return f, nil
}

func sameFile(f *os.File, path string) bool {
	opened, err := f.Stat()
	if err != nil {
		return false
	}
	there, err := os.Lstat(path)
	return err == nil && os.SameFile(opened, there)
}

// networks are file systems on which a lock may be unknown to another machine.
var networks = []int64{unix.NFS_SUPER_MAGIC, unix.SMB_SUPER_MAGIC, unix.SMB2_SUPER_MAGIC, unix.CIFS_SUPER_MAGIC, unix.CEPH_SUPER_MAGIC,
	unix.V9FS_MAGIC, unix.AFS_SUPER_MAGIC, unix.CODA_SUPER_MAGIC, unix.FUSE_SUPER_MAGIC, unix.OCFS2_SUPER_MAGIC}

// removeDead removes the directories of this user's pushes whose processes are gone.
func removeDead(parent string, log *slog.Logger) {
	var st unix.Statfs_t
	if err := unix.Statfs(parent, &st); err != nil || slices.Contains(networks, int64(st.Type)) {
		return
	}
	entries, err := os.ReadDir(parent)
	if err != nil {
		return
	}
	for _, e := range entries {
		if !e.IsDir() || !strings.HasPrefix(e.Name(), stagingPrefix) {
			continue
		}
		dir := filepath.Join(parent, e.Name())
		if err := removeIfDead(dir); err != nil && !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, fs.ErrNotExist) {
			log.Debug("removing what a push has left", "directory", dir, "error", err)
		}
	}
}

// removeIfDead removes a push's directory. Error: EWOULDBLOCK if the push goes on.
func removeIfDead(dir string) error {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), dir)
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Uid != uint32(os.Geteuid()) {
		return fs.ErrPermission
	}
	if err := cachefile.Flock(f, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return err
	}
	if !sameFile(f, dir) {
		return nil
	}
	return os.RemoveAll(dir)
}
