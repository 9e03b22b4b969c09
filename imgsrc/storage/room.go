package storage

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	cs "go.podman.io/storage"
	"golang.org/x/sys/unix"
)

// roomBeside is what a change takes on the disk for a moment beside the new lists: directories, and what is noted of a layer that
// is about to go.
const roomBeside = 64 << 10

// roomToRemove fails with ENOSPC if the disk is too full for an image to be removed whole. The library takes the image from
// images.json and its layers from layers.json, and writes both anew before it gives anything back. If only the first finds
// room the image is gone, and its layers stay for ever, whoever wanted to make room.
func (s *Source) roomToRemove() error {
	return s.room(0)
}

// roomToAdd likewise, for an image to be added whole, of whose data the store keeps so many bytes. The library notes the image in
// images.json and writes its manifest and config after that; if they find no room it takes the image back, for which there is
// none either. An image without a manifest is then in the store, and podman lists no image any more.
func (s *Source) roomToAdd(data []cs.ImageBigDataOption) error {
	bytes := int64(0)
	for _, d := range data {
		bytes += int64(len(d.Data)+4095) &^ 4095 // each is a file
	}
	return s.room(bytes)
}

// room fails with ENOSPC if the disk has no room for so many bytes and new lists beside the old ones. A file system that can set
// nothing aside is not asked.
func (s *Source) room(bytes int64) error {
	need := int64(0)
	for _, list := range []string{filepath.Join(s.imagesDir(0), "images.json"), filepath.Join(s.layersDir(0), "layers.json")} {
		if info, err := os.Stat(list); err == nil {
			need = max(need, info.Size())
		}
	}
	need += bytes + roomBeside
	fd, err := unix.Open(s.layersDir(0), unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, 0o600) // without a name: nothing can be left
	if err != nil {
		return nil // not on this file system, or as full as the change itself will say
	}
	defer unix.Close(fd)
	if err := unix.Fallocate(fd, 0, 0, need); errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("writing the lists of images and layers takes %d KiB for a moment: %w", (need+1023)>>10, err)
	}
	return nil
}
