package fs

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/layer"
)

// fakeSource is a source in memory whose listing a test sets.
type fakeSource struct {
	mu      sync.Mutex
	stamp   int
	listing imgsrc.Listing
	err     error
}

func (s *fakeSource) Name() string { return "fake:" }

func (s *fakeSource) List(context.Context) (*imgsrc.Listing, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.listing
	return &l, s.err
}

func (s *fakeSource) Stamp() imgsrc.Stamp {
	s.mu.Lock()
	defer s.mu.Unlock()
	return imgsrc.Stamp(fmt.Sprint(s.stamp))
}

func (s *fakeSource) Watch(ctx context.Context, changed func()) error { <-ctx.Done(); return nil }

func (s *fakeSource) Close() error { return nil }

func (s *fakeSource) set(images ...imgsrc.Listed) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stamp++
	s.listing = imgsrc.Listing{Images: images, ModTime: listedAt}
}

var (
	listedAt  = time.Date(2024, 5, 6, 7, 8, 9, 10, time.UTC)
	createdAt = time.Date(2023, 1, 2, 3, 4, 5, 6, time.UTC)
)

// fakeImage is an image in memory.
type fakeImage struct {
	desc             imgsrc.Desc
	manifest, config []byte
	layers           [][]byte
	loads            *int // counts reads of the manifest
	broken           error
}

func (i *fakeImage) Desc() imgsrc.Desc { return i.desc }

func (i *fakeImage) Manifest(context.Context) ([]byte, error) {
	if i.loads != nil {
		*i.loads++
	}
	return i.manifest, nil
}

func (i *fakeImage) Config(context.Context) ([]byte, error) {
	if i.broken != nil {
		return nil, i.broken
	}
	return i.config, nil
}

func (i *fakeImage) Blob(_ context.Context, d digest.Digest) (imgsrc.Content, error) {
	return nil, imgsrc.ErrAbsent
}

func (i *fakeImage) Diff(_ context.Context, n int) (imgsrc.Content, error) {
	if n < 0 || n >= len(i.layers) {
		return nil, imgsrc.ErrAbsent
	}
	return fakeContent{bytes.NewReader(i.layers[n])}, nil
}

func (i *fakeImage) Files(_ context.Context, n int) (imgsrc.Files, error) {
	c, err := i.Diff(context.Background(), n)
	if err != nil {
		return nil, err
	}
	return layer.TarFiles(c, imgsrc.FilesKey{Form: layer.TarForm, Digest: digest.FromBytes(i.layers[n])}, nil), nil
}

type fakeContent struct{ r *bytes.Reader }

func (c fakeContent) Size(context.Context) (int64, error) { return c.r.Size(), nil }

func (c fakeContent) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	return c.r.ReadAt(p, off)
}

func (fakeContent) Close() error { return nil }

// tarOf is a layer with one file, called file, that holds text.
func tarOf(t testing.TB, text string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	h := tar.Header{Name: "file", Typeflag: tar.TypeReg, Mode: 0o640, Uid: 7, Gid: 8, Size: int64(len(text)), ModTime: createdAt.Add(time.Second)}
	if err := w.WriteHeader(&h); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// makeImage makes an image that differs from others by its author.
func makeImage(t testing.TB, author string, layers ...string) *fakeImage {
	t.Helper()
	img := &fakeImage{}
	created := createdAt
	config := v1.Image{Created: &created, Author: author, Platform: v1.Platform{Architecture: "amd64", OS: "linux"}}
	config.Config.Labels = map[string]string{"org.example/a": "one", "b": ""}
	config.RootFS.Type = "layers"
	m := v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest}
	for _, l := range layers {
		text := tarOf(t, l)
		d := digest.FromBytes(text)
		img.layers = append(img.layers, text)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, d)
		config.History = append(config.History, v1.History{CreatedBy: "COPY " + l})
		m.Layers = append(m.Layers, v1.Descriptor{MediaType: v1.MediaTypeImageLayerGzip, Digest: digest.FromString("gzip " + l), Size: int64(len(l))})
	}
	img.config = mustJSON(t, config)
	m.Config = v1.Descriptor{MediaType: v1.MediaTypeImageConfig, Digest: digest.FromBytes(img.config), Size: int64(len(img.config))}
	img.manifest = mustJSON(t, m)
	img.desc = imgsrc.Desc{
		ID:        m.Config.Digest.Encoded(),
		Digest:    digest.FromBytes(img.manifest),
		MediaType: m.MediaType,
		Size:      int64(len(img.manifest)),
		Config:    m.Config.Digest,
	}
	return img
}

func mustJSON(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func named(img imgsrc.Image, names ...string) imgsrc.Listed {
	return imgsrc.Listed{Image: img, Names: names}
}

// fakeOps records what it is asked to do.
type fakeOps struct {
	mu        sync.Mutex
	writes    []Write
	events    []string
	lastError string
	jobs      map[uint32]string
	jobsTime  time.Time
	do        func(ctx context.Context, w Write) error
}

func (o *fakeOps) Do(ctx context.Context, w Write) error {
	o.mu.Lock()
	o.writes = append(o.writes, w)
	o.mu.Unlock()
	if w.Err != nil {
		return w.Err
	}
	if o.do != nil {
		return o.do(ctx, w)
	}
	return nil
}

func (o *fakeOps) Record(status, image, text string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.events = append(o.events, status+" "+text)
}

func (o *fakeOps) Events() ([]byte, time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return []byte(strings.Join(o.events, "\n")), time.Time{}
}

func (o *fakeOps) Jobs() ([]uint32, time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Sorted(maps.Keys(o.jobs)), o.jobsTime
}

func (o *fakeOps) Job(number uint32, _ bool) ([]byte, time.Time, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	text, ok := o.jobs[number]
	return []byte(text), o.jobsTime, ok
}

func (o *fakeOps) WriteJob(number uint32, w Write) error {
	return o.Do(context.Background(), Write{Control: fmt.Sprint("jobs/", number), Lines: w.Lines, Err: w.Err})
}

func (o *fakeOps) LastError(string) (string, time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.lastError, time.Time{}
}

// ShortNames knows localhost and docker.io.
func (o *fakeOps) ShortNames(name string) []string {
	if !strings.Contains(name, ":") {
		name += ":latest"
	}
	return []string{"localhost/" + name, name, "docker.io/library/" + name, "docker.io/" + name}
}

// CheckName knows names with a tag, in lower case; those without a registry are below localhost.
func (o *fakeOps) CheckName(_, name string, _ bool) (string, error) {
	if !strings.Contains(name, ":") {
		name += ":latest"
	}
	if strings.ContainsAny(name, "% ") || strings.ToLower(name) != name || strings.HasPrefix(name, ".") || strings.Contains(name, "/.") {
		return "", imgsrc.ErrInvalid
	}
	if !strings.Contains(name, "/") {
		name = "localhost/" + name
	}
	return name, nil
}

// lines are the first words of all the lines written so far.
func (o *fakeOps) lines() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	var all []string
	for _, w := range o.writes {
		for _, l := range w.Lines {
			all = append(all, strings.Join(l, " "))
		}
	}
	return all
}

// layerCache makes a cache that keeps nothing on the disk.
func layerCache(t testing.TB) *layer.Cache {
	t.Helper()
	c, err := layer.OpenCache("", 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func newTree(t testing.TB, images ...imgsrc.Listed) (*FS, *fakeSource, *fakeOps) {
	t.Helper()
	src := &fakeSource{}
	src.set(images...)
	ops := &fakeOps{}
	f := New(Options{
		Layers:  layerCache(t),
		Catalog: imgsrc.NewCatalog(slog.New(slog.DiscardHandler), src),
		Ops:     ops,
		Log:     slog.New(slog.DiscardHandler),
	})
	t.Cleanup(f.OnUnmount)
	f.refresh(t.Context())
	return f, src, ops
}
