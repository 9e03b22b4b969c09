package storage

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// roomBeside is what a removal takes on the disk for a moment beside the new lists: directories, and what is noted of a
// layer that is about to go.
const roomBeside = 64 << 10

// roomToRemove fails with ENOSPC if the disk is too full for an image to be removed whole. The library takes the image from
// images.json and its layers from layers.json, and writes both anew before it gives anything back. If only the first finds
// room the image is gone, and its layers stay for ever, whoever wanted to make room. A file system that can set nothing
// aside is not asked.
func (s *Source) roomToRemove() error {
	need := int64(0)
	for _, list := range []string{filepath.Join(s.imagesDir(0), "images.json"), filepath.Join(s.layersDir(0), "layers.json")} {
		if info, err := os.Stat(list); err == nil {
			need = max(need, info.Size())
		}
	}
	need += roomBeside
	fd, err := unix.Open(s.layersDir(0), unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, 0o600) // without a name: nothing can be left
	if err != nil {
		return nil // not on this file system, or as full as the removal itself will say
	}
	defer unix.Close(fd)
	if err := unix.Fallocate(fd, 0, 0, need); errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("writing the lists of images and layers takes %d KiB for a moment: %w", (need+1023)>>10, err)
	}
	return nil
}
