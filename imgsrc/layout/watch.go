package layout

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/fsnotify/fsnotify"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/imgfs/imgfs/imgsrc"
)

// Watch watches the layout's directory for changes of index.json, which tools write in place or replace. Error:
// imgsrc.ErrNotFound when the directory goes.
func (s *Source) Watch(ctx context.Context, changed func()) error {
	err := s.watch(ctx, changed)
	if err != nil {
		return fmt.Errorf("watching %s: %w", s.Name(), err)
	}
	return nil
}

func (s *Source) watch(ctx context.Context, changed func()) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return err
	}
	defer w.Close()
	if err := w.Add(s.dir); err != nil {
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
			case e.Name == s.dir && (e.Has(fsnotify.Remove) || e.Has(fsnotify.Rename)):
				changed()
				return fmt.Errorf("%w: the directory was removed or renamed", imgsrc.ErrNotFound)
			case filepath.Base(e.Name) == v1.ImageIndexFile:
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
