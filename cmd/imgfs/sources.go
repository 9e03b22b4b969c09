package main

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

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/layer"
	"github.com/imgfs/imgfs/imgsrc/registry"
)

// A transport is one kind of source.
type transport struct {
	name   string // what stands before the colon, as in containers/image
	syntax string // for help
	help   string
	// parse reads what stands behind the colon. Error: imgsrc.ErrInvalid if that is not written as syntax says.
	parse func(rest string) (*spec, error)
	// at is for a directory that is given without a transport: nil if it is not one of this kind. Nil for files.
	at func(dir string) *spec
}

// transports are the kinds of sources there are. A path is the first kind that knows it.
var transports = []transport{
	{
		name:   "containers-storage",
		syntax: "containers-storage:[[DRIVER@]GRAPHROOT[+RUNROOT]]",
		help:   "the store of podman, buildah and CRI-O",
		parse:  parseStorage,
		at:     storageAt,
	},
	{
		name:   "oci",
		syntax: "oci:DIR[:REF]",
		help:   "an OCI image layout, or its images of one name",
		parse:  parseLayout,
		at:     layoutAt,
	},
	{
		name:   "oci-archive",
		syntax: "oci-archive:FILE[:REF]",
		help:   "the same in a tar archive, read in place",
		parse:  parseArchive("oci-archive", openLayoutArchive),
	},
	{
		name:   "docker-archive",
		syntax: "docker-archive:FILE[:REF|:@N]",
		help:   "what docker save and podman save write, read in place",
		parse:  parseArchive("docker-archive", openDockerArchive),
	},
	{
		name:   "dir",
		syntax: "dir:DIR",
		help:   "a directory of one image, as skopeo makes it",
		parse:  parseDir,
		at:     dirAt,
	},
	{
		name:   "docker-daemon",
		syntax: "docker-daemon:[REF]",
		help:   "the images of the Docker engine at DOCKER_HOST",
		parse:  parseDaemon,
	},
	{
		name:   "docker",
		syntax: "docker://HOST[/REPO[:TAG|@DIGEST]]",
		help:   "a registry's image, repository, or all that it lists",
		parse:  parseRegistry,
	},
}

// planned are the other transports of containers/image: known, so that the error can say so.
var planned = []string{
	"sif", "tarball", "atomic", "ostree",
}

// sourceHelp lists the transports for help.
func sourceHelp() string {
	var b strings.Builder
	for _, t := range transports {
		fmt.Fprintf(&b, "  %s\n                 %s\n", t.syntax, t.help)
	}
	b.WriteString("  PATH           a directory or an archive of any of these kinds, recognised by what is in it\n")
	return b.String()
}

// A spec is one SOURCE, understood and not opened.
type spec struct {
	name string   // as a person would type it
	dirs []string // where it lies, as far as that is known: absolute
	open func(ctx context.Context, env sourceEnv) (imgsrc.Source, error)
}

// sourceEnv is what sources are opened with.
type sourceEnv struct {
	registry registry.Options // what all registries have in common
	cache    *layer.Cache
	cacheDir string // the cache's; empty: it keeps nothing
	log      *slog.Logger
}

// sourceError is whatever keeps a source from being opened or listed.
type sourceError struct{ err error }

func (e *sourceError) Error() string { return e.err.Error() }
func (e *sourceError) Unwrap() error { return e.err }

// sourceFailed returns err as a sourceError, unless it is that ctx ended.
func sourceFailed(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return &sourceError{err}
}

// parseSources reads the SOURCEs of a command line; none means the user's own store.
func parseSources(args []string) ([]*spec, error) {
	if len(args) == 0 {
		args = []string{"containers-storage:"}
	}
	var specs []*spec
	for _, arg := range args {
		s, err := parseSource(arg)
		switch {
		case errors.Is(err, imgsrc.ErrInvalid):
			return nil, &usageError{err: fmt.Errorf("source %q: %w", arg, err), command: "imgfs mount"}
		case err != nil:
			return nil, &sourceError{fmt.Errorf("source %q: %w", arg, err)}
		}
		specs = append(specs, s)
	}
	return specs, nil
}

// parseSource reads one SOURCE. Errors: imgsrc.ErrInvalid if it is not written as sources are, and others.
func parseSource(arg string) (*spec, error) {
	name, rest, hasColon := strings.Cut(arg, ":")
	for _, t := range transports {
		if !hasColon || t.name != name {
			continue
		}
		s, err := t.parse(rest)
		if errors.Is(err, imgsrc.ErrInvalid) {
			err = fmt.Errorf("%w (it is written %s)", err, t.syntax)
		}
		return s, err
	}
	if hasColon && slices.Contains(planned, name) {
		return nil, fmt.Errorf("the transport %s is %w; there are %s", name, imgsrc.ErrUnsupported, transportNames())
	}
	info, err := os.Stat(arg)
	switch {
	case arg == "":
		return nil, malformed("it is empty: write a path, or a transport and what is in it")
	case errors.Is(err, fs.ErrNotExist) && hasColon && isThere(name):
		return nil, noSource("for the images of one name in %s write its transport first, as in oci:%s", name, arg)
	case errors.Is(err, fs.ErrNotExist) && hasColon && isTransportName(name):
		return nil, noSource("%q is neither a transport (there are %s) nor the beginning of a path", name, transportNames())
	case errors.Is(err, fs.ErrNotExist):
		return nil, noSource("there is no such file or directory")
	case err != nil:
		return nil, errors.Unwrap(err) // the path is in the message already
	case info.Mode().IsRegular():
		return archiveSpec(arg, arg, "", openAnyArchive)
	case !info.IsDir():
		return nil, noSource("it is neither a directory nor a file")
	}
	abs, err := filepath.Abs(arg)
	if err != nil {
		return nil, err
	}
	for _, t := range transports {
		if t.at == nil {
			continue
		}
		if s := t.at(abs); s != nil {
			return s, nil
		}
	}
	if err := unix.Access(abs, unix.R_OK|unix.X_OK); err != nil {
		return nil, fmt.Errorf("looking into the directory: %w", err)
	}
	return nil, noSource("the directory is neither an OCI image layout (it has no oci-layout), nor a containers-storage (it has no overlay-images or vfs-images), nor skopeo's (it has no manifest.json and version)")
}

// openSources opens sources side by side, so that several that do not answer take no longer than one. With the error, which is
// the first that there was, it returns those that are to be closed.
func openSources(ctx context.Context, specs []*spec, env sourceEnv) ([]imgsrc.Source, error) {
	sources := make([]imgsrc.Source, len(specs))
	g, ctx := errgroup.WithContext(ctx)
	for i, s := range specs {
		g.Go(func() error {
			src, err := s.open(ctx, env)
			if err == nil {
				sources[i] = src
			}
			return err
		})
	}
	err := g.Wait()
	return slices.DeleteFunc(sources, func(src imgsrc.Source) bool { return src == nil }), err
}

// openPlace opens what is to be loaded: a path that is no store, or a place with its transport.
func openPlace(ctx context.Context, place string, env sourceEnv) (imgsrc.Source, error) {
	s, err := parseSource(place)
	switch {
	case err != nil:
		return nil, err
	case strings.HasPrefix(s.name, "containers-storage:"):
		return nil, noSource("%s is a whole store: mount it, and push its images", place)
	}
	return s.open(ctx, env)
}

func transportNames() string {
	var names []string
	for _, t := range transports {
		names = append(names, t.name+":")
	}
	return strings.Join(names, ", ")
}

func isThere(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// isTransportName says whether a word looks like the name of a transport.
func isTransportName(word string) bool {
	return word != "" && strings.Trim(word, "abcdefghijklmnopqrstuvwxyz0123456789-+") == ""
}

// malformed is imgsrc.ErrInvalid, in other words.
func malformed(format string, args ...any) error {
	return imgsrc.Of(imgsrc.ErrInvalid, fmt.Errorf(format, args...))
}

// noSource is imgsrc.ErrNoSource, in other words.
func noSource(format string, args ...any) error {
	return imgsrc.Of(imgsrc.ErrNoSource, fmt.Errorf(format, args...))
}
