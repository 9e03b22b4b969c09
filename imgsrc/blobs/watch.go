package blobs

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/fsnotify/fsnotify"

	"github.com/imgfs/imgfs/imgsrc"
)

// Watch calls changed after each change of a file in dir whose name is meant, also when it is replaced, until ctx ends: it
// then returns nil. Error: imgsrc.ErrNotFound when the directory goes.
func Watch(ctx context.Context, dir string, meant func(name string) bool, changed func()) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return err
	}
	defer w.Close()
	if err := w.Add(dir); err != nil {
		return err
	}
	changed() // what happened before the watch began
	for {
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-w.Events:
			switch {
			case !ok:
				return fsnotify.ErrClosed
			case e.Name == dir && (e.Has(fsnotify.Remove) || e.Has(fsnotify.Rename)):
				changed()
				return fmt.Errorf("%w: the directory %s was removed or renamed", imgsrc.ErrNotFound, dir)
			case meant(filepath.Base(e.Name)):
				changed()
			}
		case err, ok := <-w.Errors:
			switch {
			case !ok:
				return fsnotify.ErrClosed
			case errors.Is(err, fsnotify.ErrEventOverflow):
				changed()
			default:
				return err
			}
		}
	}
}

// WatchFile is Watch for one file.
func WatchFile(ctx context.Context, file string, changed func()) error {
	name := filepath.Base(file)
	return Watch(ctx, filepath.Dir(file), func(n string) bool { return n == name }, changed)
}
