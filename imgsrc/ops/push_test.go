package ops

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/manifest"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/test/needs"
	"github.com/imgfs/imgfs/test/servers"
)

// inspected is the manifest that skopeo finds somewhere.
type inspected struct {
	MediaType string
	Config    imgspecv1.Descriptor
	Layers    []imgspecv1.Descriptor
	Manifests []imgspecv1.Descriptor
	digest    digest.Digest
}

func inspect(t *testing.T, args ...string) inspected {
	t.Helper()
	text := needs.Run(t, "skopeo", append([]string{"inspect", "--raw"}, args...)...)
	m := inspected{digest: digest.FromString(text)}
	if err := json.Unmarshal([]byte(text), &m); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return m
}

// images are the kinds of images that there are to push, of two layers each.
func testImages(t *testing.T) map[string]*fakeImage {
	layers := [][]byte{tarOf("etc/os-release", bytes.Repeat([]byte("ID=test\n"), 50000)), tarOf("srv/noise", noise(300_000))}
	return map[string]*fakeImage{
		"oci with blobs":       newImage(t, imgspecv1.MediaTypeImageManifest, true, "a", layers...),
		"oci without blobs":    newImage(t, imgspecv1.MediaTypeImageManifest, false, "b", layers...),
		"docker with blobs":    newImage(t, manifest.DockerV2Schema2MediaType, true, "c", layers...),
		"docker without blobs": newImage(t, manifest.DockerV2Schema2MediaType, false, "d", layers...),
	}
}

func TestPushEverywhere(t *testing.T) {
	needs.Programs(t, "skopeo", "docker-registry")
	host := servers.Distribution(t, "")
	for name, img := range testImages(t) {
		withBlobs, oci := strings.HasSuffix(name, "with blobs"), img.desc.MediaType == imgspecv1.MediaTypeImageManifest
		for _, test := range []struct {
			dest      string // %s: a directory
			from      []string
			sameID    bool // the config's bytes are the image's
			preserved bool // the manifest's too
		}{
			{host + "/web:1", []string{"--tls-verify=false", "docker://" + host + "/web:1"}, true, withBlobs},
			{"oci:%s/layout:web", []string{"oci:%s/layout:web"}, oci, withBlobs && oci},
			{"oci-archive:%s/web.tar:web", []string{"oci-archive:%s/web.tar:web"}, oci, withBlobs && oci},
			{"docker-archive:%s/web.tar:localhost/web:1", []string{"docker-archive:%s/web.tar:localhost/web:1"}, true, false},
			{"docker-archive:%s/untagged.tar", []string{"docker-archive:%s/untagged.tar"}, true, false},
			{"dir:%s/dir", []string{"dir:%s/dir"}, true, withBlobs},
		} {
			t.Run(name+" to "+strings.Split(test.dest, ":")[0], func(t *testing.T) {
				dir := t.TempDir()
				o, _ := newOps(t, Options{}, img)
				if err := o.Do(t.Context(), pushTo(img, strings.ReplaceAll(test.dest, "%s", dir))); err != nil {
					t.Fatal(err)
				}
				var args []string
				for _, arg := range test.from {
					args = append(args, strings.ReplaceAll(arg, "%s", dir))
				}
				m := inspect(t, args...)
				if same := m.Config.Digest == img.desc.Config; same != test.sameID {
					t.Errorf("config %s, image's is %s", m.Config.Digest, img.desc.Config)
				}
				if same := m.digest == img.desc.Digest; test.preserved && !same {
					t.Errorf("manifest %s, image's is %s", m.digest, img.desc.Digest)
				}
				needs.Run(t, "skopeo", "copy", "--src-tls-verify=false", args[len(args)-1], "dir:"+filepath.Join(t.TempDir(), "copy"))
				noStaging(t, dir)
				text, _ := o.Events()
				status := "save"
				if strings.HasPrefix(test.dest, host) {
					status = "push"
				}
				if e := lastEvent(t, text); e.Type != status || e.Image != img.desc.ID || e.Reference == "" || e.User == nil {
					t.Errorf("event %s", text)
				}
			})
		}
	}
}

// noStaging fails if a push has left its directory behind.
func noStaging(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if strings.Contains(filepath.Base(path), stagingPrefix) {
			t.Errorf("%s is left over", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func lastEvent(t *testing.T, text []byte) event {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	var e event
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &e); err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	return e
}

func TestPushKeys(t *testing.T) {
	needs.Programs(t, "skopeo", "docker-registry")
	host := servers.Distribution(t, "")
	images := testImages(t)
	store, blobs := images["docker without blobs"], images["oci with blobs"]
	for _, test := range []struct {
		img   *fakeImage
		dest  string
		words []string
		from  string
		typ   string
		layer string
	}{
		{store, host + "/web:1", []string{"format=oci"}, "", imgspecv1.MediaTypeImageManifest, imgspecv1.MediaTypeImageLayerGzip},
		{blobs, host + "/web:1", []string{"format=v2s2"}, "", manifest.DockerV2Schema2MediaType, manifest.DockerV2Schema2LayerMediaType},
		{store, host + "/web:1", []string{"compression=zstd"}, "", imgspecv1.MediaTypeImageManifest, imgspecv1.MediaTypeImageLayerZstd},
		{blobs, host + "/web:1", []string{"compression=zstd:chunked"}, "", imgspecv1.MediaTypeImageManifest, imgspecv1.MediaTypeImageLayerZstd},
		{store, host + "/web:2", []string{"compression=none"}, "", manifest.DockerV2Schema2MediaType, manifest.DockerV2SchemaLayerMediaTypeUncompressed},
		{blobs, host + "/web:2", []string{"compression=none"}, "", imgspecv1.MediaTypeImageManifest, imgspecv1.MediaTypeImageLayer},
		{blobs, "oci:%s/l", []string{"compression=none"}, "oci:%s/l", imgspecv1.MediaTypeImageManifest, imgspecv1.MediaTypeImageLayer},
		{blobs, "oci:%s/l:a", []string{"compression=zstd", "format=oci"}, "oci:%s/l:a", imgspecv1.MediaTypeImageManifest, imgspecv1.MediaTypeImageLayerZstd},
		{store, "dir:%s/d", nil, "dir:%s/d", manifest.DockerV2Schema2MediaType, manifest.DockerV2SchemaLayerMediaTypeUncompressed},
		{store, "dir:%s/d", []string{"compression=gzip"}, "dir:%s/d", manifest.DockerV2Schema2MediaType, manifest.DockerV2Schema2LayerMediaType},
		{blobs, "dir:%s/d", []string{"compression=none"}, "dir:%s/d", imgspecv1.MediaTypeImageManifest, imgspecv1.MediaTypeImageLayer},
	} {
		t.Run(test.dest+" "+strings.Join(test.words, " "), func(t *testing.T) {
			dir := t.TempDir()
			o, _ := newOps(t, Options{}, test.img)
			words := append([]string{strings.ReplaceAll(test.dest, "%s", dir)}, test.words...)
			if err := o.Do(t.Context(), pushTo(test.img, words...)); err != nil {
				t.Fatal(err)
			}
			from := strings.ReplaceAll(test.from, "%s", dir)
			if from == "" {
				from = "docker://" + words[0]
			}
			m := inspect(t, "--tls-verify=false", from)
			if m.MediaType != test.typ || len(m.Layers) != 2 || m.Layers[0].MediaType != test.layer {
				t.Errorf("%s with layers %v", m.MediaType, m.Layers)
			}
			chunked := m.Layers[0].Annotations["io.github.containers.zstd-chunked.manifest-checksum"] != ""
			if want := strings.Contains(strings.Join(words, " "), "chunked"); chunked != want {
				t.Errorf("zstd:chunked is %v, want %v", chunked, want)
			}
		})
	}
}

func TestPushSchema1(t *testing.T) {
	img := testImages(t)["docker without blobs"]
	dir := filepath.Join(t.TempDir(), "d")
	o, _ := newOps(t, Options{}, img)
	if err := o.Do(t.Context(), pushTo(img, "dir:"+dir, "format=v2s1", "compression=gzip")); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "manifest.json"))
	if err != nil {
		t.Fatal(err)
	}
	if typ := manifest.GuessMIMEType(text); typ != manifest.DockerV2Schema1SignedMediaType {
		t.Errorf("manifest is %s", typ)
	}
}

func TestPushIndex(t *testing.T) {
	needs.Programs(t, "skopeo")
	a := newImage(t, imgspecv1.MediaTypeImageManifest, true, "amd64", tarOf("a", noise(1000)))
	b := newImage(t, imgspecv1.MediaTypeImageManifest, false, "arm64", tarOf("b", noise(2000)))
	index := newIndex(t, a, b)
	dir := t.TempDir()
	o, _ := newOps(t, Options{}, index, a, b)

	if err := o.Do(t.Context(), pushTo(index, "oci:"+dir+"/all:x", "all=true")); err != nil {
		t.Fatal(err)
	}
	if m := inspect(t, "oci:"+dir+"/all:x"); len(m.Manifests) != 2 {
		t.Errorf("%+v", m)
	}
	preserved := newImage(t, imgspecv1.MediaTypeImageManifest, true, "arm64", tarOf("b", noise(2000)))
	whole := newIndex(t, a, preserved)
	kept, _ := newOps(t, Options{}, whole, a, preserved)
	if err := kept.Do(t.Context(), pushTo(whole, "dir:"+dir+"/kept", "all=true")); err != nil {
		t.Fatal(err)
	}
	if m := inspect(t, "dir:"+dir+"/kept"); m.digest != whole.desc.Digest {
		t.Errorf("index %s, want %s", m.digest, whole.desc.Digest)
	}

	missing, _ := newOps(t, Options{}, index, a)
	if err := missing.Do(t.Context(), pushTo(index, "oci:"+dir+"/missing:x", "all=true")); !errors.Is(err, imgsrc.ErrNotFound) {
		t.Errorf("index without an image: %v", err)
	}
	if _, err := os.Stat(dir + "/missing"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("failed push left a directory: %v", err)
	}
}

func TestPushIntoLayoutWithImages(t *testing.T) {
	needs.Programs(t, "skopeo")
	images := testImages(t)
	a, b := images["oci with blobs"], images["oci without blobs"]
	dir := filepath.Join(t.TempDir(), "layout")
	o, _ := newOps(t, Options{}, a, b)
	push := func(img *fakeImage, name string) {
		t.Helper()
		if err := o.Do(t.Context(), pushTo(img, "oci:"+dir+":"+name)); err != nil {
			t.Fatal(err)
		}
	}
	push(a, "one")
	push(b, "two")
	// What others keep in an index stays.
	path := filepath.Join(dir, "index.json")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text = bytes.Replace(text, []byte(`{`), []byte(`{"x-theirs":{"a":[1]},`), 1)
	if err := os.WriteFile(path, text, 0o644); err != nil {
		t.Fatal(err)
	}
	push(b, "one")
	push(b, "one")
	push(a, "three")
	for name, img := range map[string]*fakeImage{"one": b, "two": b, "three": a} {
		if m := inspect(t, "oci:"+dir+":"+name); m.Config.Digest != img.desc.Config {
			t.Errorf("%s is %s", name, m.Config.Digest)
		}
	}
	if text, _ := os.ReadFile(path); !bytes.Contains(text, []byte("x-theirs")) || bytes.Count(text, []byte(`"digest"`)) != 3 {
		t.Errorf("index is %s", text)
	}
	noStaging(t, dir)
}

// Another tool truncates the index, and writes it anew while an image is pushed. Its owner's mode stays.
func TestPushIntoLayoutThatIsWritten(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "layout")
	path := filepath.Join(dir, "index.json")
	a := newImage(t, imgspecv1.MediaTypeImageManifest, true, "a", tarOf("f", noise(1000)))
	b := newImage(t, imgspecv1.MediaTypeImageManifest, true, "b", tarOf("f", noise(1001)))
	o, _ := newOps(t, Options{}, a, b)
	if err := o.Do(t.Context(), pushTo(a, "oci:"+dir+":a")); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err == nil {
		err = os.Chmod(path, 0o660)
	}
	if err == nil {
		err = os.WriteFile(path, text[:20], 0)
	}
	if err == nil { // however long it is until the other goes on, what is there is young
		soon := time.Now().Add(time.Minute)
		err = os.Chtimes(path, soon, soon)
	}
	if err != nil {
		t.Fatal(err)
	}
	written := make(chan error, 1)
	go func() {
		time.Sleep(200 * time.Millisecond)
		written <- os.WriteFile(path, text, 0)
	}()
	if err := o.Do(t.Context(), pushTo(b, "oci:"+dir+":b")); err != nil {
		t.Error(err)
	}
	if err := <-written; err != nil {
		t.Error(err)
	}
	for _, img := range []*fakeImage{a, b} {
		if text, err := os.ReadFile(path); err != nil || !bytes.Contains(text, []byte(img.desc.Digest)) {
			t.Errorf("%s is not in the index: %s, %v", img.desc.Digest, text, err)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o660 {
		t.Errorf("the index's mode is %v, %v", info.Mode(), err)
	}
	noStaging(t, dir)
}

// What another tool writes between reading the index and replacing it is not lost.
func TestPushKeepsWhatOthersWrite(t *testing.T) {
	dir := t.TempDir()
	d := &layoutDir{path: dir, name: "x"}
	own := filepath.Join(dir, stagingPrefix+"1")
	files := map[string]string{
		filepath.Join(dir, "oci-layout"): `{"imageLayoutVersion":"1.0.0"}`,
		filepath.Join(dir, "index.json"): `{"manifests":[]}`,
		filepath.Join(own, "oci-layout"): `{"imageLayoutVersion":"1.0.0"}`,
		filepath.Join(own, "index.json"): `{"manifests":[{"digest":"sha256:ours"}]}`,
	}
	for i := range 20_000 { // it takes a moment to move them
		files[filepath.Join(own, "blobs", "sha256", fmt.Sprint(i))] = ""
	}
	for path, text := range files {
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	written := make(chan error, 1)
	go func() {
		for { // until the first blob has moved
			if _, err := os.Stat(filepath.Join(dir, "blobs")); err == nil {
				break
			}
		}
		written <- os.WriteFile(filepath.Join(dir, "index.json"), []byte(`{"manifests":[{"digest":"sha256:theirs"}]}`), 0o644)
	}()
	if err := d.merge(t.Context(), own, nil); err != nil {
		t.Fatal(err)
	}
	if err := <-written; err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "index.json"))
	if err != nil || !bytes.Contains(text, []byte("sha256:ours")) || !bytes.Contains(text, []byte("sha256:theirs")) {
		t.Errorf("the index is %s, %v", text, err)
	}
}

func TestPushManyIntoOneLayout(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "layout")
	var images []*fakeImage
	for i := range 50 {
		images = append(images, newImage(t, imgspecv1.MediaTypeImageManifest, true, "", tarOf("f", noise(i+1))))
	}
	o, _ := newOps(t, Options{}, images...)
	errs := make(chan error)
	for _, img := range images {
		go func() { errs <- o.Do(t.Context(), pushTo(img, "oci:"+dir+":"+img.desc.ID[:12])) }()
	}
	for range images {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	text, err := os.ReadFile(filepath.Join(dir, "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	index, err := parseIndex(text)
	if err != nil || len(index.manifests) != 50 {
		t.Errorf("%d images, %v", len(index.manifests), err)
	}
	noStaging(t, dir)
}

func TestPushInTheWay(t *testing.T) {
	img := testImages(t)["oci with blobs"]
	dir := t.TempDir()
	for _, name := range []string{"file", "full/x"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte("precious"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "empty"), 0o755); err != nil {
		t.Fatal(err)
	}
	o, _ := newOps(t, Options{}, img)
	for _, test := range []struct {
		dest string
		want error
	}{
		{"docker-archive:%s/file", imgsrc.ErrExists},
		{"docker-archive:%s/empty", imgsrc.ErrExists},
		{"oci-archive:%s/file:x", imgsrc.ErrExists},
		{"dir:%s/file", imgsrc.ErrExists},
		{"dir:%s/full", imgsrc.ErrExists},
		{"oci:%s/file", imgsrc.ErrExists},
		{"oci:%s/full:x", imgsrc.ErrExists},
		{"dir:%s/none/x", syscall.ENOENT},
		{"oci:%s/none/x", syscall.ENOENT},
		{"oci-archive:%s/none/x", syscall.ENOENT},
		{"docker-archive:%s/file/x", syscall.ENOENT},
		{"dir:%s/empty", nil},
	} {
		if err := o.Do(t.Context(), pushTo(img, strings.ReplaceAll(test.dest, "%s", dir))); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", test.dest, err, test.want)
		}
	}
	for _, name := range []string{"file", "full/x"} {
		if text, err := os.ReadFile(filepath.Join(dir, name)); string(text) != "precious" {
			t.Errorf("%s: %q, %v", name, text, err)
		}
	}
	noStaging(t, dir)
}

// TestPushRace has something appear in the place of an archive while it is being made.
func TestPushRace(t *testing.T) {
	for _, dest := range []string{"docker-archive:%s", "oci-archive:%s:x", "dir:%s"} {
		img := newImage(t, imgspecv1.MediaTypeImageManifest, false, "", tarOf("f", noise(1000)))
		path := filepath.Join(t.TempDir(), "out")
		img.read = func(context.Context, int64) error { return os.WriteFile(path, []byte("precious"), 0o644) }
		o, _ := newOps(t, Options{}, img)
		if err := o.Do(t.Context(), pushTo(img, strings.ReplaceAll(dest, "%s", path))); !errors.Is(err, imgsrc.ErrExists) {
			t.Errorf("%s: %v", dest, err)
		}
		if text, _ := os.ReadFile(path); string(text) != "precious" {
			t.Errorf("%s replaced what was there", dest)
		}
		noStaging(t, filepath.Dir(path))
	}
}

// TestPushFailsHalfway has each destination break in the last layer: nothing may be left of it.
func TestPushFailsHalfway(t *testing.T) {
	for _, dest := range []string{"docker-archive:%s/out", "oci-archive:%s/out:x", "dir:%s/out", "oci:%s/out:x"} {
		img := newImage(t, imgspecv1.MediaTypeImageManifest, false, "", tarOf("a", noise(100_000)), tarOf("b", noise(3_000_000)))
		img.read = func(_ context.Context, off int64) error {
			if off > 1_000_000 {
				return imgsrc.ErrDamaged
			}
			return nil
		}
		dir := t.TempDir()
		o, log := newOps(t, Options{}, img)
		err := o.Do(t.Context(), pushTo(img, strings.ReplaceAll(dest, "%s", dir)))
		if !errors.Is(err, imgsrc.ErrDamaged) {
			t.Errorf("%s: %v", dest, err)
		}
		if entries, _ := os.ReadDir(dir); len(entries) > 0 {
			t.Errorf("%s left %v", dest, entries)
		}
		if text, _ := o.LastError(img.desc.ID); text != err.Error() || strings.Contains(text, "\n") {
			t.Errorf("last error %q", text)
		}
		if n := strings.Count(log.String(), "\n"); n != 1 || !strings.Contains(log.String(), img.desc.ID) {
			t.Errorf("log: %s", log)
		}
	}
}
