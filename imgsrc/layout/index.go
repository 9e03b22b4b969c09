package layout

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/blobs"
	"github.com/imgfs/imgfs/imgsrc/export"
	"github.com/imgfs/imgfs/imgsrc/indexjson"
)

// An index is index.json, or an index among the blobs: its entries, and all the rest as it was written.
type index struct {
	raw     []byte
	object  object
	entries []entry
	modTime time.Time // of index.json
}

// An entry is one of an index's manifests.
type entry struct {
	raw         json.RawMessage // as it was written
	object      object
	annotations object
	descriptor
	name string // empty: none
	err  error  // why it names no manifest; then only raw holds
}

type descriptor struct {
	mediaType string // empty: the entry does not say
	digest    digest.Digest
	size      int64

	original digest.Digest // of the manifest that this one was made from; empty: it was made from none
}

// A variant is a manifest of the layout with the one that it was made from: what is made of two manifests can be one.
type variant struct{ digest, original digest.Digest }

func (d descriptor) variant() variant { return variant{d.digest, d.original} }

// manifestTypes are the media types that an entry of an index may have.
var manifestTypes = map[string]bool{
	"":                        true,
	v1.MediaTypeImageManifest: true,
	v1.MediaTypeImageIndex:    true,
	"application/vnd.docker.distribution.manifest.v2+json":      true,
	"application/vnd.docker.distribution.manifest.list.v2+json": true,
	"application/vnd.docker.distribution.manifest.v1+json":      true,
	"application/vnd.docker.distribution.manifest.v1+prettyjws": true,
	"application/vnd.oci.artifact.manifest.v1+json":             true,
}

// parseIndex reads an index. An entry that is no descriptor of a manifest has its err set, and the others are intact.
func parseIndex(b []byte) (*index, error) {
	if !json.Valid(b) {
		return nil, json.Unmarshal(b, new(json.RawMessage)) // says where
	}
	o, err := parseObject(b)
	if err != nil {
		return nil, err
	}
	ix := &index{raw: b, object: o}
	var list []json.RawMessage
	if raw := o.get("manifests"); raw != nil {
		if list, err = parseList(raw); err != nil {
			return nil, errors.New(`"manifests" is not a list`)
		}
	}
	ix.entries = make([]entry, len(list))
	for i, raw := range list {
		e := &ix.entries[i]
		if e.err = e.parse(raw); e.err != nil {
			e.err = fmt.Errorf("entry %d: %w: %w", i, imgsrc.ErrDamaged, e.err)
		}
	}
	return ix, nil
}

func (e *entry) parse(raw []byte) (err error) {
	e.raw = raw
	o, err := parseObject(raw)
	if err != nil {
		return err
	}
	e.object = o
	if e.annotations, err = parseAnnotations(o); err != nil {
		return err
	}
	if e.mediaType, err = o.text("mediaType"); err != nil {
		return errors.New("mediaType is not a string")
	}
	if !manifestTypes[e.mediaType] {
		return fmt.Errorf("%q is not a media type of manifests", e.mediaType)
	}
	d, err := o.text("digest")
	if err != nil {
		return errors.New("digest is not a string")
	}
	e.digest = digest.Digest(d)
	if err := e.digest.Validate(); err != nil {
		return fmt.Errorf("digest %q: %w", d, err)
	}
	if raw := o.get("size"); raw == nil {
		return errors.New("no size")
	} else if err := json.Unmarshal(raw, &e.size); err != nil || e.size < 0 {
		return fmt.Errorf("%s is not a size", raw)
	}
	if original, err := e.annotations.text(export.AnnotationOriginal); err == nil && digest.Digest(original).Validate() == nil {
		e.original = digest.Digest(original)
	}
	for _, key := range []string{indexjson.NameContainerd, v1.AnnotationRefName} {
		if e.name, err = e.annotations.text(key); err != nil {
			return fmt.Errorf("annotation %s is not a string", key)
		}
		if e.name != "" {
			break
		}
	}
	return nil
}

func parseAnnotations(o object) (object, error) {
	raw := o.get("annotations")
	if raw == nil {
		return nil, nil
	}
	a, err := parseObject(raw)
	if err != nil {
		return nil, fmt.Errorf("annotations: %w", err)
	}
	return a, nil
}

// adopt has an entry that does not say what its manifest was made from say what the first other one of that manifest says: tools
// that do not know the annotation name an image without it. One that was made from none, beside one that was, says that it was
// made from itself.
func (ix *index) adopt() {
	first := map[digest.Digest]digest.Digest{}
	for _, e := range ix.entries {
		if e.err == nil && e.original != "" && first[e.digest] == "" {
			first[e.digest] = e.original
		}
	}
	for i := range ix.entries {
		if e := &ix.entries[i]; e.err == nil && e.original == "" {
			e.original = first[e.digest]
		}
	}
}

// isNamed says whether a person can mean this entry by name: other tools know it by its ref.name only.
func (e *entry) isNamed(name string) bool {
	if e.err != nil {
		return false
	}
	ref, err := e.annotations.text(v1.AnnotationRefName)
	return e.name == name || err == nil && ref == name
}

// someNames lists the names that there are, for an error.
func (ix *index) someNames() string {
	var names []string
	for _, e := range ix.entries {
		if e.err != nil || e.name == "" {
			continue
		}
		if len(names) == 5 {
			names = append(names, "...")
			break
		}
		names = append(names, fmt.Sprintf("%q", e.name))
	}
	if names == nil {
		return ""
	}
	return " (there are " + strings.Join(names, ", ") + ")"
}

// How long a broken index.json is taken for one that is being written, and how often to look again.
const (
	youngIndex = time.Second
	retryIndex = 20 * time.Millisecond
)

// readIndex reads index.json. Errors: imgsrc.ErrNotFound if the layout is gone, imgsrc.ErrDamaged.
func (s *images) readIndex(ctx context.Context) (*index, error) {
	for {
		b, id, err := s.readFile(v1.ImageIndexFile)
		if errors.Is(err, fs.ErrNotExist) && errors.Is(err, imgsrc.ErrDamaged) {
			return nil, err // an archive that is cut short
		}
		if errors.Is(err, fs.ErrNotExist) {
			if _, err := s.store.Dir.Stat(v1.ImageLayoutFile); err != nil {
				return nil, fmt.Errorf("%w: the layout is gone: %w", imgsrc.ErrNotFound, err)
			}
			return nil, fmt.Errorf("%w: index.json is missing", imgsrc.ErrDamaged)
		}
		if id == (blobs.Identity{}) {
			return nil, err
		}
		if err == nil {
			var ix *index
			if ix, err = parseIndex(b); err == nil {
				ix.modTime = id.ModTime()
				ix.adopt()
				return ix, nil
			}
			err = damagedJSON(v1.ImageIndexFile, err)
		}
		// skopeo, podman and buildah truncate the file and write it anew.
		if !isCutShort(err, len(b)) || time.Since(id.ModTime()) > youngIndex {
			return nil, err
		}
		select {
		case <-time.After(retryIndex):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// isCutShort says whether err means that more bytes would have been expected after the n that there are.
func isCutShort(err error, n int) bool {
	var syntax *json.SyntaxError
	return errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &syntax) && syntax.Offset >= int64(n)
}
