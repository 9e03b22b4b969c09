package storage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"go.podman.io/storage/types"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/flight"
)

// Options say which store to open. With GraphRoot, RunRoot and Driver empty it is the user's own, as storage.conf and
// the environment have it.
type Options struct {
	// GraphRoot is the store's directory ("/var/lib/containers/storage").
	GraphRoot string
	// RunRoot is where the store keeps what a reboot may take; the user's own if empty.
	RunRoot string
	// Driver is "overlay" or "vfs"; if empty, the one that the store was made with.
	Driver string
	// DriverOptions are the driver's, as storage.conf and a store's reference have them ("overlay.mountopt=nodev"), in place of
	// those of the configuration; only root can give any.
	DriverOptions []string
	// Log takes what goes wrong inside the package itself; nil for none. Everything else is returned.
	Log *slog.Logger
}

// drivers are the graph drivers whose layers can be read, the more usual one first.
var drivers = []string{"overlay", "vfs"}

// Source is a containers-storage store. It implements [imgsrc.Tagger].
type Source struct {
	log    *slog.Logger
	name   string
	driver string
	// stores are the directories that hold images and layers, in the order in which they are searched. The first is the
	// one that names are written to; the rest are read only.
	stores []string
	// containerDirs are where the lists of containers may be.
	containerDirs []string
	// real is how the library opens the store for a write.
	real types.StoreOptions

	work   *flight.Group
	bodies *bodies
	blocks *blockCache
	// verified are the large files that were found right.
	verified *verified

	listMu sync.Mutex
	listed map[manifestKey]*cached // guarded by listMu

	layersMu sync.Mutex
	layers   *layerTable // guarded by layersMu

	indexMu sync.Mutex
	indexes *lru[layerKey, *layerIndex] // guarded by indexMu

	opener, writer *keeper // work on an ordinary user's own store; nil for root, and for others' stores

	tagMu sync.Mutex // one write at a time

	lockedTime time.Duration // how long an image that is received waits for others, who have the store locked

	strays *strays
}

var _ imgsrc.Tagger = (*Source)(nil)

// Open opens a store for reading. It writes nothing, and holds nothing of the store open.
//
// Errors: [imgsrc.ErrNoSource] if there is no store or the driver is not supported; [fs.ErrPermission].
func Open(ctx context.Context, o Options) (*Source, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	conf, confErr := types.DefaultStoreOptions()
	if confErr != nil && o.GraphRoot == "" {
		return nil, fmt.Errorf("reading the configuration of containers-storage: %w", confErr)
	}
	return open(o, conf)
}

// open is Open with the user's configuration.
func open(o Options, conf types.StoreOptions) (*Source, error) {
	s := &Source{
		log:    o.Log,
		name:   "containers-storage:",
		listed: map[manifestKey]*cached{},

		lockedTime: lockedTime,
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	var err error
	if s.real, err = effective(o, conf); err != nil {
		return nil, err
	}
	root := s.real.GraphRoot
	if s.driver, err = detect(root, s.real.GraphDriverName, s.real.ImageStore); err != nil {
		return nil, err
	}
	s.real.GraphDriverName = s.driver
	if o.GraphRoot != "" || o.RunRoot != "" || o.Driver != "" {
		s.name = fmt.Sprintf("containers-storage:[%s@%s+%s]", s.driver, root, s.real.RunRoot)
	}
	if s.real.ImageStore != "" {
		s.stores = append(s.stores, s.real.ImageStore)
	}
	s.stores = append(s.stores, root)
	for _, dir := range additionalStores(s.driver, s.real.GraphDriverOptions) {
		if !slices.Contains(s.stores, dir) {
			s.stores = append(s.stores, dir)
		}
	}
	for _, dir := range []string{root, s.real.RunRoot} {
		if dir != "" {
			s.containerDirs = append(s.containerDirs, filepath.Join(dir, s.driver+"-containers"))
		}
	}
	if uid := os.Geteuid(); uid != 0 && owner(root) == uid {
		if len(o.DriverOptions) > 0 {
			return nil, fmt.Errorf("opening store %s: only root can give options to a store: write them into storage.conf, in place of %s: %w",
				root, strings.Join(o.DriverOptions, ","), imgsrc.ErrUnsupported)
		}
		s.opener, s.writer = newOpener(s.real, s.log), newWriter(s.real, s.log)
	}
	s.strays = newStrays(strayAge, s.removeStrays)
	s.work = flight.New("containers-storage", s.log)
	s.bodies = newBodies()
	s.verified = newVerified()
	if s.blocks, err = newBlockCache(); err != nil {
		return nil, err
	}
	s.indexes = newLRU[layerKey, *layerIndex](indexBudget, nil)
	return s, nil
}

// effective fills what o leaves open from the user's configuration. The options of the configuration, additional stores
// among them, belong to the configured graph root and to no other: podman sees it so.
func effective(o Options, conf types.StoreOptions) (types.StoreOptions, error) {
	graphRoot, runRoot := o.GraphRoot, o.RunRoot
	if graphRoot == "" {
		graphRoot = conf.GraphRoot
	}
	if runRoot == "" {
		runRoot = conf.RunRoot
	}
	for _, dir := range []*string{&graphRoot, &runRoot} {
		if *dir == "" {
			continue
		}
		abs, err := filepath.Abs(*dir)
		if err != nil {
			return types.StoreOptions{}, fmt.Errorf("opening store %s: %w", *dir, err)
		}
		*dir = abs
	}
	opts := types.StoreOptions{GraphDriverName: o.Driver}
	if graphRoot == filepath.Clean(conf.GraphRoot) && (o.Driver == "" || conf.GraphDriverName == "" || o.Driver == conf.GraphDriverName) {
		opts = conf
		if o.Driver != "" {
			opts.GraphDriverName = o.Driver
		}
	}
	opts.GraphRoot, opts.RunRoot = graphRoot, runRoot
	if len(o.DriverOptions) > 0 {
		opts.GraphDriverOptions = slices.Clone(o.DriverOptions)
	}
	return opts, nil
}

// detect returns the driver that the store at root was made with, which is want if that is not empty.
func detect(root, want, imageStore string) (string, error) {
	if want == "overlay2" {
		want = "overlay"
	}
	if want != "" && !slices.Contains(drivers, want) {
		return "", noStore("opening store %s: its driver %q cannot be read, only %s can", root, want, strings.Join(drivers, " and "))
	}
	switch info, err := os.Stat(root); {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return "", noStore("opening store %s: there is no such directory; podman and buildah make it with their first image", root)
	case err != nil:
		return "", fmt.Errorf("opening store: %w", err)
	case !info.IsDir():
		return "", noStore("opening store %s: it is not a directory", root)
	}
	var found []string
	var used time.Time
	newest := ""
	for _, dir := range []string{imageStore, root} {
		if dir == "" {
			continue
		}
		for _, d := range drivers {
			info, err := os.Stat(filepath.Join(dir, d+"-images"))
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return "", fmt.Errorf("opening store: %w", err)
			}
			if err == nil && info.IsDir() {
				found = append(found, d)
				list, err := os.Stat(filepath.Join(dir, d+"-images", "images.json"))
				if err == nil && list.ModTime().After(used) {
					used, newest = list.ModTime(), d
				}
			}
		}
	}
	switch {
	case want != "" && slices.Contains(found, want):
		return want, nil
	case want != "" && len(found) > 0:
		return "", noStore("opening store %s: it was made with the driver %s, not with %s", root, found[0], want)
	case newest != "":
		// A machine that has changed its driver has both. podman goes on with that of its database, which is in use.
		return newest, nil
	case len(found) > 0:
		return found[0], nil
	}
	return "", noStore("opening store %s: it is not a store, or has none of the drivers that can be read (%s); podman and buildah make one with their first image",
		root, strings.Join(drivers, ", "))
}

func noStore(format string, args ...any) error {
	return imgsrc.Of(imgsrc.ErrNoSource, fmt.Errorf(format, args...))
}

// owner returns whose a directory is; -1 if that cannot be told.
func owner(dir string) int {
	info, err := os.Stat(dir)
	if err != nil {
		return -1
	}
	return int(info.Sys().(*syscall.Stat_t).Uid)
}

// additionalStores returns the additional image stores among a driver's options ("overlay.imagestore=/usr/lib/images").
func additionalStores(driver string, options []string) []string {
	var dirs []string
	for _, option := range options {
		key, value, _ := strings.Cut(option, "=")
		if prefix, rest, dotted := strings.Cut(key, "."); dotted {
			if prefix != "" && prefix != driver && prefix != driver+"2" {
				continue
			}
			key = rest
		}
		if key != "imagestore" && key != "additionalimagestore" {
			continue
		}
		for dir := range strings.SplitSeq(value, ",") {
			if filepath.IsAbs(dir) {
				dirs = append(dirs, filepath.Clean(dir))
			}
		}
	}
	return dirs
}

// Name returns "containers-storage:" for the user's own store, and else the store's place as skopeo takes it:
// "containers-storage:[overlay@/srv/store+/run/store]".
func (s *Source) Name() string { return s.name }

// Dirs returns the directories that the store's images and layers lie in.
func (s *Source) Dirs() []string { return slices.Clone(s.stores) }

// Files implements [imgsrc.Placed].
func (s *Source) Files() []string { return s.Dirs() }

// Close stops the work that is under way and closes the files that are open. What was opened from the source fails from
// then on with [fs.ErrClosed].
func (s *Source) Close() error {
	s.work.Close()
	s.strays.close()
	if s.opener != nil {
		s.writer.close()
		s.opener.close()
	}
	s.indexMu.Lock()
	s.indexes.clear()
	s.indexMu.Unlock()
	s.bodies.close()
	s.blocks.close()
	return nil
}

// imagesDir is where the i-th store keeps images.json and a directory for each image.
func (s *Source) imagesDir(i int) string { return filepath.Join(s.stores[i], s.driver+"-images") }

// layersDir is where the i-th store keeps layers.json and the tar-split files.
func (s *Source) layersDir(i int) string { return filepath.Join(s.stores[i], s.driver+"-layers") }

// diffDir is the directory of a layer's files in the i-th store: what the layer alone has with overlay, everything down
// to the base with vfs.
func (s *Source) diffDir(i int, id string) string {
	if s.driver == "vfs" {
		return filepath.Join(s.stores[i], "vfs", "dir", id)
	}
	return filepath.Join(s.stores[i], s.driver, id, "diff")
}
