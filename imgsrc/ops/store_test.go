package ops

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/image/v5/types"
	cs "go.podman.io/storage"
	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/test/needs"
)

// podmanImage is what podman says of an image.
type podmanImage struct {
	ID       string `json:"Id"`
	Digest   string
	RepoTags []string
}

func inspectIn(t *testing.T, store []string, name string) podmanImage {
	t.Helper()
	var images []podmanImage
	if err := json.Unmarshal([]byte(needs.Run(t, "podman", append(store, "image", "inspect", name)...)), &images); err != nil {
		t.Fatal(err)
	}
	return images[0]
}

func TestPushToStore(t *testing.T) {
	for _, driver := range []string{"overlay", "vfs"} {
		t.Run(driver, func(t *testing.T) {
			s := newStore(t, driver)
			spec, store := s.spec(), []string{"--root", s.root, "--runroot", s.run, "--storage-driver", driver}
			for name, img := range testImages(t) {
				o, _ := newOps(t, Options{}, img)
				name = "localhost/" + strings.ReplaceAll(name, " ", "-") + ":1"
				if err := o.Do(t.Context(), pushTo(img, spec+name)); err != nil {
					t.Fatal(err)
				}
				got := inspectIn(t, store, name)
				if got.ID != img.desc.ID {
					t.Errorf("%s: %s, want %s", name, got.ID, img.desc.ID)
				}
				if strings.HasSuffix(name, "with-blobs:1") && got.Digest != img.desc.Digest.String() {
					t.Errorf("%s: digest %s, want %s", name, got.Digest, img.desc.Digest)
				}
				// The very image once more, from a source that says of it what the store says: a name more, and no other change.
				same := *img
				same.manifest = []byte(needs.Run(t, "skopeo", "inspect", "--raw", spec+name))
				same.desc.Digest, _ = manifest.Digest(same.manifest)
				again, _ := newOps(t, Options{}, &same)
				if err := again.Do(t.Context(), pushTo(&same, spec+"localhost/other:1")); err != nil {
					t.Fatal(err)
				}
				if other := inspectIn(t, store, "localhost/other:1"); other.ID != got.ID || other.Digest != got.Digest || len(other.RepoTags) != 2 {
					t.Errorf("%+v, was %+v", other, got)
				}
				rejecting, _ := newOps(t, Options{SignaturePolicy: write(t, `{"default":[{"type":"reject"}]}`)}, &same)
				if err := rejecting.Do(t.Context(), pushTo(&same, spec+"localhost/third:1")); !errors.Is(err, imgsrc.ErrDenied) {
					t.Errorf("rejected by policy: %v", err)
				}
			}
			if out := needs.Run(t, "podman", append(store, "images", "-q", "--no-trunc")...); strings.Count(out, "\n") != 4 {
				t.Errorf("%s", out)
			}
		})
	}
}

// TestStoreLeavesNoMount pushes into a store that podman has never seen.
func TestStoreLeavesNoMount(t *testing.T) {
	needs.Root(t)
	dir := t.TempDir()
	img := smallImage(t)
	o, _ := newOps(t, Options{}, img)
	if err := o.Do(t.Context(), pushTo(img, "containers-storage:[overlay@"+dir+"/root+"+dir+"/run]localhost/x")); err != nil {
		t.Fatal(err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), dir) {
		t.Errorf("a mount is left: %s", mounts)
		_ = unix.Unmount(dir+"/root/overlay", unix.MNT_DETACH)
	}
}

// TestPushNoSpace pushes into a file system that is too small.
func TestPushNoSpace(t *testing.T) {
	needs.Root(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=2m"); err != nil {
		needs.Unmet(t, "to mount a tmpfs: "+err.Error())
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	img := newImage(t, imgspecv1.MediaTypeImageManifest, false, "", tarOf("f", noise(5_000_000)))
	for _, dest := range []string{"docker-archive:%s/out", "oci-archive:%s/out:x", "dir:%s/out", "oci:%s/out:x"} {
		o, _ := newOps(t, Options{}, img)
		if err := o.Do(t.Context(), pushTo(img, strings.ReplaceAll(dest, "%s", dir))); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("%s: %v", dest, err)
		}
		if entries, _ := os.ReadDir(dir); len(entries) > 0 {
			t.Errorf("%s left %v", dest, entries)
		}
	}
}

// TestPushToEngine has a Docker engine of the test's own.
func TestPushToEngine(t *testing.T) {
	var mu sync.Mutex
	var loaded []byte
	socket := filepath.Join(t.TempDir(), "docker.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Api-Version", "1.44")
		if strings.HasSuffix(r.URL.Path, "/images/load") {
			text, _ := io.ReadAll(r.Body)
			mu.Lock()
			loaded = text
			mu.Unlock()
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, `{"stream":"Loaded image"}`)
		}
	})}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { server.Close() })
	t.Setenv("DOCKER_HOST", "unix://"+socket)
	img := testImages(t)["oci without blobs"]
	o, _ := newOps(t, Options{}, img)
	if err := o.Do(t.Context(), pushTo(img, "docker-daemon:localhost/web:1")); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if !strings.Contains(string(loaded), `"RepoTags":["localhost/web:1"]`) || !strings.Contains(string(loaded), img.desc.ID) {
		t.Errorf("%d bytes loaded, not the image", len(loaded))
	}
	t.Setenv("DOCKER_HOST", "unix://"+socket+".none")
	if err := o.Do(t.Context(), pushTo(img, "docker-daemon:localhost/web:1")); err == nil || !strings.Contains(err.Error(), "docker-daemon") {
		t.Error(err)
	}
}

// panicking is a store of the mount in which the library panics.
type panicking struct {
	*receiving
	late bool // when the image has been copied, not before
}

func (p *panicking) IsStore(cs.StoreOptions) bool { return true }

func (p *panicking) Receive(ctx context.Context, name, id string, copy func(to types.ImageReference) error) error {
	if p.late {
		if err := p.receiving.Receive(ctx, name, id, copy); err != nil {
			return err
		}
	}
	panic("no such layer")
}

// A panic in a store ends the push and nothing else.
func TestPushToPanickingStore(t *testing.T) {
	img := smallImage(t)
	for _, late := range []bool{false, true} {
		src := &fakeSource{name: "oci:/srv/fake", images: []imgsrc.Listed{{Image: img}}}
		o, log := newOpsOn(t, Options{}, src, &panicking{newReceiving(t), late})
		err := o.Do(t.Context(), pushTo(img, "containers-storage:localhost/x:1"))
		if err == nil || !strings.Contains(err.Error(), "internal error; the log has more") || !strings.Contains(log.String(), "no such layer") {
			t.Errorf("late %v: %v, log %s", late, err, log)
		}
	}
}
