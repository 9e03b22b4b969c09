// Package indexjson changes the index.json of an OCI image layout, which several programs may do at the same time. It
// does not know what is in it, but for where names are.
//
// The file is replaced by rename, so that every reader sees the old or the new one, whole. Who uses this package excludes
// the others by flock on the layout's directory, which leaves no file behind. Other tools lock nothing: the file is
// compared once more right before the rename, and what the rename takes away right after it; if it was written to meanwhile
// that is put back, and the change made anew.
package indexjson

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
)

// Temp is what index.json is written to before it is renamed. It is made under the lock, so one that is there already
// was left by a process that died.
const Temp = ".index.json.imgfs"

// Max is how many bytes the file may have. It is no manifest that a registry would have to take: ten thousand images need some
// four megabytes.
const Max = 64 << 20

// NameContainerd is the annotation of an entry in which containerd and docker save keep the image's full reference. Where it is
// there it counts, and not the name that the image specification has an annotation for.
const NameContainerd = "io.containerd.image.name"

const (
	lockPoll   = 10 * time.Millisecond // how often to look whether the lock is free
	maxRetries = 20                    // how often to begin again after another tool's write
	youngIndex = time.Second           // how long a broken file is taken for one that is being written
	retryIndex = 20 * time.Millisecond // how often to look again whether it is whole
)

// Update replaces index.json in root. next reads it, and returns its text (nil if it is not there) and what is to be in
// its place (nil if nothing is to change); it is called again if another tool has written to the file meanwhile. ready,
// which may be nil, is called once, when the new text is on the disk and before it is in place. Errors: those of next and
// ready; imgsrc.ErrInvalid if the new text is too long; EBUSY if the file keeps changing; ctx's; the system's.
func Update(ctx context.Context, root *os.Root, next func() (was, text []byte, err error), ready func() error) error {
	dir, err := lock(ctx, root)
	if err != nil {
		return err
	}
	defer dir.Close()
	for range maxRetries {
		was, text, err := next()
		if text == nil || err != nil {
			return err
		}
		if len(text) > Max {
			return fmt.Errorf("%w: index.json would have %d bytes, more than %d", imgsrc.ErrInvalid, len(text), Max)
		}
		if err := imgsrc.Commit(ctx); err != nil {
			return err
		}
		replaced, err := replace(root, was, text, ready)
		if err != nil {
			return err
		}
		if replaced {
			// It is changed, whatever is said of the disk now: the file's own bytes are there.
			_ = dir.Sync()
			return nil
		}
		ready = nil
	}
	return fmt.Errorf("%w: index.json keeps changing", unix.EBUSY)
}

// lock takes the lock of those who write index.json. Closing the file releases it.
func lock(ctx context.Context, root *os.Root) (*os.File, error) {
	dir, err := root.Open(".")
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return dir, nil
		}
		if err != unix.EWOULDBLOCK && err != unix.EINTR {
			dir.Close()
			return nil, fmt.Errorf("locking %s: %w", root.Name(), err)
		}
		select {
		case <-time.After(lockPoll):
		case <-ctx.Done():
			dir.Close()
			return nil, ctx.Err()
		}
	}
}

// replace puts text in the place of index.json, unless that is not was any more.
func replace(root *os.Root, was, text []byte, ready func() error) (replaced bool, err error) {
	if err := root.Remove(Temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if err := writeTemp(root, text); err != nil {
		return false, errors.Join(err, removeTemp(root))
	}
	defer func() {
		if !replaced {
			err = errors.Join(err, removeTemp(root))
		}
	}()
	if ready != nil {
		if err := ready(); err != nil {
			return false, err
		}
	}
	now, _, err := read(root)
	if err != nil || (now == nil) != (was == nil) || !bytes.Equal(now, was) {
		return false, nil // the next attempt says what is wrong with it
	}
	if was == nil {
		err := root.Rename(Temp, v1.ImageIndexFile)
		return err == nil, err
	}
	return exchange(root, was, text)
}

// exchange changes index.json, which is was, for Temp, which is text, and looks at what it was when it went.
func exchange(root *os.Root, was, text []byte) (replaced bool, err error) {
	dir, err := root.Open(".")
	if err != nil {
		return false, err
	}
	defer dir.Close()
	swap := func() error {
		return unix.Renameat2(int(dir.Fd()), Temp, int(dir.Fd()), v1.ImageIndexFile, unix.RENAME_EXCHANGE)
	}
	switch err := swap(); {
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS): // not on this file system
		err := root.Rename(Temp, v1.ImageIndexFile)
		return err == nil, err
	case err != nil:
		return false, err
	}
	if taken, err := root.ReadFile(Temp); err != nil || bytes.Equal(taken, was) {
		return true, errors.Join(err, removeTemp(root))
	}
	if err := swap(); err != nil {
		return false, err
	}
	if ours, err := root.ReadFile(Temp); err == nil && !bytes.Equal(ours, text) {
		return false, swap() // it was written to once more: that is the newest
	}
	return false, nil
}

func removeTemp(root *os.Root) error {
	if err := root.Remove(Temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// writeTemp writes the new file, with the owner and the mode of the old one, to the disk.
func writeTemp(root *os.Root, text []byte) error {
	old, err := root.Stat(v1.ImageIndexFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	mode := fs.FileMode(0o644)
	if old != nil {
		mode = 0o600 // until it is known whose it is
	}
	f, err := root.OpenFile(Temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err == nil && old != nil {
		err = likeOld(f, old)
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func likeOld(f *os.File, old fs.FileInfo) error {
	if st := old.Sys().(*syscall.Stat_t); int(st.Uid) != os.Geteuid() || int(st.Gid) != os.Getegid() {
		// Who may not give files away has a file of his own from now on, as with any tool that replaces files.
		_ = f.Chown(int(st.Uid), int(st.Gid))
	}
	return f.Chmod(old.Mode().Perm())
}

// Read returns the text of index.json in root, nil if it is not there. skopeo, podman and buildah truncate the file and
// write it anew: while it is young, and no JSON, it is read again. Errors: imgsrc.ErrDamaged if it is no regular file or
// too long; ctx's.
func Read(ctx context.Context, root *os.Root) ([]byte, error) {
	for {
		text, modTime, err := read(root)
		if err != nil || text == nil || json.Valid(text) || time.Since(modTime) > youngIndex {
			return text, err
		}
		select {
		case <-time.After(retryIndex):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// read returns what is there now.
func read(root *os.Root) ([]byte, time.Time, error) {
	f, err := root.OpenFile(v1.ImageIndexFile, os.O_RDONLY|unix.O_NONBLOCK, 0) // a FIFO must not block
	if errors.Is(err, fs.ErrNotExist) {
		return nil, time.Time{}, nil
	}
	if err != nil {
		return nil, time.Time{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, time.Time{}, err
	}
	if !info.Mode().IsRegular() {
		return nil, time.Time{}, fmt.Errorf("%w: index.json is not a regular file", imgsrc.ErrDamaged)
	}
	text, err := io.ReadAll(io.LimitReader(f, Max+1))
	if err == nil && len(text) > Max {
		err = fmt.Errorf("%w: index.json has more than %d bytes", imgsrc.ErrDamaged, Max)
	}
	return text, info.ModTime(), err
}
