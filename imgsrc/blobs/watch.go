package blobs

import (
	"context"
	"errors"
	"path/filepath"

	"github.com/fsnotify/fsnotify"
)

// WatchFile calls changed after each change of a file, also when it is replaced, until ctx ends. It then returns nil.
func WatchFile(ctx context.Context, file string, changed func()) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return err
	}
	defer w.Close()
	if err := w.Add(filepath.Dir(file)); err != nil {
		return err
	}
	changed() // what happened before the watch began
	for {
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-w.Events:
			if !ok {
				return fsnotify.ErrClosed
			}
			if e.Name == file {
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
