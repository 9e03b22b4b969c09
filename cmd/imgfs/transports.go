package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/blobs"
	"github.com/imgfs/imgfs/imgsrc/daemon"
	"github.com/imgfs/imgfs/imgsrc/dir"
	"github.com/imgfs/imgfs/imgsrc/dockerarchive"
	"github.com/imgfs/imgfs/imgsrc/layout"
	"github.com/imgfs/imgfs/imgsrc/registry"
	"github.com/imgfs/imgfs/imgsrc/storage"
)

// parseStorage reads [driver@]graphroot[+runroot], also in the brackets that containers/image puts around it.
func parseStorage(rest string) (*spec, error) {
	if inner, ok := strings.CutPrefix(rest, "["); ok {
		var image string
		rest, image, ok = strings.Cut(inner, "]")
		if !ok {
			return nil, malformed("the bracket is not closed")
		}
		if image != "" {
			return nil, fmt.Errorf("one image of a store is %w as a source; the whole store is", imgsrc.ErrUnsupported)
		}
	}
	if rest == "" {
		return storageSpec("containers-storage:", storage.Options{}), nil
	}
	name := "containers-storage:" + rest
	var o storage.Options
	if driver, path, ok := strings.Cut(rest, "@"); ok && !strings.Contains(driver, "/") {
		o.Driver, rest = driver, path
	}
	var ok bool
	if o.GraphRoot, o.RunRoot, ok = strings.Cut(rest, "+/"); ok {
		o.RunRoot = "/" + o.RunRoot
	}
	if !filepath.IsAbs(o.GraphRoot) {
		return nil, malformed("%q is not the absolute path of a store", o.GraphRoot)
	}
	return storageSpec(name, o), nil
}

func storageAt(dir string) *spec {
	for _, name := range []string{"overlay-images", "vfs-images"} {
		if info, err := os.Stat(filepath.Join(dir, name)); err == nil && info.IsDir() {
			return storageSpec("containers-storage:"+dir, storage.Options{GraphRoot: dir})
		}
	}
	return nil
}

func storageSpec(name string, o storage.Options) *spec {
	s := &spec{name: name}
	for _, dir := range []string{o.GraphRoot, o.RunRoot} {
		if dir != "" {
			s.dirs = append(s.dirs, dir)
		}
	}
	s.open = func(ctx context.Context, env sourceEnv) (imgsrc.Source, error) {
		o.Log = env.log
		return storage.Open(ctx, o)
	}
	return s
}

// parseLayout reads DIR[:REF]. A directory with a colon in its name is found too, if it is there.
func parseLayout(rest string) (*spec, error) {
	dir, ref := rest, ""
	if info, err := os.Stat(rest); err != nil || !info.IsDir() {
		dir, ref, _ = strings.Cut(rest, ":")
	}
	if dir == "" {
		return nil, malformed("the name of the directory is missing")
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	return layoutSpec(abs, ref), nil
}

func layoutAt(dir string) *spec {
	if info, err := os.Stat(filepath.Join(dir, "oci-layout")); err != nil || !info.Mode().IsRegular() {
		return nil
	}
	return layoutSpec(dir, "")
}

func layoutSpec(dir, ref string) *spec {
	name := "oci:" + dir
	if ref != "" {
		name += ":" + ref
	}
	return &spec{
		name: name,
		dirs: []string{dir},
		open: func(ctx context.Context, env sourceEnv) (imgsrc.Source, error) {
			return layout.Open(ctx, layout.Options{Dir: dir, Ref: ref, Cache: env.cache, Log: env.log})
		},
	}
}

// An archiveOpener opens an archive, or its images of one name.
type archiveOpener func(ctx context.Context, file, ref string, env sourceEnv) (imgsrc.Source, error)

// parseArchive reads FILE[:REF]. A file with a colon in its name is found too, if it is there.
func parseArchive(transport string, open archiveOpener) func(rest string) (*spec, error) {
	return func(rest string) (*spec, error) {
		file, ref := rest, ""
		if _, err := os.Stat(rest); err != nil {
			file, ref, _ = strings.Cut(rest, ":")
		}
		if file == "" {
			return nil, malformed("the name of the file is missing")
		}
		return archiveSpec(transport+":"+rest, file, ref, open)
	}
}

func archiveSpec(name, file, ref string, open archiveOpener) (*spec, error) {
	abs, err := filepath.Abs(file)
	if err != nil {
		return nil, err
	}
	return &spec{
		name: name,
		dirs: []string{abs},
		open: func(ctx context.Context, env sourceEnv) (imgsrc.Source, error) {
			src, err := open(ctx, abs, ref, env)
			if errors.Is(err, io.ErrUnexpectedEOF) && errors.Is(err, imgsrc.ErrDamaged) {
				err = fmt.Errorf("%w: copy it again", err)
			}
			return src, err
		},
	}, nil
}

func openLayoutArchive(ctx context.Context, file, ref string, env sourceEnv) (imgsrc.Source, error) {
	return layout.OpenArchive(ctx, "oci-archive", layout.Options{Dir: file, Ref: ref, Cache: env.cache, Log: env.log})
}

func openDockerArchive(ctx context.Context, file, ref string, env sourceEnv) (imgsrc.Source, error) {
	return dockerarchive.Open(ctx, dockerarchive.Options{File: file, Ref: ref, Cache: env.cache, Log: env.log})
}

// openAnyArchive tells the kind of an archive by what is in it.
func openAnyArchive(ctx context.Context, file, ref string, env sourceEnv) (imgsrc.Source, error) {
	t, err := blobs.OpenTar(ctx, file, env.cache)
	if err != nil {
		return nil, err
	}
	if _, err := t.Stat("oci-layout"); err == nil {
		return layout.NewArchive(ctx, "oci-archive", t, layout.Options{Ref: ref, Cache: env.cache, Log: env.log})
	}
	if _, err := t.Stat("manifest.json"); errors.Is(err, imgsrc.ErrDamaged) && t.Rest() != nil {
		err = fmt.Errorf("opening archive %s: %w: neither oci-layout nor manifest.json is in what can be read of it: %w", file, imgsrc.ErrDamaged, t.Rest())
		return nil, errors.Join(err, t.Close())
	}
	src, err := dockerarchive.New(ctx, t, dockerarchive.Options{Ref: ref, Cache: env.cache, Log: env.log})
	if errors.Is(err, imgsrc.ErrNoSource) {
		return nil, fmt.Errorf("%w: if it is the tar of a root file system, mount what is to take it as an image, and `echo FILE > MOUNTPOINT/load`", err)
	}
	if err != nil {
		return nil, err
	}
	return src, nil
}

func parseDir(rest string) (*spec, error) {
	if rest == "" {
		return nil, malformed("the name of the directory is missing")
	}
	abs, err := filepath.Abs(rest)
	if err != nil {
		return nil, err
	}
	return dirSpec(abs), nil
}

func dirAt(path string) *spec {
	if !dir.Is(path) {
		return nil
	}
	return dirSpec(path)
}

func dirSpec(path string) *spec {
	return &spec{
		name: "dir:" + path,
		dirs: []string{path},
		open: func(ctx context.Context, env sourceEnv) (imgsrc.Source, error) {
			return dir.Open(ctx, dir.Options{Dir: path, Cache: env.cache, Log: env.log})
		},
	}
}

func parseDaemon(ref string) (*spec, error) {
	if ref != "" && !daemon.IsRef(ref) {
		return nil, malformed("%q is neither an image's name nor an id", ref)
	}
	return &spec{
		name: "docker-daemon:" + ref,
		open: func(ctx context.Context, env sourceEnv) (imgsrc.Source, error) {
			return daemon.Open(ctx, daemon.Options{Ref: ref, Cache: env.cache, CacheDir: env.cacheDir, Log: env.log})
		},
	}, nil
}

func parseRegistry(rest string) (*spec, error) {
	ref, ok := strings.CutPrefix(rest, "//")
	switch {
	case !ok:
		return nil, malformed("the // before the host is missing")
	case ref == "":
		return nil, malformed("the host is missing")
	}
	if err := registry.CheckRef(ref); err != nil {
		return nil, err
	}
	return &spec{
		name: "docker://" + ref,
		open: func(ctx context.Context, env sourceEnv) (imgsrc.Source, error) {
			o := env.registry
			o.Ref = ref
			return registry.Open(ctx, o)
		},
	}, nil
}
