package storage

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/copy"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/image/v5/oci/layout"
	"go.podman.io/image/v5/signature"
	"go.podman.io/image/v5/types"
	cs "go.podman.io/storage"
	"go.podman.io/storage/pkg/reexec"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/test/images"
)

func TestMain(m *testing.M) {
	if reexec.Init() { // the library unpacks layers in a child
		return
	}
	os.Exit(m.Run())
}

// sample is a layout with the images that tests receive, in a directory.
func sample(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "layout")
	l, err := images.Create(dir)
	if err == nil {
		err = errors.Join(images.Sample(l), l.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// copyFrom copies the layout's image of this name. Its last layer is not to be had if before returns an error.
func copyFrom(ctx context.Context, t *testing.T, dir, name string, before func() error) func(types.ImageReference) error {
	t.Helper()
	ref, err := layout.NewReference(dir, name)
	if err != nil {
		t.Fatal(err)
	}
	from := types.ImageReference(ref)
	if before != nil {
		from = &failingRef{ref, before}
	}
	return func(to types.ImageReference) error {
		policy, err := signature.NewPolicyContext(&signature.Policy{Default: signature.PolicyRequirements{signature.NewPRInsecureAcceptAnything()}})
		if err != nil {
			return err
		}
		defer func() { _ = policy.Destroy() }()
		sys := &types.SystemContext{BlobInfoCacheDir: os.DevNull}
		_, err = copy.Image(ctx, policy, to, from, &copy.Options{SourceCtx: sys, DestinationCtx: sys})
		return err
	}
}

type failingRef struct {
	types.ImageReference
	before func() error
}

func (f *failingRef) NewImageSource(ctx context.Context, sys *types.SystemContext) (types.ImageSource, error) {
	src, err := f.ImageReference.NewImageSource(ctx, sys)
	if err != nil {
		return nil, err
	}
	text, mediaType, err := src.GetManifest(ctx, nil)
	if err != nil {
		return nil, err
	}
	m, err := manifest.FromBlob(text, mediaType)
	if err != nil {
		return nil, err
	}
	return &failingSource{src, m.LayerInfos()[len(m.LayerInfos())-1].Digest, f.before}, nil
}

type failingSource struct {
	types.ImageSource
	last   digest.Digest
	before func() error
}

func (f *failingSource) GetBlob(ctx context.Context, info types.BlobInfo, cache types.BlobInfoCache) (io.ReadCloser, int64, error) {
	if info.Digest == f.last {
		if err := f.before(); err != nil {
			return nil, 0, err
		}
	}
	return f.ImageSource.GetBlob(ctx, info, cache)
}

// layersIn returns the ids of the store's layers.
func (r real) layersIn(t *testing.T) []string {
	t.Helper()
	opts := r.source(t).writable()
	store, err := cs.GetStore(opts)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Free()
	layers, err := store.Layers()
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, l := range layers {
		ids = append(ids, l.ID)
	}
	return ids
}

func TestReceive(t *testing.T) {
	dir := sample(t)
	for _, driver := range drivers {
		t.Run(driver, func(t *testing.T) {
			r := newReal(t, driver)
			t.Setenv("TMPDIR", t.TempDir())
			r.do(t, "podman", "images", "-q")
			s := r.source(t)
			receive := func(ctx context.Context, name, id string, before func() error) error {
				return s.Receive(ctx, name, id, copyFrom(ctx, t, dir, "localhost/app:1.0", before))
			}
			partly := func(err error) func() error { // fails when a layer is there
				return func() error {
					for end := time.Now().Add(time.Minute); len(r.layersIn(t)) == 0; time.Sleep(10 * time.Millisecond) {
						if time.Now().After(end) {
							t.Error("no layer comes")
							break
						}
					}
					return err
				}
			}

			// What fails leaves its layers for a while, unless the disk is full or the source is closed.
			broken := errors.New("broken")
			if err := receive(t.Context(), "localhost/web:1", "", partly(syscall.ENOSPC)); !errors.Is(err, syscall.ENOSPC) {
				t.Errorf("%v, want the copy's own error", err)
			}
			if left := r.layersIn(t); len(left) > 0 {
				t.Errorf("layers are left: %q", left)
			}
			if err := receive(t.Context(), "localhost/web:1", "", partly(broken)); !errors.Is(err, broken) {
				t.Errorf("%v, want the copy's own error", err)
			}
			kept := r.layersIn(t)
			ctx, cancel := context.WithCancel(t.Context())
			if err := receive(ctx, "localhost/web:1", "", func() error { cancel(); return ctx.Err() }); !errors.Is(err, context.Canceled) {
				t.Errorf("cancelled: %v", err)
			}
			if again := r.layersIn(t); len(kept) == 0 || !slices.Equal(again, kept) {
				t.Errorf("layers %q, and after another try %q", kept, again)
			}
			s.Close()
			if left := r.layersIn(t); len(left) > 0 {
				t.Errorf("layers are left: %q", left)
			}
			s = r.source(t)

			// An image that comes by then keeps them.
			if err := receive(t.Context(), "localhost/web:1", "", partly(broken)); !errors.Is(err, broken) {
				t.Errorf("%v, want the copy's own error", err)
			}
			if err := receive(t.Context(), "localhost/web:1", "", nil); err != nil {
				t.Fatal(err)
			}
			s.Close()
			s = r.source(t)
			said := r.inspect(t, "localhost/web:1")
			if len(r.layersIn(t)) != len(said.RootFS.Layers) {
				t.Errorf("layers %q, podman says %q", r.layersIn(t), said.RootFS.Layers)
			}
			list, err := s.List(t.Context())
			if err != nil || len(list.Images) != 1 || list.Images[0].Desc().ID != said.ID || !slices.Equal(list.Images[0].Names, []string{"localhost/web:1"}) {
				t.Errorf("listed: %+v, %v", list, err)
			}
			// By digest, and without a name.
			byDigest := "localhost/web@" + said.Digest
			if err := receive(t.Context(), byDigest, "", nil); err != nil {
				t.Error(err)
			}
			r.do(t, "podman", "image", "exists", byDigest)
			r.do(t, "podman", "rmi", "-f", said.ID)
			if err := receive(t.Context(), "", said.ID, nil); err != nil {
				t.Error(err)
			}
			if again := r.inspect(t, said.ID); len(again.RepoTags) > 0 || again.Digest != said.Digest {
				t.Errorf("%+v, want %+v", again, said)
			}
			if err := receive(t.Context(), "UPPER", "", nil); !errors.Is(err, imgsrc.ErrInvalid) {
				t.Errorf("a bad name: %v", err)
			}
			if left, err := os.ReadDir(os.Getenv("TMPDIR")); err != nil || slices.ContainsFunc(left, func(e os.DirEntry) bool { return strings.Contains(e.Name(), "receive") }) {
				t.Errorf("temporary files are left: %v, %v", left, err)
			}
		})
	}
}

// Two images over the same layers are received at once, and one of them fails: the other keeps the layers.
func TestReceiveTogether(t *testing.T) {
	dir := sample(t)
	r := newReal(t, "overlay")
	r.do(t, "podman", "images", "-q")
	s := r.source(t)
	s.strays.age = 0
	atEnd, failed := make(chan struct{}), make(chan struct{})
	broken := errors.New("broken")
	done := make(chan error)
	go func() {
		done <- s.Receive(t.Context(), "localhost/a:1", "", copyFrom(t.Context(), t, dir, "localhost/app:1.0", func() error {
			close(atEnd)
			<-failed
			return nil
		}))
	}()
	<-atEnd
	if err := s.Receive(t.Context(), "localhost/b:1", "", copyFrom(t.Context(), t, dir, "localhost/app:1.0", func() error { return broken })); !errors.Is(err, broken) {
		t.Error(err)
	}
	close(failed)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if said := r.inspect(t, "localhost/a:1"); len(said.RootFS.Layers) != len(r.layersIn(t)) {
		t.Errorf("layers %q, podman says %q", r.layersIn(t), said.RootFS.Layers)
	}
}

// A copy that panics keeps no others' layers.
func TestReceivePanics(t *testing.T) {
	r := newReal(t, "overlay")
	r.do(t, "podman", "images", "-q")
	s := r.source(t)
	func() {
		defer func() { _ = recover() }()
		_ = s.Receive(t.Context(), "localhost/a:1", "", func(types.ImageReference) error { panic("a bug") })
	}()
	if s.strays.receiving != 0 {
		t.Error("it is received for ever, and no layer goes any more")
	}
}

// Strays go when their time is over, and not while an image is received.
func TestStrays(t *testing.T) {
	removed := make(chan []string, 10)
	s := newStrays(time.Millisecond, func(ids []string) { removed <- ids })
	begin := func() {
		t.Helper()
		if err := s.begin(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	begin()
	s.end([]string{"a", "b"}, errors.New("broken"))
	if ids := <-removed; !slices.Equal(ids, []string{"a", "b"}) {
		t.Errorf("removed %q", ids)
	}
	begin()
	begin()
	s.end([]string{"c"}, syscall.ENOSPC)
	select {
	case ids := <-removed:
		t.Errorf("removed %q while an image was received", ids)
	default:
	}
	s.end([]string{"d"}, nil) // which came
	if ids := <-removed; !slices.Equal(ids, []string{"c"}) {
		t.Errorf("removed %q", ids)
	}
	s.age = time.Hour
	begin()
	s.end([]string{"e"}, errors.New("broken"))
	s.close()
	if ids := <-removed; !slices.Equal(ids, []string{"e"}) {
		t.Errorf("removed %q", ids)
	}
	s.close()
	if len(removed) > 0 {
		t.Error("removed twice")
	}

	// Who begins while a removal hangs can leave.
	removing, goOn := make(chan struct{}), make(chan struct{})
	s = newStrays(time.Millisecond, func([]string) { close(removing); <-goOn })
	begin()
	s.end([]string{"f"}, errors.New("broken"))
	<-removing
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.begin(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("begins, with %v", err)
	}
	close(goOn)
	begin()
}

func TestReceiveReadOnly(t *testing.T) {
	r := newReal(t, "overlay")
	r.do(t, "podman", "images", "-q")
	if err := syscall.Mount(r.root, r.root, "", syscall.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(r.root, syscall.MNT_DETACH) })
	if err := syscall.Mount("", r.root, "", syscall.MS_BIND|syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	s := r.source(t)
	if err := s.MayReceive(); !errors.Is(err, imgsrc.ErrReadOnly) {
		t.Error(err)
	}
	if err := s.Receive(t.Context(), "localhost/a:1", "", nil); !errors.Is(err, imgsrc.ErrReadOnly) {
		t.Error(err)
	}
}

func TestAddIndex(t *testing.T) {
	dir := sample(t)
	r := newReal(t, "overlay")
	r.do(t, "podman", "images", "-q")
	s := r.source(t)
	if err := s.Receive(t.Context(), "localhost/app:1", "", copyFrom(t.Context(), t, dir, "localhost/app:1.0", nil)); err != nil {
		t.Fatal(err)
	}
	app := r.inspect(t, "localhost/app:1")
	absent := digest.FromString("absent")
	index := []byte(`{"schemaVersion":2,"mediaType":"` + v1.MediaTypeImageIndex + `","manifests":[` +
		`{"mediaType":"` + v1.MediaTypeImageManifest + `","digest":"` + app.Digest + `","size":1,"platform":{"os":"linux","architecture":"amd64"}},` +
		`{"mediaType":"` + v1.MediaTypeImageManifest + `","digest":"` + absent.String() + `","size":1,"platform":{"os":"linux","architecture":"arm64"}}]}`)
	ids := map[digest.Digest]string{digest.Digest(app.Digest): app.ID}
	first, err := s.AddIndex(t.Context(), "localhost/all:1", index, ids, "docker://quay.io/a/b")
	if err != nil {
		t.Fatal(err)
	}
	if again, err := s.AddIndex(t.Context(), "localhost/all:2", index, ids, "docker://quay.io/a/b"); err != nil || again != first {
		t.Errorf("the same index twice: %s and %s, %v", first, again, err)
	}
	if text := r.do(t, "podman", "manifest", "inspect", "localhost/all:2"); !strings.Contains(text, absent.String()) {
		t.Error(text)
	}
	instances, err := readData(s.dataPath(0, first, instancesKey))
	if err != nil || !strings.Contains(string(instances), "docker://quay.io/a/b@"+absent.String()) || !strings.Contains(string(instances), app.ID) {
		t.Errorf("%s, %v", instances, err)
	}
	list, err := s.List(t.Context())
	if err != nil || !slices.ContainsFunc(list.Images, func(l imgsrc.Listed) bool {
		return l.Desc().ID == first && l.Desc().Digest == digest.FromBytes(index) && len(l.Names) == 2
	}) {
		t.Errorf("%+v, %v", list, err)
	}
	if _, err := s.AddIndex(t.Context(), "localhost/x:1", []byte("{}"), nil, ""); err == nil {
		t.Error("something else was taken for an index")
	}
	store, err := s.openReal()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := addIndex(&creating{store, t}, "localhost/all:3", append(index, '\n'), ids, "docker://quay.io/a/b"); err != nil {
		t.Error(err)
	}
}

// creating is a store in which each image must be whole when it comes to be.
type creating struct {
	cs.Store
	t *testing.T
}

func (c *creating) CreateImage(id string, names []string, layer, metadata string, options *cs.ImageOptions) (*cs.Image, error) {
	img, err := c.Store.CreateImage(id, names, layer, metadata, options)
	if err == nil && (!slices.Contains(img.BigDataNames, manifestKeyName) || !slices.Contains(img.BigDataNames, instancesKey)) {
		c.t.Errorf("an image that has only %q", img.BigDataNames)
	}
	return img, err
}

// What a killed process left is removed by the next, and what a living one uses is not.
func TestTempDir(t *testing.T) {
	place := t.TempDir()
	t.Setenv("TMPDIR", place)
	used, remove, err := tempDir()
	if err != nil {
		t.Fatal(err)
	}
	left := filepath.Join(place, tempPrefix+"1")
	write(t, []byte("x"), left, "layer")
	other := filepath.Join(place, "imgfs-other")
	link := filepath.Join(place, tempPrefix+"link")
	if err := errors.Join(os.Mkdir(other, 0o755), os.Symlink(other, link)); err != nil {
		t.Fatal(err)
	}
	_, removeNext, err := tempDir()
	if err != nil {
		t.Fatal(err)
	}
	defer removeNext()
	for dir, want := range map[string]bool{used: true, left: false, other: true, link: true} {
		if exists(dir) != want {
			t.Errorf("%s is there: %v", dir, !want)
		}
	}
	remove()
	if exists(used) {
		t.Errorf("%s is left", used)
	}
	t.Setenv("TMPDIR", filepath.Join(place, "none"))
	if _, _, err := tempDir(); err == nil {
		t.Error("in a directory that is not there")
	}
}

// What the kernel can do is tried out in a process of its own: no mount of it is ever seen here, and it is known afterwards.
func TestProbe(t *testing.T) {
	r := newReal(t, "overlay")
	r.do(t, "podman", "images", "-q")
	s := r.source(t)
	known := func() []string {
		files, err := filepath.Glob(filepath.Join(r.run, "overlay", "idmapped-lower-dir-*"))
		if err != nil {
			t.Fatal(err)
		}
		return files
	}
	unnamed := s.writable()
	unnamed.GraphDriverName = ""
	for _, options := range []cs.StoreOptions{s.writable(), unnamed} {
		for _, file := range known() {
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
		}
		probeFirst(options, s.log)
		if len(known()) != 1 {
			t.Errorf("known: %q", known())
		}
		if left, err := filepath.Glob(filepath.Join(r.root, "overlay", "compat*")); err != nil || len(left) > 0 {
			t.Errorf("left: %q, %v", left, err)
		}
	}
}
