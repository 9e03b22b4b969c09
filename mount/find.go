package mount

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// Find returns the path, as List has it, of the mount at mountpoint, whoever made it. Errors: ErrNotMount, ErrForeign,
// ErrDead.
func Find(mountpoint string) (string, error) {
	path, err := resolve(mountpoint)
	if err != nil {
		return "", err
	}
	e, err := ourMountAt(path)
	if err != nil {
		return "", err
	}
	_, dead, err := isDead(path, e)
	if err != nil {
		return "", err
	}
	if dead {
		return "", fmt.Errorf("%w: `imgfs umount` takes the mount away, `imgfs mount` replaces it", ErrDead)
	}
	return path, nil
}

// ourMountAt returns the mount of ours at path, which must be resolved. Errors: ErrNotMount, ErrForeign.
func ourMountAt(path string) (*entry, error) {
	e, err := mountAt(path)
	if err != nil {
		return nil, err
	}
	if e == nil {
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("no such directory: %w", ErrNotMount)
		}
		return nil, ErrNotMount
	}
	if !e.ours() {
		return nil, fmt.Errorf("a file system of type %s is mounted there: %w", e.fsType, ErrForeign)
	}
	return e, nil
}
