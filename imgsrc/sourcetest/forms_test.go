package sourcetest_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/daemon"
	"github.com/imgfs/imgfs/imgsrc/dir"
	"github.com/imgfs/imgfs/imgsrc/dockerarchive"
	"github.com/imgfs/imgfs/imgsrc/layout"
	"github.com/imgfs/imgfs/imgsrc/registry"
	"github.com/imgfs/imgfs/imgsrc/sourcetest"
	"github.com/imgfs/imgfs/imgsrc/storage"
	"github.com/imgfs/imgfs/test/servers"
)

// A maker puts images of a sample into a form.
type maker func(t *testing.T, s *sample, all []*sourcetest.Image) []place

// forms are all that there are.
var forms = []form{
	{name: "oci", make: inPlace},
	{name: "oci-archive", make: ociArchive(false)},
	{name: "oci-archive, compressed", make: ociArchive(true)},
	{name: "docker-archive with a layout", make: dockerSave},
	{
		name: "docker-archive", make: inDockerArchive(false),
		lacks:    isIndex, // it is a list of configs
		unpacked: true, ownManifests: true,
	},
	{name: "docker-archive with compressed layers", make: inDockerArchive(true), lacks: isIndex, ownManifests: true},
	{name: "dir", make: inDirs, names: noNames}, // it has one image, and nowhere to put its name
	{name: "containers-storage, overlay", make: inStore("overlay"), lacks: refused, names: fullNames, unpacked: true, noSparse: true},
	{name: "containers-storage, vfs", make: inStore("vfs"), lacks: refused, names: fullNames, unpacked: true, noSparse: true},
	{name: "docker-daemon", make: inEngine, lacks: refusedByEngine, names: fullNames, unpacked: true, ownManifests: true},
	{name: "docker", make: inRegistry(embedded, false, true)},
	{name: "docker, distribution", make: inRegistry(distribution, false, false)},
	{name: "docker, by tables of contents", make: inRegistry(embedded, true, true), lacks: hasNoTOC, toc: true},
}

func isIndex(img *sourcetest.Image) bool { return img.Lists != nil }

func noNames(*sourcetest.Image) []string { return nil }

// refused says what is in no store and no engine: they take no index for an image, tar-split no name twice in a layer, and
// nobody a layer that cannot be unpacked.
func refused(img *sourcetest.Image) bool {
	return isIndex(img) || named(img, "odd:1", "bad:gzip", "bad:size", "bad:garbage")
}

// refusedByEngine says what an engine does not take beyond that: it also compares the diff ids. And a layer whose tar it cannot
// put together it takes, but does not give out again.
func refusedByEngine(img *sourcetest.Image) bool {
	return refused(img) || named(img, "bad:diffid", "sparse:1")
}

// named says whether an image has one of these names below localhost.
func named(img *sourcetest.Image, names ...string) bool {
	return slices.ContainsFunc(names, func(name string) bool { return slices.Contains(img.Names, "localhost/"+name) })
}

// hasNoTOC says which images have no layers with tables of contents. What they share with those that have some would be in
// the cache, as a tar.
func hasNoTOC(img *sourcetest.Image) bool {
	return !slices.ContainsFunc(img.Layers, func(l sourcetest.Layer) bool { return len(l.Annotations) > 0 })
}

// one is a single place with all images.
func one[S imgsrc.Source](all []*sourcetest.Image, open func(context.Context) (S, error)) []place {
	return []place{{images: all, open: func(t *testing.T) imgsrc.Source {
		t.Helper()
		s, err := open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return s
	}}}
}

// inPlace is the layout, or a copy, so that its names can be changed.
func inPlace(t *testing.T, s *sample, all []*sourcetest.Image) []place {
	at := filepath.Join(t.TempDir(), "layout")
	if err := os.CopyFS(at, os.DirFS(s.dir)); err != nil {
		t.Fatal(err)
	}
	o := layout.Options{Dir: at, Cache: cacheOf(t), Log: discard}
	p := one(all, func(ctx context.Context) (*layout.Source, error) { return layout.Open(ctx, o) })
	p[0].newName, p[0].badNames = "new:2", []string{"", "a\x00b", strings.Repeat("x", 5000)}
	return p
}

func ociArchive(zip bool) maker {
	return func(t *testing.T, s *sample, all []*sourcetest.Image) []place {
		o := layout.Options{Dir: packDir(t, s.dir, zip), Cache: cacheOf(t), Log: discard}
		return one(all, func(ctx context.Context) (imgsrc.Source, error) { return layout.OpenArchive(ctx, "oci-archive", o) })
	}
}

func dockerSave(t *testing.T, s *sample, all []*sourcetest.Image) []place {
	return openDockerArchive(t, packDir(t, s.dir, false), all)
}

func inDockerArchive(compressed bool) maker {
	return func(t *testing.T, _ *sample, all []*sourcetest.Image) []place {
		return openDockerArchive(t, dockerArchive(t, all, compressed), all)
	}
}

func openDockerArchive(t *testing.T, file string, all []*sourcetest.Image) []place {
	o := dockerarchive.Options{File: file, Cache: cacheOf(t), Log: discard}
	return one(all, func(ctx context.Context) (imgsrc.Source, error) { return dockerarchive.Open(ctx, o) })
}

// noReferences are no names where those are full references.
var noReferences = []string{"", "UPPER", "a b", "localhost/a@sha256:" + strings.Repeat("0", 64), strings.Repeat("x", 300)}

func inDirs(t *testing.T, _ *sample, all []*sourcetest.Image) []place {
	var places []place
	c := cacheOf(t)
	for _, img := range all {
		o := dir.Options{Dir: imageDir(t, img), Cache: c, Log: discard}
		places = append(places, one(append([]*sourcetest.Image{img}, img.Lists...), func(ctx context.Context) (*dir.Source, error) { return dir.Open(ctx, o) })...)
	}
	return places
}

func inStore(driver string) maker {
	return func(t *testing.T, s *sample, all []*sourcetest.Image) []place {
		r := newStore(t, driver)
		for _, img := range all {
			if err := r.take(t, img); err != nil {
				t.Fatal(err)
			}
		}
		for _, img := range s.images {
			if refused(img) && !isIndex(img) && r.take(t, img) == nil {
				t.Errorf("a store takes %q after all", img.Names)
			}
		}
		o := storage.Options{GraphRoot: r.root, RunRoot: r.run, Driver: driver, Log: discard}
		p := one(all, func(ctx context.Context) (*storage.Source, error) { return storage.Open(ctx, o) })
		p[0].newName, p[0].badNames = "localhost/new:2", noReferences
		return p
	}
}

func inEngine(t *testing.T, s *sample, all []*sourcetest.Image) []place {
	d, cacheDir := servers.StartDockerd(t), t.TempDir()
	if err := load(t, d, all...); err != nil {
		t.Fatal(err)
	}
	for _, img := range s.images {
		if refusedByEngine(img) && !isIndex(img) && !named(img, "sparse:1") && load(t, d, img) == nil {
			t.Errorf("an engine takes %q after all", img.Names)
		}
	}
	o := daemon.Options{Host: d.Host, Cache: cacheIn(t, cacheDir), CacheDir: cacheDir, Log: discard}
	p := one(all, func(ctx context.Context) (*daemon.Source, error) { return daemon.Open(ctx, o) })
	p[0].newName, p[0].badNames = "localhost/new:2", append([]string{strings.Repeat("a", 64)}, noReferences...)
	readOnce(t, p[0].open(t)) // digests are known when each image has been saved once
	return p
}

func embedded(t *testing.T) string { return servers.Serve(t, servers.NewRegistry()) }

func distribution(t *testing.T) string { return servers.Distribution(t, "") }

// inRegistry pushes images to the registry that start starts. What is in the cache when it is first looked at is shown as the
// tar that it is, and else by the table of contents. Not every registry untags.
func inRegistry(start func(*testing.T) string, toc, untags bool) maker {
	return func(t *testing.T, _ *sample, all []*sourcetest.Image) []place {
		host, shared := start(t), t.TempDir()
		fillRegistry(t, host, all)
		p := place{images: all, names: func(img *sourcetest.Image) []string { return remoteNames(host, img) }}
		p.open = func(t *testing.T) imgsrc.Source {
			o := registry.Options{Ref: host, CacheDir: shared, AuthFile: authFile(t), Log: discard}
			if toc {
				o.CacheDir = t.TempDir()
			}
			o.Cache = cacheIn(t, o.CacheDir)
			s, err := registry.Open(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		p.badNames = []string{"web:1", "1", "other.example.org/a:1", host + "/UPPER:1", host + "/a@sha256:" + strings.Repeat("0", 64), "docker://" + host + "/a:1", host}
		if untags {
			p.newName = host + "/app:new"
		}
		if !toc {
			readOnce(t, p.open(t))
		}
		return []place{p}
	}
}

// readOnce reads all that an image has.
func readOnce(t *testing.T, s imgsrc.Source) {
	t.Helper()
	defer s.Close()
	l, err := s.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, img := range l.Images {
		f, err := imgsrc.Load(t.Context(), img)
		if err != nil {
			t.Fatal(err)
		}
		for n := range f.Layers {
			c, err := img.Diff(t.Context(), n)
			if err != nil {
				t.Fatal(err)
			}
			_, err = c.Size(t.Context())
			if errors.Is(err, imgsrc.ErrDamaged) {
				err = nil // what is to be so is for the suite to say
			}
			if err := errors.Join(err, c.Close()); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// authFile has no credentials, unlike perhaps that of whoever runs the test.
func authFile(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "auth.json")
	if err := os.WriteFile(file, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}
