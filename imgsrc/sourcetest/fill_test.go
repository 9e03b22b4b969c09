package sourcetest_test

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc/sourcetest"
	"github.com/imgfs/imgfs/test/images"
	"github.com/imgfs/imgfs/test/needs"
	"github.com/imgfs/imgfs/test/servers"
)

// pack makes an archive of files by their paths in it. A text that begins with an arrow is a link.
type packer struct {
	t  *testing.T
	b  bytes.Buffer
	tw *tar.Writer
}

func newPacker(t *testing.T) *packer {
	p := &packer{t: t}
	p.tw = tar.NewWriter(&p.b)
	return p
}

func (p *packer) add(name string, body []byte) {
	p.t.Helper()
	err := p.tw.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(body))})
	if _, writeErr := p.tw.Write(body); err != nil || writeErr != nil {
		p.t.Fatal(err, writeErr)
	}
}

func (p *packer) link(name, target string) {
	p.t.Helper()
	if err := p.tw.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target}); err != nil {
		p.t.Fatal(err)
	}
}

// write writes the archive, compressed or not, and returns its path.
func (p *packer) write(zip bool) string {
	p.t.Helper()
	if err := p.tw.Close(); err != nil {
		p.t.Fatal(err)
	}
	b := p.b.Bytes()
	if zip {
		b = images.Gzipped(b)
	}
	file := filepath.Join(p.t.TempDir(), "archive.tar")
	if err := os.WriteFile(file, b, 0o644); err != nil {
		p.t.Fatal(err)
	}
	return file
}

// packDir makes an archive of a directory.
func packDir(t *testing.T, at string, zip bool) string {
	t.Helper()
	p := newPacker(t)
	err := filepath.WalkDir(at, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		rel, relErr := filepath.Rel(at, path)
		p.add(rel, b)
		return errors.Join(err, relErr)
	})
	if err != nil {
		t.Fatal(err)
	}
	return p.write(zip)
}

// dockerArchive makes what docker save made of images until it learned about layouts, with each layer once and links in
// the places of its repetitions. Compressed is how builders make it that need no Docker: the layers are as they came.
func dockerArchive(t *testing.T, all []*sourcetest.Image, compressed bool) (file string) {
	t.Helper()
	type item struct {
		Config           string
		RepoTags, Layers []string
	}
	var items []item
	p, seen := newPacker(t), map[digest.Digest]string{}
	p.add("repositories", []byte("{}"))
	for _, img := range all {
		it := item{Config: img.ID + ".json", RepoTags: img.Names}
		p.add(it.Config, img.Config)
		for n, l := range img.Layers {
			b, d, file := l.Diff, l.DiffID, fmt.Sprintf("%s%d/layer.tar", img.ID[:12], n)
			if compressed {
				b, d, file = l.Blob, l.Digest, l.Digest.Encoded()+".tar.gz"
				if n%2 == 1 {
					file = "layer" + file[:8] // which does not say its digest
				}
			}
			it.Layers = append(it.Layers, file)
			switch first := seen[d]; {
			case b == nil: // it is missing
			case first == "":
				seen[d] = file
				p.add(file, b)
			case first != file:
				p.link(file, "../"+first)
			}
		}
		items = append(items, it)
	}
	b, err := json.Marshal(items)
	if err != nil {
		t.Fatal(err)
	}
	p.add("manifest.json", b)
	return p.write(false)
}

// imageDir makes what skopeo's dir: makes of an image, or of an index with all that it lists.
func imageDir(t *testing.T, img *sourcetest.Image) string {
	t.Helper()
	at := t.TempDir()
	files := map[string][]byte{"version": []byte("Directory Transport Version: 1.1\n"), "manifest.json": img.Manifest}
	for _, child := range img.Lists {
		files[child.Digest.Encoded()+".manifest.json"] = child.Manifest
	}
	for _, i := range append([]*sourcetest.Image{img}, img.Lists...) {
		if i.Config != nil {
			files[i.ID] = i.Config
		}
		for _, l := range i.Layers {
			if l.Blob != nil {
				files[l.Digest.Encoded()] = l.Blob
			}
		}
	}
	for name, b := range files {
		if err := os.WriteFile(filepath.Join(at, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return at
}

// A store is a containers-storage that skopeo and podman fill.
type store struct{ driver, root, run string }

func newStore(t *testing.T, driver string) store {
	t.Helper()
	needs.Root(t)
	needs.Programs(t, "podman", "skopeo")
	dir := servers.ShortDir(t)
	s := store{driver, filepath.Join(dir, "root"), filepath.Join(dir, "run")}
	t.Cleanup(func() {
		// podman leaves the driver's directory mounted onto itself, now and then.
		err := unix.Unmount(filepath.Join(s.root, driver), unix.MNT_DETACH)
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			t.Error(err)
		}
	})
	return s
}

// take copies an image into the store. One without a name that a store takes gets none.
func (s store) take(t *testing.T, img *sourcetest.Image) error {
	t.Helper()
	names := fullNames(img)
	to := "@" + img.ID
	if len(names) > 0 {
		to = names[0]
	}
	out, err := exec.CommandContext(t.Context(), "skopeo", "--insecure-policy", "copy", "--quiet", "dir:"+imageDir(t, img),
		fmt.Sprintf("containers-storage:[%s@%s+%s]%s", s.driver, s.root, s.run, to)).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	if len(names) > 1 {
		needs.Run(t, "podman", append([]string{"--root", s.root, "--runroot", s.run, "--storage-driver", s.driver, "tag"}, names...)...)
	}
	return nil
}

// fullNames are the names of an image that are full references, which is all that most sources take.
func fullNames(img *sourcetest.Image) []string {
	var full []string
	for _, name := range img.Names {
		if strings.HasPrefix(name, "localhost/") {
			full = append(full, name)
		}
	}
	return full
}

// load has an engine load images that have full names, or none.
func load(t *testing.T, d *servers.Dockerd, all ...*sourcetest.Image) error {
	t.Helper()
	var named []*sourcetest.Image
	for _, img := range all {
		i := *img
		i.Names = fullNames(img)
		named = append(named, &i)
	}
	out, err := exec.CommandContext(t.Context(), "docker", "-H", d.Host, "load", "--quiet", "--input", dockerArchive(t, named, false)).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// remoteName is the name in a registry that stands for a name in a layout. All that is in a registry has a name there, or it
// is not listed.
func remoteNames(host string, img *sourcetest.Image) []string {
	var names []string
	for _, name := range fullNames(img) {
		names = append(names, host+strings.TrimPrefix(name, "localhost"))
	}
	if names == nil {
		names = append(names, host+"/nameless:"+img.Digest.Encoded()[:12])
	}
	return names
}

// fillRegistry pushes images, to the byte.
func fillRegistry(t *testing.T, host string, all []*sourcetest.Image) {
	t.Helper()
	c := servers.Client{TB: t, Host: host}
	var push func(repo, tag string, img *sourcetest.Image)
	push = func(repo, tag string, img *sourcetest.Image) {
		for _, child := range img.Lists {
			push(repo, "", child)
		}
		if img.Config != nil {
			c.Push(repo, v1.MediaTypeImageConfig, img.Config)
		}
		for _, l := range img.Layers {
			c.Push(repo, l.MediaType, l.Blob)
		}
		c.Put(repo, tag, img.MediaType, img.Manifest)
	}
	for _, img := range all {
		for _, name := range remoteNames(host, img) {
			repo, tag, _ := strings.Cut(strings.TrimPrefix(name, host+"/"), ":")
			push(repo, tag, img)
		}
	}
}
