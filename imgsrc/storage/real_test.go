package storage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/sourcetest"
	"github.com/imgfs/imgfs/test/needs"
)

func TestImagesAreWhatPodmanReports(t *testing.T) {
	for _, driver := range drivers {
		t.Run(driver, func(t *testing.T) {
			r := newReal(t, driver)
			names := r.build(t)
			want := map[string]inspected{}
			for _, name := range names {
				want[name] = r.inspect(t, name)
			}
			before := tree(t, r.root, r.run)
			s := r.source(t)
			for _, name := range names {
				full, err := s.CheckName(name)
				if err != nil {
					t.Fatal(err)
				}
				checkImage(t, name, find(t, s, full), want[name])
			}
			if s.Close(); tree(t, r.root, r.run) != before {
				t.Error("reading has left a trace in the store")
			}
		})
	}
}

func checkImage(t *testing.T, name string, img imgsrc.Listed, want inspected) {
	t.Helper()
	ctx := t.Context()
	desc := img.Desc()
	if desc.ID != want.ID || desc.Digest.String() != want.Digest || desc.Damaged != nil {
		t.Errorf("%s: %+v, podman has id %s and digest %s", name, desc, want.ID, want.Digest)
	}
	if !slices.Equal(img.Names, want.RepoTags) || !slices.Equal(sorted(img.RepoDigests), sorted(want.RepoDigests)) {
		t.Errorf("%s: names %v, digests %v, podman has %v and %v", name, img.Names, img.RepoDigests, want.RepoTags, want.RepoDigests)
	}
	manifest, err := img.Manifest(ctx)
	if err != nil || sha(manifest) != want.Digest || int64(len(manifest)) != desc.Size {
		t.Errorf("%s: manifest of %d bytes, %v", name, len(manifest), err)
	}
	config, err := img.Config(ctx)
	if err != nil || sha(config) != "sha256:"+want.ID || sha(config) != desc.Config.String() {
		t.Errorf("%s: config of %d bytes, %v", name, len(config), err)
	}
	docker := strings.Contains(desc.MediaType, "docker")
	if docker != strings.Contains(name, "docker") {
		t.Errorf("%s has the media type %s", name, desc.MediaType)
	}
	for n, id := range want.RootFS.Layers {
		diff, err := img.Diff(ctx, n)
		if err != nil {
			t.Errorf("%s: layer %d: %v", name, n, err)
			continue
		}
		data, err := sourcetest.ReadAll(ctx, diff)
		size, sizeErr := diff.Size(ctx)
		if err != nil || sizeErr != nil || sha(data) != id || size != int64(len(data)) {
			t.Errorf("%s: layer %d has %d bytes (%v), size %d (%v), and is not %s", name, n, len(data), err, size, sizeErr, id)
		}
		checkReads(t, diff, data)
		// What was made here has uncompressed layers in its manifest.
		blob, err := img.Blob(ctx, digest.Digest(id))
		if err != nil {
			t.Errorf("%s: blob %d: %v", name, n, err)
			continue
		}
		if again, err := sourcetest.ReadAll(ctx, blob); err != nil || !bytes.Equal(again, data) {
			t.Errorf("%s: blob %d has %d bytes, %v", name, n, len(again), err)
		}
		if err := errors.Join(diff.Close(), blob.Close()); err != nil {
			t.Error(err)
		}
	}
	for _, n := range []int{-1, len(want.RootFS.Layers)} {
		if _, err := img.Diff(ctx, n); !errors.Is(err, imgsrc.ErrAbsent) {
			t.Errorf("%s: layer %d: %v", name, n, err)
		}
	}
	for _, d := range []digest.Digest{desc.Config, digest.FromString("nothing")} {
		if _, err := img.Blob(ctx, d); !errors.Is(err, imgsrc.ErrAbsent) {
			t.Errorf("%s: blob %s: %v", name, d, err)
		}
	}
}

// checkReads compares reads at random offsets, by eight readers at once, with the bytes in their order.
func checkReads(t *testing.T, c imgsrc.Content, want []byte) {
	t.Helper()
	parallel(8, func(i int) {
		rnd := rand.New(rand.NewPCG(uint64(i), 1))
		for range 40 {
			p := make([]byte, rnd.IntN(1<<rnd.IntN(19)))
			off := rnd.IntN(len(want) + 10)
			n, err := c.ReadAt(t.Context(), p, int64(off))
			expect := want[min(off, len(want)):min(off+len(p), len(want))]
			if !bytes.Equal(p[:n], expect) || n < len(p) && !errors.Is(err, io.EOF) || n == len(p) && err != nil {
				t.Errorf("reading %d bytes at %d of %d: %d, %v", len(p), off, len(want), n, err)
			}
		}
	})
	if n, err := c.ReadAt(t.Context(), nil, 0); n != 0 || err != nil {
		t.Errorf("reading nothing: %d, %v", n, err)
	}
	if _, err := c.ReadAt(t.Context(), make([]byte, 1), -1); err == nil {
		t.Error("reading at a negative offset does not fail")
	}
}

func sorted(s []string) []string {
	s = slices.Clone(s)
	slices.Sort(s)
	return s
}

func TestReadsDoNotWaitForTheStoresLocks(t *testing.T) {
	r := newReal(t, "overlay")
	src := t.TempDir()
	write(t, []byte("x"), src, "x")
	r.commit(t, "localhost/x", "oci", src)
	for _, file := range []string{"storage.lock", "overlay-images/images.lock", "overlay-layers/layers.lock", "overlay-containers/containers.lock"} {
		lock(t, filepath.Join(r.root, file))
	}
	s := r.source(t)
	img := find(t, s, "localhost/x:latest")
	if _, err := img.Manifest(t.Context()); err != nil {
		t.Error(err)
	}
	diff, err := img.Diff(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if data, err := sourcetest.ReadAll(t.Context(), diff); err != nil || len(data) == 0 {
		t.Errorf("%d bytes, %v", len(data), err)
	}
}

func TestPodmanWorksBesideReaders(t *testing.T) {
	r := newReal(t, "overlay")
	src := t.TempDir()
	write(t, noise(1, 5<<20), src, "file")
	r.commit(t, "localhost/x", "oci", src)
	s := r.source(t)
	img := find(t, s, "localhost/x:latest")
	diff, err := img.Diff(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	want, err := sourcetest.ReadAll(t.Context(), diff)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	done := make(chan error, 4)
	for range cap(done) {
		go func() {
			for {
				if data, err := sourcetest.ReadAll(ctx, diff); err != nil {
					done <- err
					return
				} else if !bytes.Equal(data, want) {
					done <- errors.New("other bytes")
					return
				}
			}
		}()
	}
	r.do(t, "podman", "tag", "localhost/x", "localhost/y")
	find(t, s, "localhost/y:latest")
	archive := filepath.Join(t.TempDir(), "y.tar")
	r.do(t, "podman", "save", "-o", archive, "localhost/y")
	r.do(t, "podman", "rmi", "localhost/y")
	r.do(t, "podman", "rmi", "localhost/x")
	// Files that are open can still be read, until the next listing.
	if list, err := s.List(t.Context()); err != nil || len(list.Images) != 0 {
		t.Errorf("%v, %v", list, err)
	}
	for range cap(done) {
		if err := <-done; !errors.Is(err, imgsrc.ErrNotFound) {
			t.Errorf("reading an image that was removed: %v", err)
		}
	}
	if _, err := img.Manifest(t.Context()); !errors.Is(err, imgsrc.ErrNotFound) {
		t.Errorf("manifest of an image that was removed: %v", err)
	}
	if _, err := img.Diff(t.Context(), 0); !errors.Is(err, imgsrc.ErrNotFound) {
		t.Errorf("layer of an image that was removed: %v", err)
	}
	// The same image comes back, unpacked anew.
	r.do(t, "podman", "load", "-i", archive)
	again, err := find(t, s, "localhost/y:latest").Diff(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if data, err := sourcetest.ReadAll(t.Context(), again); err != nil || !bytes.Equal(data, want) {
		t.Errorf("%d bytes, %v", len(data), err)
	}
}

// tar-split records a sparse file's length, not the bytes that are in the tar: such a tar cannot be made again, and must
// not be made up. Its files are there. (What GNU tar writes without PAX is refused by podman itself.)
func TestSparseTarIsNotMadeUp(t *testing.T) {
	r := newReal(t, "overlay")
	needs.Programs(t, "tar")
	dir := t.TempDir()
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "hole"), []byte("x"), 0o644), os.Truncate(filepath.Join(dir, "hole"), 10<<20)); err != nil {
		t.Fatal(err)
	}
	needs.Run(t, "tar", "-C", dir, "--format=pax", "-S", "-cf", filepath.Join(dir, "sparse.tar"), "hole")
	r.do(t, "podman", "import", filepath.Join(dir, "sparse.tar"), "localhost/sparse")
	img := find(t, r.source(t), "localhost/sparse:latest")
	diff, err := img.Diff(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if data, err := sourcetest.ReadAll(t.Context(), diff); !errors.Is(err, imgsrc.ErrDamaged) || len(data) > 0 {
		t.Errorf("%d bytes, %v", len(data), err)
	}
	files, err := img.Files(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer files.Close()
	var names []string
	err = files.Entries(t.Context(), func(f *imgsrc.File) error {
		names = append(names, f.Name)
		body := make([]byte, f.Stored)
		_, err := files.ReadBody(t.Context(), imgsrc.Body{Path: f.Name, Size: f.Stored, Where: f.Where}, body, 0)
		if err == io.EOF {
			err = nil
		}
		if want := append([]byte("x"), make([]byte, 10<<20-1)...); f.Size != 10<<20 || !bytes.Equal(body, want) {
			t.Errorf("%s has %d bytes, or others than what was there", f.Name, f.Size)
		}
		return err
	})
	if err != nil || !slices.Equal(names, []string{"hole"}) {
		t.Errorf("files %q, %v", names, err)
	}
}

func TestSeveralManifestsAndLists(t *testing.T) {
	r := newReal(t, "overlay")
	src := t.TempDir()
	write(t, []byte("x"), src, "x")
	r.commit(t, "localhost/x", "oci", src)
	// The same config under a manifest with compressed layers.
	spec := fmt.Sprintf("containers-storage:[%s@%s+%s]localhost/", r.driver, r.root, r.run)
	dir := "dir:" + filepath.Join(t.TempDir(), "dir")
	needs.Run(t, "skopeo", "copy", "--dest-compress", spec+"x:latest", dir)
	needs.Run(t, "skopeo", "copy", "--insecure-policy", dir, spec+"y:latest")
	r.do(t, "podman", "manifest", "create", "localhost/list")
	r.do(t, "podman", "manifest", "add", "localhost/list", "containers-storage:localhost/x")
	ctr := r.do(t, "buildah", "from", "--pull-never", "localhost/x")

	s := r.source(t)
	list, err := s.List(t.Context())
	if err != nil || len(list.Problems) > 0 {
		t.Fatal(err, list.Problems)
	}
	id := r.inspect(t, "localhost/x").ID
	var same []imgsrc.Listed
	for _, img := range list.Images {
		if img.Desc().ID == id {
			same = append(same, img)
		}
	}
	if len(same) != 2 {
		t.Fatalf("%d manifests over one config", len(same))
	}
	if info := r.inspect(t, "localhost/x"); same[0].Desc().Digest.String() == "" || !slices.Equal(sorted(same[0].RepoDigests), sorted(info.RepoDigests)) {
		t.Errorf("%v, podman has %v", same[0].RepoDigests, info.RepoDigests)
	}
	containers := strings.Fields(r.do(t, "buildah", "containers", "--quiet", "--notruncate", "--filter", "name="+ctr))
	for _, img := range same {
		text, err := img.Manifest(t.Context())
		if err != nil || sha(text) != img.Desc().Digest.String() || img.Desc().Config.Encoded() != id {
			t.Errorf("%+v: %v", img.Desc(), err)
		}
		if !slices.Equal(img.Containers, containers) {
			t.Errorf("containers %v, buildah has %v", img.Containers, containers)
		}
		if _, err := img.Diff(t.Context(), 0); err != nil {
			t.Error(err)
		}
		parsed, err := parseManifest(text)
		if err != nil {
			t.Fatal(err)
		}
		// One of them has its layer as it is, the other compressed.
		blob := parsed.Layers[0].Digest
		_, err = img.Blob(t.Context(), blob)
		if compressed := blob.String() != r.inspect(t, "localhost/x").RootFS.Layers[0]; compressed != errors.Is(err, imgsrc.ErrAbsent) {
			t.Errorf("blob %s: %v", blob, err)
		}
	}

	index := find(t, s, "localhost/list:latest")
	if d := index.Desc(); !strings.Contains(d.MediaType, "index") && !strings.Contains(d.MediaType, "list") || d.Config != "" || d.Damaged != nil {
		t.Errorf("%+v", d)
	}
	if _, err := index.Manifest(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := index.Config(t.Context()); !errors.Is(err, imgsrc.ErrAbsent) {
		t.Error(err)
	}
	if _, err := index.Diff(t.Context(), 0); !errors.Is(err, imgsrc.ErrAbsent) {
		t.Error(err)
	}
	// A list that changes is another image under the same id.
	write(t, []byte("z"), src, "z")
	r.commit(t, "localhost/z", "oci", src)
	r.do(t, "podman", "manifest", "add", "localhost/list", "containers-storage:localhost/z")
	if _, err := index.Manifest(t.Context()); !errors.Is(err, imgsrc.ErrNotFound) {
		t.Errorf("manifest of a list that was changed: %v", err)
	}
	if now := find(t, s, "localhost/list:latest").Desc(); now.ID != index.Desc().ID || now.Digest == index.Desc().Digest || now.Damaged != nil {
		t.Errorf("%+v", now)
	}
}
