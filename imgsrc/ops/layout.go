package ops

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/oci/layout"
	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/indexjson"
)

// A layoutDir is a name in an OCI layout that may have other images in it.
type layoutDir struct{ path, name string }

func parseLayout(rest string, resolve pathResolver) (destination, error) {
	path, name, err := parseNamed(rest, resolve)
	return &layoutDir{path, name}, err
}

func (d *layoutDir) kind() *kind           { return layoutKind }
func (d *layoutDir) String() string        { return named("oci:", d.path, d.name) }
func (d *layoutDir) hint(err error) string { return localHint(err) }

// check accepts a layout, an empty directory, one into which other pushes are on their way, and nothing at all.
func (d *layoutDir) check() error {
	entries, err := os.ReadDir(d.path)
	entries = slices.DeleteFunc(entries, func(e fs.DirEntry) bool {
		return strings.HasPrefix(e.Name(), stagingPrefix) || e.Name() == indexjson.Temp
	})
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return checkParent(d.path)
	case errors.Is(err, unix.ENOTDIR):
		return errInWay(d.path)
	case err != nil || len(entries) == 0:
		return err
	}
	if _, err := os.Stat(filepath.Join(d.path, imgspecv1.ImageLayoutFile)); err != nil {
		return fail(imgsrc.ErrExists, "%s is there already, and is no OCI layout: name another directory", quote(d.path))
	}
	return nil
}

// stage makes a layout of its own inside the directory, on the same file system as its blobs. Those that are there already,
// and would be copied as they are, stay where they are.
func (d *layoutDir) stage(ctx context.Context, s staging) (staged, error) {
	return d.stageWith(s.openLayout(ctx, d.path, s.blobs), s.log)
}

// stageWith is stage where some blobs are there already; there is nil if none is.
func (d *layoutDir) stageWith(there *present, log *slog.Logger) (_ staged, err error) {
	made := os.Mkdir(d.path, 0o755) == nil
	own, clean, err := stageIn(d.path, log)
	discard := func(error) {
		clean()
		there.close()
		if made {
			_ = os.Remove(d.path) // if it is empty: nothing was pushed here
		}
	}
	if err != nil {
		discard(err)
		return staged{}, err
	}
	ref, err := layout.NewReference(own, d.name)
	if err == nil && there != nil {
		ref = &layoutRef{ImageReference: ref, present: there}
	}
	return staged{ref: ref, commit: func(ctx context.Context) error { return d.merge(ctx, own, there) }, discard: discard}, err
}

// merge moves the image of the layout own into this one. The index is replaced in one step, last of all; a reader sees
// it with the image or without, and what other programs write to it at the same time is not lost. Error: errGone if what
// the image counts on is not there any more.
func (d *layoutDir) merge(ctx context.Context, own string, there *present) error {
	added, err := os.ReadFile(filepath.Join(own, imgspecv1.ImageIndexFile))
	if err != nil {
		return err
	}
	root, err := os.OpenRoot(d.path)
	if err != nil {
		return err
	}
	defer root.Close()
	return indexjson.Update(ctx, root, func() (was, text []byte, err error) {
		if was, err = indexjson.Read(ctx, root); err != nil {
			return nil, nil, fmt.Errorf("reading the index of %s: %w", quote(d.path), err)
		}
		text, err = d.withImages(was, added)
		return was, text, err
	}, func() error {
		if err := there.still(ctx); err != nil {
			return err
		}
		return d.moveIn(own)
	})
}

// withImages returns an index with those of another one in it. The first is nil if there is none yet.
func (d *layoutDir) withImages(was, added []byte) ([]byte, error) {
	more, err := parseIndex(added)
	if err != nil {
		return nil, err
	}
	if was == nil {
		return json.Marshal(more)
	}
	index, err := parseIndex(was)
	if err != nil {
		return nil, fail(imgsrc.ErrDamaged, "%s is no index of an OCI layout", quote(filepath.Join(d.path, imgspecv1.ImageIndexFile)))
	}
	if err := index.add(more); err != nil {
		return nil, err
	}
	return json.Marshal(index)
}

// moveIn moves all but the index. oci-layout is the first, so that the directory is a layout to another push as soon as
// it has something in it.
func (d *layoutDir) moveIn(own string) error {
	err := moveNew(filepath.Join(own, imgspecv1.ImageLayoutFile), filepath.Join(d.path, imgspecv1.ImageLayoutFile))
	if err != nil && !errors.Is(err, imgsrc.ErrExists) {
		return err
	}
	return moveBlobs(own, d.path)
}

// moveBlobs moves all blobs from one layout to another on the same file system.
func moveBlobs(from, to string) error {
	algorithms, err := os.ReadDir(filepath.Join(from, imgspecv1.ImageBlobsDir))
	if err != nil {
		return err
	}
	for _, algorithm := range algorithms {
		dir := filepath.Join(imgspecv1.ImageBlobsDir, algorithm.Name())
		if err := os.MkdirAll(filepath.Join(to, dir), 0o755); err != nil {
			return err
		}
		blobs, err := os.ReadDir(filepath.Join(from, dir))
		if err != nil {
			return err
		}
		for _, blob := range blobs {
			at := filepath.Join(dir, blob.Name())
			if err := os.Rename(filepath.Join(from, at), filepath.Join(to, at)); err != nil {
				return err
			}
		}
	}
	return nil
}

// An ociIndex is an index.json of which nothing is lost that this program does not know.
type ociIndex struct {
	fields    map[string]json.RawMessage
	manifests []map[string]json.RawMessage
}

func parseIndex(text []byte) (*ociIndex, error) {
	index := &ociIndex{}
	err := json.Unmarshal(text, &index.fields)
	if err == nil && index.fields["manifests"] != nil {
		err = json.Unmarshal(index.fields["manifests"], &index.manifests)
	}
	if err == nil && index.fields == nil {
		err = errors.New("it is null")
	}
	return index, err
}

func (x *ociIndex) MarshalJSON() ([]byte, error) {
	manifests, err := json.Marshal(x.manifests)
	if err != nil {
		return nil, err
	}
	x.fields["manifests"] = manifests
	return json.Marshal(x.fields)
}

// add adds the images of another index. A name that they bring is taken from the image that has it; an image that is
// there already keeps what is said of it and gets the name.
func (x *ociIndex) add(other *ociIndex) error {
	for _, image := range other.manifests {
		name := nameOfEntry(image)
		there := -1
		for i, have := range x.manifests {
			if err := untag(have, name); err != nil {
				return err
			}
			if string(have["digest"]) == string(image["digest"]) && (there < 0 || nameOfEntry(x.manifests[there]) != "") {
				there = i // one that has no name yet, if possible
			}
		}
		switch {
		case there < 0 || name != "" && nameOfEntry(x.manifests[there]) != "":
			x.manifests = append(x.manifests, image)
		case name != "":
			annotations, err := annotationsOf(x.manifests[there])
			if err != nil {
				return err
			}
			annotations[imgspecv1.AnnotationRefName] = name
			if err := annotate(x.manifests[there], annotations); err != nil {
				return err
			}
		}
	}
	return nil
}

// nameOfEntry is the name of an image by its descriptor in an index; empty if it has none.
func nameOfEntry(descriptor map[string]json.RawMessage) string {
	annotations, err := annotationsOf(descriptor)
	if err != nil {
		return ""
	}
	return cmp.Or(annotations[indexjson.NameContainerd], annotations[imgspecv1.AnnotationRefName])
}

// untag takes a name from a descriptor, if it has that. What only some tools know by it keeps the name that counts.
func untag(descriptor map[string]json.RawMessage, name string) error {
	annotations, err := annotationsOf(descriptor)
	if err != nil || name == "" {
		return nil //nolint:nilerr // it has no name
	}
	switch name {
	case nameOfEntry(descriptor):
		delete(annotations, indexjson.NameContainerd)
	case annotations[imgspecv1.AnnotationRefName]:
	default:
		return nil
	}
	delete(annotations, imgspecv1.AnnotationRefName)
	return annotate(descriptor, annotations)
}

func annotationsOf(descriptor map[string]json.RawMessage) (map[string]string, error) {
	annotations := map[string]string{}
	if text := descriptor["annotations"]; text != nil && string(text) != "null" {
		if err := json.Unmarshal(text, &annotations); err != nil {
			return nil, err
		}
	}
	return annotations, nil
}

func annotate(descriptor map[string]json.RawMessage, annotations map[string]string) error {
	delete(descriptor, "annotations")
	if len(annotations) == 0 {
		return nil
	}
	text, err := json.Marshal(annotations)
	descriptor["annotations"] = text
	return err
}
