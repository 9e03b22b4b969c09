package ops

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"go.podman.io/image/v5/directory"
	"go.podman.io/image/v5/docker/archive"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/oci/layout"
	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
)

// moveNew moves a file to a place where nothing is. Error: imgsrc.ErrExists.
func moveNew(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) { // not on this file system
		err = os.Link(from, to)
	}
	if errors.Is(err, fs.ErrExist) {
		return errInWay(to)
	}
	return err
}

// commitFile is moveNew, of a file that somebody still wants. Errors: imgsrc.Commit's as well.
func commitFile(ctx context.Context, from, to string) error {
	if err := imgsrc.Commit(ctx); err != nil {
		return err
	}
	return moveNew(from, to)
}

func errInWay(path string) error {
	return fail(imgsrc.ErrExists, "%s is there already: remove it, or name another", quote(path))
}

// checkNew fails if there is something at path, or no directory to put it in.
func checkNew(path string) error {
	switch _, err := os.Lstat(path); {
	case err == nil:
		return errInWay(path)
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	return checkParent(path)
}

func checkParent(path string) error {
	_, err := os.Stat(filepath.Dir(path))
	return err
}

// A dockerArchive is a file as `docker save` makes it.
type dockerArchive struct {
	path string
	tag  reference.NamedTagged // nil: none
}

func parseDockerArchive(rest string, resolve pathResolver) (destination, error) {
	path, tag, tagged := strings.Cut(rest, ":")
	path, err := resolve(path)
	if err != nil {
		return nil, err
	}
	d := &dockerArchive{path: path}
	if tagged {
		if d.tag, err = parseTagged(tag); err != nil {
			return nil, err
		}
	}
	return d, noColon(path)
}

// noColon fails for a path with a colon: the library takes what follows for a name.
func noColon(path string) error {
	if strings.Contains(path, ":") {
		return fail(imgsrc.ErrInvalid, "%s: the path of an archive or a layout must have no colon in it", quote(path))
	}
	return nil
}

func (d *dockerArchive) kind() *kind           { return dockFileKind }
func (d *dockerArchive) check() error          { return checkNew(d.path) }
func (d *dockerArchive) hint(err error) string { return localHint(err) }
func (d *dockerArchive) String() string {
	if d.tag == nil {
		return "docker-archive:" + d.path
	}
	return "docker-archive:" + d.path + ":" + d.tag.String()
}

func (d *dockerArchive) stage(_ context.Context, s staging) (staged, error) {
	dir, discard, err := stageBeside(d.path, s.log)
	if err != nil {
		return staged{}, err
	}
	s.sys.BigFilesTemporaryDir = dir // for a layer of which the source cannot tell the size
	file := filepath.Join(dir, "archive.tar")
	ref, err := archive.NewReference(file, d.tag)
	return staged{ref: ref, commit: func(ctx context.Context) error { return commitFile(ctx, file, d.path) }, discard: func(error) { discard() }}, err
}

// A plainDir is a directory with a manifest and its blobs.
type plainDir struct{ path string }

func parseDir(rest string, resolve pathResolver) (destination, error) {
	path, err := resolve(rest)
	return &plainDir{path}, err
}

func (d *plainDir) kind() *kind           { return dirKind }
func (d *plainDir) String() string        { return "dir:" + d.path }
func (d *plainDir) hint(err error) string { return localHint(err) }

// check lets an empty directory be: that is how mktemp -d hands one over.
func (d *plainDir) check() error {
	entries, err := os.ReadDir(d.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return checkParent(d.path)
	case errors.Is(err, unix.ENOTDIR), err == nil && len(entries) > 0:
		return errInWay(d.path)
	}
	return err
}

func (d *plainDir) stage(_ context.Context, s staging) (staged, error) {
	dir, discard, err := stageBeside(d.path, s.log)
	if err != nil {
		return staged{}, err
	}
	made := filepath.Join(dir, "dir")
	ref, err := directory.NewReference(made)
	return staged{ref: ref, commit: func(ctx context.Context) error {
		if err := imgsrc.Commit(ctx); err != nil {
			return err
		}
		err := unix.Rename(made, d.path) // over an empty directory, and no other
		if errors.Is(err, fs.ErrExist) || errors.Is(err, unix.ENOTDIR) {
			return errInWay(d.path)
		}
		return err
	}, discard: func(error) { discard() }}, err
}

// An ociArchive is an OCI layout in a tar file.
type ociArchive struct{ path, name string }

func parseOCIArchive(rest string, resolve pathResolver) (destination, error) {
	path, name, err := parseNamed(rest, resolve)
	return &ociArchive{path, name}, err
}

// parseNamed parses PATH[:NAME].
func parseNamed(rest string, resolve pathResolver) (path, name string, err error) {
	path, name, _ = strings.Cut(rest, ":")
	if path, err = resolve(path); err != nil {
		return "", "", err
	}
	if err := noColon(path); err != nil {
		return "", "", err
	}
	if _, err := layout.NewReference("/", name); err != nil {
		return "", "", fail(imgsrc.ErrInvalid, "%s cannot be the name of an image in a layout", quote(name))
	}
	return path, name, nil
}

func named(transport, path, name string) string {
	if name == "" {
		return transport + path
	}
	return transport + path + ":" + name
}

func (d *ociArchive) kind() *kind           { return ociFileKind }
func (d *ociArchive) String() string        { return named("oci-archive:", d.path, d.name) }
func (d *ociArchive) check() error          { return checkNew(d.path) }
func (d *ociArchive) hint(err error) string { return localHint(err) }

// stage writes a layout, and commit packs it: the library's own oci-archive does the same, in a temporary directory that
// may be too small, and cannot be cancelled while it packs.
func (d *ociArchive) stage(_ context.Context, s staging) (staged, error) {
	dir, discard, err := stageBeside(d.path, s.log)
	if err != nil {
		return staged{}, err
	}
	made, file := filepath.Join(dir, "layout"), filepath.Join(dir, "archive.tar")
	ref, err := layout.NewReference(made, d.name)
	return staged{ref: ref, commit: func(ctx context.Context) error {
		if err := pack(ctx, made, file); err != nil {
			return err
		}
		return commitFile(ctx, file, d.path)
	}, discard: func(error) { discard() }}, err
}
