package ops

import (
	"context"
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/storage"
	"github.com/imgfs/imgfs/test/needs"
	"github.com/imgfs/imgfs/test/servers"
)

// A realStore is a store of podman's that a test may do anything to.
type realStore struct{ root, run, driver string }

func newStore(t *testing.T, driver string) realStore {
	t.Helper()
	needs.Programs(t, "podman", "buildah", "skopeo")
	needs.Root(t)
	dir, err := os.MkdirTemp("", "imgfs") // podman takes no long path for what it runs on
	if err != nil {
		t.Fatal(err)
	}
	s := realStore{dir + "/root", dir + "/run", driver}
	t.Cleanup(func() {
		_ = unix.Unmount(filepath.Join(s.root, driver), unix.MNT_DETACH) // podman makes a mount of its own
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return s
}

// spec is the store in containers-storage: references.
func (s realStore) spec() string {
	return "containers-storage:[" + s.driver + "@" + s.root + "+" + s.run + "]"
}

func (s realStore) tool(t *testing.T, tool string, args ...string) string {
	t.Helper()
	return needs.Line(t, tool, append([]string{"--root", s.root, "--runroot", s.run, "--storage-driver", s.driver}, args...)...)
}

// build makes an image of two layers and returns its id.
func (s realStore) build(t *testing.T, format, name string) string {
	t.Helper()
	dir := t.TempDir()
	from := "scratch"
	for _, layer := range []string{"first", "second"} {
		if err := os.WriteFile(filepath.Join(dir, layer), noise(1_000_000+len(name)), 0o644); err != nil {
			t.Fatal(err)
		}
		container := s.tool(t, "buildah", "from", from)
		s.tool(t, "buildah", "copy", container, filepath.Join(dir, layer), "/"+layer)
		from = s.tool(t, "buildah", "commit", "--rm", "-q", "--format", format, container, name)
	}
	return s.tool(t, "podman", "image", "inspect", "--format", "{{.Id}}", name)
}

func (s realStore) open(t *testing.T) *storage.Source {
	t.Helper()
	src, err := storage.Open(t.Context(), storage.Options{GraphRoot: s.root, RunRoot: s.run, Driver: s.driver})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := src.Close(); err != nil {
			t.Error(err)
		}
	})
	return src
}

// TestRealStore pushes from a store that buildah made, and tags in it.
func TestRealStore(t *testing.T) {
	host := servers.Distribution(t, "")
	for _, driver := range []string{"overlay", "vfs"} {
		t.Run(driver, func(t *testing.T) {
			s := newStore(t, driver)
			ids := map[string]string{"oci": s.build(t, "oci", "localhost/oci:1"), "docker": s.build(t, "docker", "localhost/docker:1")}
			o, _ := newOpsOn(t, Options{}, s.open(t))
			do := func(control, id string, words ...string) error {
				return o.Do(t.Context(), Request{Control: control, Image: id, Lines: [][]string{words}, UID: uint32(os.Getuid())})
			}
			for format, id := range ids {
				dir := t.TempDir()
				for dest, from := range map[string]string{
					host + "/" + driver + ":" + format:          "docker://" + host + "/" + driver + ":" + format,
					"docker-archive:" + dir + "/d.tar:x:" + "1": "docker-archive:" + dir + "/d.tar",
					"dir:" + dir + "/dir":                       "dir:" + dir + "/dir",
				} {
					if err := do("push", id, dest); err != nil {
						t.Fatal(err)
					}
					if m := inspect(t, "--tls-verify=false", from); m.Config.Digest.Encoded() != id || len(m.Layers) != 2 {
						t.Errorf("%s: config %s of image %s", dest, m.Config.Digest, id)
					}
				}
				before := s.tool(t, "podman", "image", "inspect", "--format", "{{.Digest}}", id)
				if err := do("push", id, s.spec()+"localhost/copy:"+format); err != nil {
					t.Fatal(err)
				}
				if err := do("tags", id, "+tagged:"+format); err != nil {
					t.Fatal(err)
				}
				for _, name := range []string{"copy", "tagged"} {
					got := s.tool(t, "podman", "image", "inspect", "--format", "{{.Id}} {{.Digest}}", "localhost/"+name+":"+format)
					if got != id+" "+before {
						t.Errorf("%s is %s, not %s %s", name, got, id, before)
					}
				}
				if err := do("tags", id, "-tagged:"+format); err != nil {
					t.Error(err)
				}
				if err := do("tags", id, "-tagged:"+format); !errors.Is(err, imgsrc.ErrNotFound) {
					t.Errorf("untagging twice: %v", err)
				}
			}
		})
	}
}

// TestStoreIsFree lets podman write to the store while a push out of it stands still in the middle of a layer.
func TestStoreIsFree(t *testing.T) {
	s := newStore(t, "overlay")
	id := s.build(t, "oci", "localhost/web:1")
	stalled, release := make(chan struct{}, 10), make(chan struct{})
	host := startEmbedded(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPatch {
				_, _ = io.CopyN(io.Discard, r.Body, 1000)
				stalled <- struct{}{}
				<-release
				return
			}
			h.ServeHTTP(w, r)
		})
	})
	t.Cleanup(func() { close(release) })
	o, _ := newOpsOn(t, Options{}, s.open(t))
	done := make(chan error)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		done <- o.Do(ctx, Request{Control: "push", Image: id, Lines: [][]string{{host + "/web:1"}}, Key: "k"})
	}()
	<-stalled
	for _, args := range [][]string{{"tag", "localhost/web:1", "localhost/other:1"}, {"rmi", "localhost/other:1"}, {"images"}} {
		command := append([]string{"--root", s.root, "--runroot", s.run, "--storage-driver", s.driver}, args...)
		limit, stop := context.WithTimeout(t.Context(), time.Minute) // or it would wait for the push for ever
		if out, err := exec.CommandContext(limit, "podman", command...).CombinedOutput(); err != nil {
			t.Errorf("podman %s beside a push: %v\n%s", args[0], err, out)
		}
		stop()
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// TestMakeWhole pushes and loads an image into a store that has it and has lost a part of it.
func TestMakeWhole(t *testing.T) {
	img := testImages(t)["oci with blobs"]
	dir := t.TempDir()
	loaded := &fakeSource{name: "oci:" + dir, images: []imgsrc.Listed{{Image: img, Names: []string{"localhost/b:1"}}}}
	for lost, lose := range map[string]string{
		"config": "rm =$(printf %s " + img.desc.Config.String() + " | base64 -w0)", "layers": "rm -r ../../overlay-layers ../../overlay/*",
	} {
		for _, control := range []string{"push", "load"} {
			s := newStore(t, "overlay")
			pushing, _ := newOps(t, Options{}, img)
			if err := pushing.Do(t.Context(), pushTo(img, s.spec()+"localhost/a:1")); err != nil {
				t.Fatal(err)
			}
			needs.Run(t, "sh", "-c", "cd "+filepath.Join(s.root, "overlay-images", img.desc.ID)+" && "+lose)
			var err error
			if control == "push" {
				err = pushing.Do(t.Context(), pushTo(img, s.spec()+"localhost/b:1"))
			} else {
				loading, _ := newOpsOn(t, Options{Open: opens(dir, loaded)}, s.open(t))
				err = loading.Do(t.Context(), request("load", dir))
			}
			if err != nil {
				t.Errorf("%s: %v", control, err)
			}
			list, err := s.open(t).List(t.Context())
			if err != nil || len(list.Images) != 1 || !isWhole(t.Context(), list.Images[0].Image) || len(list.Images[0].Names) != 2 {
				t.Errorf("after a %s the store lacks the %s: %+v, %v", control, lost, list, err)
			}
		}
	}
}

// TestMakePartWhole loads an index into a store that has its image, and has lost the manifest by which the index lists it; under
// another one the image is whole.
func TestMakePartWhole(t *testing.T) {
	img := testImages(t)["oci with blobs"]
	other := *img
	other.manifest = append([]byte(" "), img.manifest...)
	other.desc.Digest, other.desc.Size = digest.FromBytes(other.manifest), int64(len(other.manifest))
	s := newStore(t, "overlay")
	pushing, _ := newOps(t, Options{}, img)
	if err := pushing.Do(t.Context(), pushTo(img, s.spec()+"localhost/a:1")); err != nil {
		t.Fatal(err)
	}
	load := func(one *fakeImage, name string) {
		t.Helper()
		index := newIndex(t, one)
		index.desc.Lists = []digest.Digest{one.desc.Digest}
		dir := t.TempDir()
		src := &fakeSource{name: "oci:" + dir, images: []imgsrc.Listed{{Image: index, Names: []string{name}}, {Image: one}}}
		o, _ := newOpsOn(t, Options{Open: opens(dir, src)}, s.open(t))
		if err := o.Do(t.Context(), request("load", dir)); err != nil {
			t.Fatal(err)
		}
	}
	load(img, "localhost/index:1")
	load(&other, "localhost/index:2")
	data := base64.StdEncoding.EncodeToString([]byte("manifest-" + img.desc.Digest.String()))
	if err := os.Remove(filepath.Join(s.root, "overlay-images", img.desc.ID, "="+data)); err != nil {
		t.Fatal(err)
	}
	load(img, "localhost/index:1")
	list, err := s.open(t).List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, have := range list.Images {
		if !isWhole(t.Context(), have.Image) {
			t.Errorf("%s: %v", have.Desc().Digest, have.Desc().Damaged)
		}
	}
}
