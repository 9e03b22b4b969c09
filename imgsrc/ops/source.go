package ops

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"
	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/image"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/image/v5/types"
	"go.podman.io/storage/pkg/chunked/toc"

	"github.com/imgfs/imgfs/imgsrc"
)

// A source is an image of the catalog as the copying library wants it: reference and source in one. It is good for one
// copy.
type source struct {
	held     imgsrc.Held
	instance func(context.Context, digest.Digest) (imgsrc.Image, error) // an index's image of this digest
	plain    bool                                                       // offer layers as uncompressed tars even where there are blobs
	reading  func() (done func())                                       // called around each read from the image
	several  bool                                                       // all images of an index are copied
	only     []digest.Digest                                            // but for others than these; nil: all
	judge    func(context.Context, imgsrc.Held) error                   // whether an image of the index that another source has may be copied; nil: it may
	task     *task                                                      // is told what there is to read, and what has been read

	toOCI        bool                           // the manifest there will be OCI's, whatever this one is
	recompressed bool                           // layers will be stored in another form than they are offered
	became       func(digest.Digest) compressed // what a layer was when it was compressed like this before; nil: nobody knows

	mu        sync.Mutex
	diffs     map[digest.Digest]diff         // what LayerInfosForCopy has put in the place of a blob
	instances map[digest.Digest]imgsrc.Image // that were asked for
	offered   []types.BlobInfo               // the layers, when they were last asked for
}

// A diff is a layer as an uncompressed tar.
type diff struct {
	img  imgsrc.Image
	n    int
	blob types.BlobInfo // what the manifest names
}

// image returns the image that a method of types.ImageSource means.
func (s *source) image(ctx context.Context, instance *digest.Digest) (imgsrc.Image, error) {
	if instance == nil {
		return s.held, nil
	}
	s.mu.Lock()
	img := s.instances[*instance]
	s.mu.Unlock()
	if img != nil {
		return img, nil
	}
	defer s.reading()()
	img, err := s.instance(ctx, *instance)
	if err != nil {
		return nil, fmt.Errorf("looking for the image %s of the index: %w", *instance, err)
	}
	if held, ok := img.(imgsrc.Held); ok && s.judge != nil && held.Source != s.held.Source {
		if err := s.judge(ctx, held); err != nil {
			return nil, fmt.Errorf("image %s of the index: %w", *instance, err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.instances == nil {
		s.instances = map[digest.Digest]imgsrc.Image{}
	}
	s.instances[*instance] = img
	return img, nil
}

func (s *source) GetManifest(ctx context.Context, instance *digest.Digest) ([]byte, string, error) {
	img, err := s.image(ctx, instance)
	if err != nil {
		return nil, "", err
	}
	defer s.reading()()
	text, err := img.Manifest(ctx)
	if err != nil {
		return nil, "", err
	}
	mediaType := img.Desc().MediaType
	if mediaType == "" {
		mediaType = manifest.GuessMIMEType(text)
	}
	if instance == nil {
		text = s.changeable(ctx, text, mediaType)
	}
	return text, mediaType, nil
}

// LayerInfosForCopy keeps each layer of which there is a blob, and replaces the others by the uncompressed tar of their
// diff id, under the media type that says so.
func (s *source) LayerInfosForCopy(ctx context.Context, instance *digest.Digest) ([]types.BlobInfo, error) {
	img, err := s.image(ctx, instance)
	if err != nil {
		return nil, err
	}
	text, mediaType, err := s.GetManifest(ctx, instance)
	if err != nil {
		return nil, err
	}
	m, err := manifest.FromBlob(text, mediaType)
	if err != nil {
		return nil, fail(imgsrc.ErrDamaged, "reading manifest %s: %s", img.Desc().Digest, err)
	}
	defer s.reading()()
	layers := m.LayerInfos()
	infos := make([]types.BlobInfo, len(layers))
	changed := false
	asTold := !s.recompressed && !(s.toOCI && mediaType == manifest.DockerV2Schema2MediaType)
	var ids []digest.Digest
	for n, l := range layers {
		infos[n] = l.BlobInfo
		if l.EmptyLayer {
			continue // of schema 1: see blob
		}
		blob, missing := s.hasBlob(ctx, img, l.Digest)
		if missing != nil && !errors.Is(missing, imgsrc.ErrAbsent) {
			return nil, &sourceError{missing}
		}
		if blob && !s.plain && asTold {
			continue
		}
		if ids == nil {
			if ids, err = diffIDs(ctx, img); err != nil && !blob {
				return nil, err
			}
		}
		if blob && !s.plain {
			// Archives of Docker call their layers compressed when they are not, and what is believed to be compressed already
			// would be left alone, or be called so by a manifest that is made anew.
			if n < len(ids) && ids[n] == l.Digest && !manifest.MIMETypeIsMultiImage(mediaType) {
				infos[n].MediaType, changed = uncompressedType(mediaType), true
			}
			continue
		}
		info, err := s.diffInfo(ctx, img, n, ids, mediaType, l.BlobInfo)
		if err == nil {
			infos[n], changed = info, true
		} else if !blob {
			return nil, &sourceError{err}
		}
	}
	changed = s.annotate(infos) || changed
	s.announce(m.ConfigInfo(), infos)
	s.mu.Lock()
	s.offered = infos
	s.mu.Unlock()
	if !changed {
		return nil, nil
	}
	return infos, nil
}

// announce tells the task which blobs will be read, as they are offered: sizes are those of the bytes that are read. They
// are all there are if this is not one of several images.
func (s *source) announce(config types.BlobInfo, layers []types.BlobInfo) {
	if config.Digest != "" {
		s.task.blob(config.Digest, config.Size)
	}
	for _, info := range layers {
		s.task.blob(info.Digest, info.Size)
	}
	if !s.several {
		s.task.whole()
	}
}

// hasBlob reports whether the source keeps the blob d.
func (s *source) hasBlob(ctx context.Context, img imgsrc.Image, d digest.Digest) (bool, error) {
	content, err := img.Blob(ctx, d)
	if err != nil {
		return false, err
	}
	return true, content.Close()
}

// diffInfo describes layer n as an uncompressed tar, and remembers where GetBlob finds it.
func (s *source) diffInfo(ctx context.Context, img imgsrc.Image, n int, ids []digest.Digest, mediaType string, blob types.BlobInfo) (types.BlobInfo, error) {
	if n >= len(ids) || ids[n].Validate() != nil {
		return types.BlobInfo{}, fail(imgsrc.ErrUnsupported, "layer %d has no diff id, and its source keeps no blob of it", n)
	}
	content, err := img.Diff(ctx, n)
	if err != nil {
		return types.BlobInfo{}, fmt.Errorf("opening layer %d (%s): %w", n, ids[n], err)
	}
	defer content.Close()
	size, err := content.Size(ctx)
	if err != nil {
		return types.BlobInfo{}, fmt.Errorf("opening layer %d (%s): %w", n, ids[n], err)
	}
	info := types.BlobInfo{Digest: ids[n], Size: size, MediaType: uncompressedType(mediaType), Annotations: map[string]string{}}
	for key, value := range blob.Annotations {
		if _, ok := toc.ChunkedAnnotations[key]; ok {
			continue // says where things are in the compressed blob
		}
		info.Annotations[key] = value
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.diffs == nil {
		s.diffs = map[digest.Digest]diff{}
	}
	s.diffs[ids[n]] = diff{img, n, blob}
	return info, nil
}

// uncompressedType is the media type of a layer that is not compressed, in a manifest of this one.
func uncompressedType(mediaType string) string {
	if mediaType == manifest.DockerV2Schema2MediaType {
		return manifest.DockerV2SchemaLayerMediaTypeUncompressed
	}
	return imgspecv1.MediaTypeImageLayer
}

// diffIDs returns what an image's config says its layers are: nothing if it has none, or an artifact's, which can be
// anything.
func diffIDs(ctx context.Context, img imgsrc.Image) ([]digest.Digest, error) {
	text, err := img.Config(ctx)
	if errors.Is(err, imgsrc.ErrAbsent) {
		return []digest.Digest{}, nil
	}
	if err != nil {
		return nil, err
	}
	var config imgspecv1.Image
	_ = json.Unmarshal(text, &config)
	return append([]digest.Digest{}, config.RootFS.DiffIDs...), nil
}

// blobs returns the digests of the layers that will be copied as they are, and whether those are all layers.
func (s *source) blobs(ctx context.Context) (kept []digest.Digest, all bool, err error) {
	text, mediaType, err := s.GetManifest(ctx, nil)
	if err != nil || s.plain {
		return nil, false, err
	}
	instances := []*digest.Digest{nil}
	if manifest.MIMETypeIsMultiImage(mediaType) {
		list, err := manifest.ListFromBlob(text, mediaType)
		if err != nil {
			return nil, false, fail(imgsrc.ErrDamaged, "reading index %s: %s", s.held.Desc().Digest, err)
		}
		instances = nil
		for _, d := range list.Instances() {
			if s.only == nil || slices.Contains(s.only, d) {
				instances = append(instances, &d)
			}
		}
	}
	all = true
	for _, instance := range instances {
		its, whole, err := s.blobsOf(ctx, instance)
		if !s.several && (errors.Is(err, imgsrc.ErrNotFound) || err != nil && rejected(err)) {
			continue // another one is copied; if it is this one the library asks for it again
		}
		if err != nil {
			return nil, false, err
		}
		kept, all = append(kept, its...), all && whole
	}
	return kept, all, nil
}

// blobsOf is blobs for one image.
func (s *source) blobsOf(ctx context.Context, instance *digest.Digest) (kept []digest.Digest, all bool, err error) {
	img, err := s.image(ctx, instance)
	if err != nil {
		return nil, false, err
	}
	text, mediaType, err := s.GetManifest(ctx, instance)
	if err != nil || manifest.MIMETypeIsMultiImage(mediaType) {
		return nil, true, err // one in another is copied as it is
	}
	m, err := manifest.FromBlob(text, mediaType)
	if err != nil {
		return nil, false, fail(imgsrc.ErrDamaged, "reading manifest %s: %s", img.Desc().Digest, err)
	}
	defer s.reading()()
	all = true
	for _, l := range m.LayerInfos() {
		if l.EmptyLayer {
			continue
		}
		if ok, _ := s.hasBlob(ctx, img, l.Digest); ok && l.Digest.Validate() == nil {
			kept = append(kept, l.Digest)
		} else {
			all = false
		}
	}
	return kept, all, nil
}

// GetBlob opens a layer or the config. Its reader fails as soon as ctx ends.
func (s *source) GetBlob(ctx context.Context, info types.BlobInfo, _ types.BlobInfoCache) (io.ReadCloser, int64, error) {
	defer s.reading()()
	s.mu.Lock()
	d, ok := s.diffs[info.Digest]
	s.mu.Unlock()
	var content imgsrc.Content
	var err error
	if ok {
		content, err = d.img.Diff(ctx, d.n)
	} else {
		content, err = s.blob(ctx, info.Digest)
	}
	if err != nil {
		return nil, 0, &sourceError{err}
	}
	size, err := content.Size(ctx)
	if err != nil {
		_ = content.Close()
		return nil, 0, &sourceError{err}
	}
	return s.task.blob(info.Digest, size).reader(&contentReader{ctx: ctx, content: content, reading: s.reading}), size, nil
}

// blob opens the config or a blob of the image, or of whichever image of the index has it.
func (s *source) blob(ctx context.Context, d digest.Digest) (imgsrc.Content, error) {
	images := []imgsrc.Image{s.held}
	if text, mediaType, err := s.GetManifest(ctx, nil); err == nil && manifest.MIMETypeIsMultiImage(mediaType) {
		list, err := manifest.ListFromBlob(text, mediaType)
		if err != nil {
			return nil, fail(imgsrc.ErrDamaged, "reading index %s: %s", s.held.Desc().Digest, err)
		}
		images = nil
		for _, instance := range list.Instances() {
			if img, err := s.image(ctx, &instance); err == nil {
				images = append(images, img)
			}
		}
	}
	err := imgsrc.ErrAbsent
	for _, img := range images {
		if config := img.Desc().Config; config == d || config == "" {
			text, err := img.Config(ctx)
			if config == "" && err == nil && d.Validate() == nil { // a listing need not know it
				config = d.Algorithm().FromBytes(text)
			}
			if config == d {
				return &textContent{bytes.NewReader(text)}, err
			}
		}
		var content imgsrc.Content
		if content, err = img.Blob(ctx, d); err == nil {
			return content, nil
		}
	}
	if d == image.GzippedEmptyLayerDigest { // schema 1 names it for each step that changed no file, and no source lists it
		return &textContent{bytes.NewReader(image.GzippedEmptyLayer)}, nil
	}
	return nil, fmt.Errorf("opening blob %s: %w", d, err)
}
