package blobs

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
)

// comeBack is how often to look for a directory that has gone.
const comeBack = time.Second

// Watch calls changed after each change of a file in dir whose name is meant, also when it is replaced, until ctx ends: it
// then returns nil. When the directory goes it waits for another one there. Errors: the system's.
func Watch(ctx context.Context, dir string, meant func(name string) bool, changed func()) error {
	for again := false; ; again = true {
		err := watch(ctx, dir, meant, changed)
		gone := errors.Is(err, errGone) || again && errors.Is(err, fs.ErrNotExist)
		if !gone {
			return err
		}
		for !isDir(dir) {
			select {
			case <-time.After(comeBack):
			case <-ctx.Done():
				return nil
			}
		}
	}
}

func isDir(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.IsDir()
}

var errGone = errors.New("the directory was removed or renamed")

func watch(ctx context.Context, dir string, meant func(name string) bool, changed func()) error {
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
				return errGone
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
