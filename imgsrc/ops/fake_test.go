package ops

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/manifest"
	cs "go.podman.io/storage"
	"go.podman.io/storage/pkg/reexec"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/storage"
)

func TestMain(m *testing.M) {
	if reexec.Init() { // containers-storage unpacks layers in a child
		return
	}
	if dir := os.Getenv(stagingVar); dir != "" {
		stageAndStay(dir)
	}
	os.Exit(m.Run())
}

// fakeImage is an image in memory.
type fakeImage struct {
	desc     imgsrc.Desc
	manifest []byte
	config   []byte
	diffs    [][]byte
	blobs    map[digest.Digest][]byte // empty: a source that keeps no blobs
	read     func(ctx context.Context, off int64) error
}

func (i *fakeImage) Desc() imgsrc.Desc                           { return i.desc }
func (i *fakeImage) Manifest(context.Context) ([]byte, error)    { return i.manifest, nil }
func (i *fakeImage) content(text []byte) (imgsrc.Content, error) { return &fakeContent{i, text}, nil }

func (i *fakeImage) Config(context.Context) ([]byte, error) {
	if i.config == nil {
		return nil, imgsrc.ErrAbsent
	}
	return i.config, nil
}

func (i *fakeImage) Blob(_ context.Context, d digest.Digest) (imgsrc.Content, error) {
	if text, ok := i.blobs[d]; ok {
		return i.content(text)
	}
	return nil, fmt.Errorf("opening %s: %w", d, imgsrc.ErrAbsent)
}

func (i *fakeImage) Diff(_ context.Context, n int) (imgsrc.Content, error) {
	if n >= len(i.diffs) {
		return nil, fmt.Errorf("opening layer %d: %w", n, imgsrc.ErrAbsent)
	}
	return i.content(i.diffs[n])
}

func (i *fakeImage) Files(context.Context, int) (imgsrc.Files, error) {
	return nil, imgsrc.ErrAbsent
}

type fakeContent struct {
	img  *fakeImage
	text []byte
}

func (c *fakeContent) Size(context.Context) (int64, error) { return int64(len(c.text)), nil }
func (c *fakeContent) Close() error                        { return nil }
func (c *fakeContent) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if c.img.read != nil {
		if err := c.img.read(ctx, off); err != nil {
			return 0, err
		}
	}
	return bytes.NewReader(c.text).ReadAt(p, off)
}

// fakeSource is a source of images in memory. Without a check it is no Tagger, see tagging.
type fakeSource struct {
	name string

	mu     sync.Mutex
	images []imgsrc.Listed
	stamp  int
}

func (s *fakeSource) Name() string { return s.name }
func (s *fakeSource) Close() error { return nil }
func (s *fakeSource) Stamp() imgsrc.Stamp {
	s.mu.Lock()
	defer s.mu.Unlock()
	return imgsrc.Stamp(fmt.Sprint(s.stamp))
}
func (s *fakeSource) Watch(ctx context.Context, _ func()) error { <-ctx.Done(); return nil }
func (s *fakeSource) List(context.Context) (*imgsrc.Listing, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := &imgsrc.Listing{}
	for _, img := range s.images {
		img.Names = slices.Clone(img.Names)
		list.Images = append(list.Images, img)
	}
	return list, nil
}

// tagging is a fakeSource whose names follow the rules of containers-storage.
type tagging struct {
	*fakeSource
	err   error // of Tag
	calls int
}

func (s *tagging) CheckName(name string) (string, error) {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return "", fail(imgsrc.ErrInvalid, "%q is not a reference: %s", name, err)
	}
	return reference.TagNameOnly(named).String(), nil
}

func (s *tagging) Tag(_ context.Context, img imgsrc.Desc, add, remove []string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls++
	if s.err != nil {
		return s.err
	}
	s.stamp++
	for i := range s.images {
		l := &s.images[i]
		mine := l.Desc().Digest == img.Digest
		l.Names = slices.DeleteFunc(l.Names, func(name string) bool {
			return slices.Contains(add, name) || mine && slices.Contains(remove, name)
		})
		if mine {
			l.Names = append(l.Names, add...)
		}
	}
	return nil
}

func gzipped(text []byte) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(text); err != nil {
		panic(err)
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// tarOf returns a tar with one file.
func tarOf(name string, content []byte) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := errors.Join(
		w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(content)), Mode: 0o644, ModTime: time.Unix(1700000000, 0)}),
		func() error { _, err := w.Write(content); return err }(),
		w.Close(),
	); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// noise is content that does not compress.
func noise(size int) []byte {
	b := make([]byte, size)
	rng := rand.NewChaCha8([32]byte{byte(size), byte(size >> 8)})
	_, _ = rng.Read(b)
	return b
}

// newImage makes an image of the given layers, in the OCI or in Docker's format. With blobs its source keeps the
// compressed layers.
func newImage(t testing.TB, mediaType string, blobs bool, comment string, diffs ...[]byte) *fakeImage {
	t.Helper()
	img := &fakeImage{diffs: diffs, blobs: map[digest.Digest][]byte{}}
	layerType, configType := imgspecv1.MediaTypeImageLayerGzip, imgspecv1.MediaTypeImageConfig
	if mediaType == manifest.DockerV2Schema2MediaType {
		layerType, configType = manifest.DockerV2Schema2LayerMediaType, manifest.DockerV2Schema2ConfigMediaType
	}
	config := manifest.Schema2Image{RootFS: &manifest.Schema2RootFS{Type: "layers"}}
	config.Architecture, config.OS = "amd64", "linux"
	config.Created = time.Unix(1700000000, 0).UTC()
	var layers []imgspecv1.Descriptor
	for _, diff := range diffs {
		blob := gzipped(diff)
		d := digest.FromBytes(blob)
		if blobs {
			img.blobs[d] = blob
		}
		layers = append(layers, imgspecv1.Descriptor{MediaType: layerType, Digest: d, Size: int64(len(blob))})
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(diff))
		config.History = append(config.History, manifest.Schema2History{Created: config.Created, CreatedBy: "test", Comment: comment})
	}
	img.config = mustJSON(t, config)
	id := digest.FromBytes(img.config)
	img.manifest = mustJSON(t, map[string]any{
		"schemaVersion": 2,
		"mediaType":     mediaType,
		"config":        imgspecv1.Descriptor{MediaType: configType, Digest: id, Size: int64(len(img.config))},
		"layers":        layers,
	})
	img.desc = imgsrc.Desc{
		ID: id.Encoded(), Config: id, Digest: digest.FromBytes(img.manifest), MediaType: mediaType, Size: int64(len(img.manifest)),
	}
	return img
}

// newIndex makes an index of images, all for platforms of amd64 by their order.
func newIndex(t testing.TB, images ...*fakeImage) *fakeImage {
	t.Helper()
	index := imgspecv1.Index{MediaType: imgspecv1.MediaTypeImageIndex}
	index.SchemaVersion = 2
	for i, img := range images {
		index.Manifests = append(index.Manifests, imgspecv1.Descriptor{
			MediaType: img.desc.MediaType, Digest: img.desc.Digest, Size: img.desc.Size,
			Platform: &imgspecv1.Platform{OS: "linux", Architecture: []string{"amd64", "arm64", "s390x"}[i]},
		})
	}
	text := mustJSON(t, index)
	d := digest.FromBytes(text)
	return &fakeImage{manifest: text, desc: imgsrc.Desc{ID: d.Encoded(), Digest: d, MediaType: index.MediaType, Size: int64(len(text))}}
}

func mustJSON(t testing.TB, v any) []byte {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// logBuffer is a log that tests can look at.
type logBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// acceptAnything writes a signature policy that lets everything through.
func acceptAnything(t testing.TB) string {
	t.Helper()
	return write(t, `{"default":[{"type":"insecureAcceptAnything"}]}`)
}

// write writes a file and returns its path.
func write(t testing.TB, text string) string {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

// newOps returns operations on images that all lie in one source, and everything that they logged.
func newOps(t testing.TB, opt Options, images ...*fakeImage) (*Ops, *logBuffer) {
	t.Helper()
	src := &fakeSource{name: "oci:/srv/fake"}
	for _, img := range images {
		src.images = append(src.images, imgsrc.Listed{Image: img})
	}
	return newOpsOn(t, opt, src)
}

func newOpsOn(t testing.TB, opt Options, sources ...imgsrc.Source) (*Ops, *logBuffer) {
	t.Helper()
	log := &logBuffer{}
	opt.Log = slog.New(slog.NewTextHandler(log, nil))
	opt.Catalog = imgsrc.NewCatalog(opt.Log, sources...)
	if opt.SignaturePolicy == "" {
		opt.SignaturePolicy = acceptAnything(t)
	}
	opt.OpenReceiver = func(ctx context.Context, o cs.StoreOptions) (Receiver, error) {
		return storage.OpenToReceive(ctx, storage.Options{GraphRoot: o.GraphRoot, RunRoot: o.RunRoot, Driver: o.GraphDriverName, DriverOptions: o.GraphDriverOptions})
	}
	o := New(opt)
	o.backoff = 5 * time.Millisecond
	t.Cleanup(func() {
		if err := o.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return o, log
}

// pushTo makes the request of one line of push.
func pushTo(img *fakeImage, words ...string) Request {
	return Request{
		Control: "push", Image: img.desc.ID, Lines: [][]string{words}, Key: strings.Join(words, " "),
		UID: uint32(os.Getuid()), PID: uint32(os.Getpid()),
	}
}
