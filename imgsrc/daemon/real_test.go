package daemon

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/test/needs"
	"github.com/imgfs/imgfs/test/servers"
)

// A dockerd is an engine of Debian's.
type dockerd struct{ *servers.Dockerd }

func startDockerd(t testing.TB) *dockerd {
	t.Helper()
	return &dockerd{servers.StartDockerd(t)}
}

// importImage makes an image of one layer.
func (d *dockerd) importImage(name string, files ...tarFile) {
	d.Helper()
	file := filepath.Join(d.TempDir(), "layer.tar")
	if err := os.WriteFile(file, tarOf(d.TB, files...), 0o600); err != nil {
		d.Fatal(err)
	}
	d.Docker("import", "-c", "ENV FROM="+name, file, name)
}

// build makes an image on another one, with files that have these contents.
func (d *dockerd) build(name, base string, contents ...string) {
	d.Helper()
	dir := d.TempDir()
	dockerfile := "FROM " + base + "\n"
	for _, c := range contents {
		file := digest.FromString(c).Encoded()[:8]
		if err := os.WriteFile(filepath.Join(dir, file), []byte(c), 0o644); err != nil {
			d.Fatal(err)
		}
		dockerfile += "COPY " + file + " /" + file + "\n"
	}
	dockerfile += "LABEL built=" + name + "\nCMD [\"x\"]\n"
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(dockerfile), 0o644); err != nil {
		d.Fatal(err)
	}
	cmd := exec.Command("docker", "-H", d.Host, "build", "-q", "-t", name, dir)
	cmd.Env = append(os.Environ(), "DOCKER_BUILDKIT=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		d.Fatalf("%v\n%s", err, out)
	}
}

// populate makes the images that most tests go by: web has the layers of base and two more, of which the last is there
// twice, and twin the same layers with another config.
func (d *dockerd) populate() {
	d.Helper()
	d.importImage("base:1", tarFile{name: "./"}, tarFile{name: "etc/"}, tarFile{name: "etc/hello", body: []byte("hi\n")},
		tarFile{name: "big", body: bytes.Repeat([]byte("0123456789abcdef"), 200_000)}, tarFile{name: "link", link: "etc/hello"})
	d.build("web:1", "base:1", "one", strings.Repeat("two", 100_000))
	d.build("localhost:5000/team/twin:2", "web:1")
	d.Docker("tag", "web:1", "web:stable")
}

func TestRealImagesAreWhatDockerReports(t *testing.T) {
	needs.Programs(t, "skopeo")
	d := startDockerd(t)
	d.populate()
	ctr := d.Docker("create", "web:1")
	cacheDir := t.TempDir()
	s := openSource(t, Options{Host: d.Host, Cache: testCache(t, cacheDir, 0), CacheDir: cacheDir})
	l, err := s.List(t.Context())
	if err != nil || len(l.Problems) > 0 || len(l.Images) != 3 {
		t.Fatal(err, l)
	}
	ids := strings.Fields(d.Docker("images", "--no-trunc", "--quiet"))
	for _, img := range l.Images {
		if id := "sha256:" + img.Desc().ID; !slices.Contains(ids, id) || img.Desc().Config.String() != id {
			t.Errorf("%+v is none of %v", img.Desc(), ids)
		}
	}
	if _, err := os.Stat(filepath.Join(cacheDir, "v1", "diff", "sha256")); err == nil {
		t.Error("listing has saved an image")
	}
	for _, name := range []string{"base:1", "web:1", "localhost:5000/team/twin:2"} {
		full, err := s.CheckName(name)
		if err != nil {
			t.Fatal(err)
		}
		img := find(t, s, full)
		var info []struct {
			Size   int64
			RootFS struct{ Layers []string }
		}
		if err := json.Unmarshal([]byte(d.Docker("image", "inspect", name)), &info); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(img.Layers, info[0].RootFS.Layers) || img.Unpacked != info[0].Size {
			t.Errorf("%s: %+v, docker has %+v", name, img, info)
		}
		raw, err := img.Manifest(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if want := needs.Run(t, "skopeo", "inspect", "--raw", "--daemon-host", d.Host, "docker-daemon:"+name); string(raw) != want {
			t.Errorf("%s: the manifest is\n%s\nand skopeo's\n%s", name, raw, want)
		}
		config, err := img.Config(t.Context())
		if err != nil || digest.FromBytes(config) != img.Desc().Config {
			t.Errorf("%s: %v, %s", name, err, config)
		}
		checkLayers(t, img)
	}
	web := find(t, s, "docker.io/library/web:1")
	if !slices.Equal(web.Names, []string{"docker.io/library/web:1", "docker.io/library/web:stable"}) || !slices.Equal(web.Containers, []string{ctr}) {
		t.Errorf("%+v", web)
	}
}

func TestRealRef(t *testing.T) {
	d := startDockerd(t)
	d.populate()
	for _, ref := range []string{"web:1", "docker.io/library/web:stable", d.Docker("image", "inspect", "-f", "{{.Id}}", "web:1")} {
		s := openSource(t, Options{Host: d.Host, Ref: ref})
		if l, err := s.List(t.Context()); err != nil || len(l.Images) != 1 || l.Images[0].Names[0] != "docker.io/library/web:1" {
			t.Errorf("%s: %v, %v", ref, l, err)
		}
	}
	for _, ref := range []string{"none", "../containers/json", "UPPER", strings.Repeat("a", 64)} {
		if _, err := Open(t.Context(), Options{Host: d.Host, Ref: ref}); !errors.Is(err, imgsrc.ErrNoSource) {
			t.Errorf("%s: %v", ref, err)
		}
	}
}

func TestRealTags(t *testing.T) {
	d := startDockerd(t)
	d.populate()
	s := openSource(t, Options{Host: d.Host})
	base := find(t, s, "docker.io/library/base:1").Desc()
	err := s.Tag(t.Context(), base, nil, []string{"docker.io/library/base:1"})
	if !errors.Is(err, imgsrc.ErrUnsupported) || !strings.Contains(err.Error(), "last name") {
		t.Errorf("removing the last name: %v", err)
	}
	if err := s.Tag(t.Context(), base, []string{"docker.io/library/base:2"}, []string{"docker.io/library/base:1"}); err != nil {
		t.Error(err)
	}
	if got := find(t, s, "docker.io/library/base:2"); len(got.Names) != 1 || got.Desc().ID != base.ID {
		t.Errorf("%+v", got)
	}
	// Another image's name is taken from it, and that image stays.
	if err := s.Tag(t.Context(), base, []string{"localhost:5000/team/twin:2"}, nil); err != nil {
		t.Error(err)
	}
	if l, err := s.List(t.Context()); err != nil || len(l.Images) != 3 {
		t.Errorf("%v, %v", l, err)
	}
}

func TestRealWatch(t *testing.T) {
	d := startDockerd(t)
	d.populate()
	s := openSource(t, Options{Host: d.Host})
	fired := make(chan struct{}, 100)
	go func() { _ = s.Watch(t.Context(), func() { fired <- struct{}{} }) }()
	wait := func(what string) {
		t.Helper()
		select {
		case <-fired:
		case <-time.After(20 * time.Second):
			t.Fatalf("%s was not noticed", what)
		}
		for time.Sleep(300 * time.Millisecond); len(fired) > 0; {
			<-fired
		}
	}
	wait("the beginning")
	d.Docker("tag", "web:1", "other:1")
	wait("a name")
	ctr := d.Docker("create", "web:1")
	wait("a container")
	d.Docker("rm", ctr)
	wait("a container that goes")
	d.Docker("rmi", "other:1")
	wait("a name that goes")
	d.Stop()
	wait("an engine that goes")
	if _, err := s.List(t.Context()); !errors.Is(err, imgsrc.ErrNotFound) || !strings.Contains(err.Error(), "no engine answers at "+d.Host) {
		t.Errorf("listing without an engine: %v", err)
	}
	d.Start()
	wait("an engine that comes back")
	find(t, s, "docker.io/library/web:1")
}

func TestRealImageThatIsRemoved(t *testing.T) {
	d := startDockerd(t)
	d.populate()
	s := openSource(t, Options{Host: d.Host})
	img := find(t, s, "localhost:5000/team/twin:2")
	d.Docker("rmi", "localhost:5000/team/twin:2")
	if _, err := img.Config(t.Context()); !errors.Is(err, imgsrc.ErrNotFound) {
		t.Errorf("config of an image that was removed: %v", err)
	}
	web := find(t, s, "docker.io/library/web:1")
	if _, err := web.Config(t.Context()); err != nil {
		t.Fatal(err)
	}
	d.Docker("rmi", "web:1", "web:stable")
	if _, err := s.List(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := web.Manifest(t.Context()); !errors.Is(err, imgsrc.ErrNotFound) {
		t.Errorf("manifest of an image that was removed: %v", err)
	}
}

// The service of podman speaks the same API.
func TestRealPodman(t *testing.T) {
	needs.Programs(t, "podman", "skopeo")
	dir := servers.ShortDir(t)
	podman := func(args ...string) []string {
		return append([]string{"--root", filepath.Join(dir, "root"), "--runroot", filepath.Join(dir, "run"), "--storage-driver", "vfs"}, args...)
	}
	file := filepath.Join(dir, "layer.tar")
	if err := os.WriteFile(file, tarOf(t, tarFile{name: "hello", body: []byte("hi\n")}), 0o600); err != nil {
		t.Fatal(err)
	}
	needs.Run(t, "podman", podman("import", file, "localhost/web:1")...)
	host := "unix://" + filepath.Join(dir, "sock")
	service := exec.Command("podman", podman("system", "service", "-t", "0", host)...)
	if err := service.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = service.Process.Signal(syscall.SIGTERM)
		_ = service.Wait() // how it exits is its own affair
	})
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if _, err := os.Stat(filepath.Join(dir, "sock")); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("podman's service does not start")
		}
	}
	s := openSource(t, Options{Host: host})
	img := find(t, s, "localhost/web:1")
	if sketch := img.Image.(imgsrc.Sketcher).Sketch(); sketch != nil { // what its service shows is not always what a config has
		t.Errorf("of podman's image is told %s", sketch.Config)
	}
	raw, err := img.Manifest(t.Context())
	if want := needs.Run(t, "skopeo", "inspect", "--raw", "--daemon-host", host, "docker-daemon:localhost/web:1"); err != nil || string(raw) != want {
		t.Errorf("%v, the manifest is\n%s\nand skopeo's\n%s", err, raw, want)
	}
	checkLayers(t, img)
}
