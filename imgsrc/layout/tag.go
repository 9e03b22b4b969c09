package layout

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
)

// maxName is how many bytes a name may have: those of a file name, as which it appears.
const maxName = 255

// namePattern is the grammar of org.opencontainers.image.ref.name in the image specification's annotations.md. skopeo
// and podman refuse any other.
var namePattern = regexp.MustCompile(`^[A-Za-z0-9]+(?:(?:[-._:@+]|--)[A-Za-z0-9]+)*(?:/[A-Za-z0-9]+(?:(?:[-._:@+]|--)[A-Za-z0-9]+)*)*$`)

// CheckName returns name as it is: a layout stores what was typed. Error: imgsrc.ErrInvalid if it is longer than 255
// bytes or not of the image specification's grammar: words of letters and digits with one of -._:@+ or -- between them,
// separated by slashes.
func (s *Source) CheckName(name string) (string, error) {
	if len(name) > maxName {
		return "", fmt.Errorf("%w: a name of %d bytes, of at most %d", imgsrc.ErrInvalid, len(name), maxName)
	}
	if !namePattern.MatchString(name) {
		return "", fmt.Errorf("%w: %q is no name for an image in a layout: words of letters and digits, with one of - . _ : @ + or -- between them, separated by slashes", imgsrc.ErrInvalid, name)
	}
	return name, nil
}

// tempFile is what index.json is written to before it is renamed. It is made under the lock, so one that is there
// already was left by a process that died.
const tempFile = ".index.json.imgfs"

// How often to look whether the lock is free, and how often to begin again after another tool's write.
const (
	lockPoll   = 10 * time.Millisecond
	maxRetries = 20
)

// Tag changes names in index.json. Removing the last name of an image leaves it in the layout without one.
func (s *Source) Tag(ctx context.Context, img imgsrc.Desc, add, remove []string) error {
	err := s.tag(ctx, img, add, remove)
	if err == nil {
		return nil
	}
	if errors.Is(err, unix.EROFS) {
		err = fmt.Errorf("%w: %w", imgsrc.ErrReadOnly, err)
	}
	return fmt.Errorf("tagging %s in %s: %w", img.Digest, s.Name(), err)
}

func (s *Source) tag(ctx context.Context, img imgsrc.Desc, add, remove []string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	for _, name := range add {
		if _, err := s.CheckName(name); err != nil {
			return err
		}
	}
	lock, err := s.lock(ctx)
	if err != nil {
		return err
	}
	defer lock.Close()
	for range maxRetries {
		ix, err := s.readIndex(ctx)
		if err != nil {
			return err
		}
		target, err := s.find(ctx, ix, img)
		if err != nil {
			return err
		}
		b, err := ix.retag(target, add, remove)
		if b == nil || err != nil {
			return err
		}
		if len(b) > imgsrc.MaxManifest {
			return fmt.Errorf("%w: index.json would have %d bytes, more than %d", imgsrc.ErrInvalid, len(b), imgsrc.MaxManifest)
		}
		replaced, err := s.replaceIndex(lock, ix.raw, b)
		if replaced || err != nil {
			return err
		}
	}
	return fmt.Errorf("%w: index.json keeps changing", unix.EBUSY)
}

// find returns the manifest of this digest, which index.json or an index below it must hold.
func (s *Source) find(ctx context.Context, ix *index, img imgsrc.Desc) (descriptor, error) {
	for _, e := range ix.entries {
		if e.err == nil && e.digest == img.Digest {
			return e.descriptor, nil
		}
	}
	s.mu.Lock()
	w := &walk{source: s, known: s.known, found: map[digest.Digest]*manifest{}}
	s.mu.Unlock()
	if err := w.run(ctx, ix.wanted("")); err != nil {
		return descriptor{}, err
	}
	m := w.found[img.Digest]
	if m == nil {
		return descriptor{}, fmt.Errorf("%w: the image was removed from the layout", imgsrc.ErrNotFound)
	}
	d := m.descriptor
	d.mediaType = m.image.desc.MediaType
	return d, nil
}

// lock takes the lock of those who write index.json. Closing the file releases it.
func (s *Source) lock(ctx context.Context) (*os.File, error) {
	dir, err := s.root.Open(".")
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
			return nil, fmt.Errorf("locking %s: %w", s.dir, err)
		}
		select {
		case <-time.After(lockPoll):
		case <-ctx.Done():
			dir.Close()
			return nil, ctx.Err()
		}
	}
}

// replaceIndex puts b in the place of index.json, unless that is not was any more.
func (s *Source) replaceIndex(dir *os.File, was, b []byte) (replaced bool, err error) {
	if err := s.root.Remove(tempFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	fi, err := s.root.Stat(v1.ImageIndexFile)
	if err != nil {
		return false, err
	}
	f, err := s.root.OpenFile(tempFile, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return false, err
	}
	defer func() {
		f.Close()
		if !replaced {
			err = errors.Join(err, s.root.Remove(tempFile))
		}
	}()
	if _, err := f.Write(b); err != nil {
		return false, err
	}
	if st := fi.Sys().(*syscall.Stat_t); int(st.Uid) != os.Geteuid() || int(st.Gid) != os.Getegid() {
		// Who may not give files away has a file of his own from now on, as with any tool that replaces files.
		_ = f.Chown(int(st.Uid), int(st.Gid))
	}
	if err := f.Chmod(fi.Mode().Perm()); err != nil {
		return false, err
	}
	if err := f.Sync(); err != nil {
		return false, err
	}
	now, _, err := s.readFile(v1.ImageIndexFile, imgsrc.MaxManifest)
	if err != nil || !bytes.Equal(now, was) {
		return false, nil // the next attempt says what is wrong with it
	}
	if err := s.root.Rename(tempFile, v1.ImageIndexFile); err != nil {
		return false, err
	}
	// The names are changed, whatever is said of the disk now.
	if err := dir.Sync(); err != nil {
		s.log.Warn("syncing layout", "source", s.Name(), "error", err)
	}
	return true, nil
}
