package storage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/imgfs/imgfs/imgsrc"
)

// recheck is how often a watched source looks for itself: a directory far above that was replaced, and file systems that
// another machine writes to, bring no event.
const recheck = 30 * time.Second

// Stamp implements [imgsrc.Source].
func (s *Source) Stamp() imgsrc.Stamp {
	var stamp []byte
	for i := range s.stores {
		stamp = appendStamp(stamp, filepath.Join(s.imagesDir(i), "images.json"))
	}
	for _, file := range s.containerFiles() {
		stamp = appendStamp(stamp, file)
	}
	return imgsrc.Stamp(stamp)
}

// appendStamp appends what differs when a file has been replaced or written to.
func appendStamp(stamp []byte, file string) []byte {
	info, err := os.Stat(file)
	if err != nil {
		if errno := syscall.Errno(0); errors.As(err, &errno) {
			stamp = strconv.AppendInt(stamp, int64(errno), 10)
		}
		return append(stamp, "!\n"...)
	}
	id := identityIn(info)
	for _, n := range []int64{int64(id.dev), int64(id.ino), id.size, id.mtime.Nano(), id.ctime.Nano()} {
		stamp = append(strconv.AppendInt(stamp, n, 36), ' ')
	}
	return append(stamp, '\n')
}

// Watch implements [imgsrc.Source]. It calls changed once when it is ready, for what has happened before. A directory
// that is not there yet, or is replaced, is watched as soon as it appears.
func (s *Source) Watch(ctx context.Context, changed func()) error {
	notes, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watching %s: %w", s.name, err)
	}
	defer notes.Close()
	w := &watch{notes: notes, dirs: slices.Clone(s.containerDirs), on: map[string]identity{}}
	for i := range s.stores {
		w.dirs = append(w.dirs, s.imagesDir(i))
	}
	if err := w.arm(); err != nil {
		return fmt.Errorf("watching %s: %w", s.name, err)
	}
	tick := time.NewTicker(recheck)
	defer tick.Stop()
	last := s.Stamp()
	changed()
	for {
		var rearm bool
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			rearm = true
		case e, ok := <-notes.Events:
			if !ok {
				return nil
			}
			if filepath.Ext(e.Name) == ".lock" {
				continue // written to by every reader
			}
			rearm = w.concerns(e.Name)
		case _, ok := <-notes.Errors:
			if !ok {
				return nil
			}
			rearm = true // the queue overflowed: events were lost
		}
		if rearm {
			if err := w.arm(); err != nil {
				return fmt.Errorf("watching %s: %w", s.name, err)
			}
		}
		// The events of one write, and those that came while changed ran, are one change.
		if now := s.Stamp(); now != last {
			last = now
			changed()
		}
	}
}

// A watch keeps directories watched while they come and go.
type watch struct {
	notes *fsnotify.Watcher
	dirs  []string
	// on are the directories that are watched: each of dirs that is there, and for each of them the closest directory
	// above, which sees it being made or moved.
	on map[string]identity
}

// concerns says whether something that happened to name may have made or moved one of the directories.
func (w *watch) concerns(name string) bool {
	_, watched := w.on[name]
	return watched || slices.ContainsFunc(w.dirs, func(dir string) bool {
		rel, err := filepath.Rel(name, dir)
		return err == nil && filepath.IsLocal(rel)
	})
}

// arm watches what is there now, and no more what has gone. It is repeated until nothing was made meanwhile.
func (w *watch) arm() error {
	watched := w.notes.WatchList() // without those that have been removed
	maps.DeleteFunc(w.on, func(dir string, _ identity) bool { return !slices.Contains(watched, dir) })
	for again := true; again; {
		again = false
		want := map[string]identity{}
		for _, dir := range w.dirs {
			if id, err := stat(dir); err == nil {
				want[dir] = id
			}
			for above := filepath.Dir(dir); ; above = filepath.Dir(above) {
				if id, err := stat(above); err == nil {
					want[above] = id
					break
				}
				if above == filepath.Dir(above) {
					break
				}
			}
		}
		for dir, id := range w.on {
			if want[dir] != id {
				// Another directory may be there under the same name. EINVAL: the kernel has ended the watch of a removed
				// directory by itself, and the event that says so is still to be read.
				if err := w.notes.Remove(dir); err != nil && !errors.Is(err, fsnotify.ErrNonExistentWatch) && !errors.Is(err, syscall.EINVAL) {
					return err
				}
				delete(w.on, dir)
			}
		}
		for dir, id := range want {
			if _, ok := w.on[dir]; ok {
				continue
			}
			switch err := w.notes.Add(dir); {
			case errors.Is(err, fs.ErrNotExist):
				again = true
			case err != nil:
				return err
			default:
				w.on[dir] = id
				again = true // what was made between the look and the watch
			}
		}
	}
	return nil
}

// stat returns what tells a directory from another one in its place.
func stat(dir string) (identity, error) {
	info, err := os.Stat(dir)
	if err != nil {
		return identity{}, err
	}
	if !info.IsDir() {
		return identity{}, syscall.ENOTDIR
	}
	id := identityIn(info)
	return identity{dev: id.dev, ino: id.ino}, nil
}
