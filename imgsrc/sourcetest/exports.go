package sourcetest

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/export"
	"github.com/imgfs/imgfs/imgsrc/layer"
)

// exports makes the archives of every image that can be had, and takes them apart.
func (s *suite) exports() {
	for _, img := range s.sound() {
		s.exportOCI(img)
		f := s.facts(img)
		if f.Kind != imgsrc.KindImage {
			continue
		}
		var diffs []imgsrc.Content
		for n := range f.Layers {
			c, err := img.Diff(s.Context(), n)
			if err != nil {
				break // the test of diffs says which may be missing
			}
			defer func() {
				if err := c.Close(); err != nil {
					s.Error(err)
				}
			}()
			diffs = append(diffs, c)
		}
		if len(diffs) == len(f.Layers) {
			s.exportDocker(img, f, diffs)
			s.exportRootfs(img, f)
		}
	}
}

// members reads a tar from start to end and returns the content of each member.
func (s *suite) members(what string, c imgsrc.Content) map[string][]byte {
	s.Helper()
	size, err := c.Size(s.Context())
	if err != nil {
		s.Errorf("%s: %v", what, err)
		return nil
	}
	r := tar.NewReader(io.NewSectionReader(readerAt{s, c}, 0, size))
	all := map[string][]byte{}
	for {
		h, err := r.Next()
		if err == io.EOF {
			return all
		}
		if err != nil {
			s.Errorf("%s: %v", what, err)
			return nil
		}
		body, err := io.ReadAll(r)
		if err != nil || all[h.Name] != nil {
			s.Errorf("%s: member %s: %v, or it is there twice", what, h.Name, err)
		}
		all[h.Name] = append([]byte{}, body...)
	}
}

// sum is the digest of all the bytes of an archive; empty if they cannot be read.
func (s *suite) sum(c imgsrc.Content) digest.Digest {
	s.Helper()
	size, err := c.Size(s.Context())
	if err != nil {
		s.Error(err)
		return ""
	}
	d, err := digest.FromReader(io.NewSectionReader(readerAt{s, c}, 0, size))
	if err != nil {
		s.Error(err)
	}
	return d
}

func (s *suite) exportOCI(img imgsrc.Listed) {
	s.Helper()
	archive := func() *export.Archive {
		f, err := imgsrc.Load(s.Context(), img)
		if err != nil {
			s.Error(err)
			return nil
		}
		o, err := export.Convert(s.Context(), img, f, nil)
		if err != nil {
			if !errors.Is(err, imgsrc.ErrAbsent) && !errors.Is(err, imgsrc.ErrUnsupported) && !errors.Is(err, imgsrc.ErrNotFound) {
				s.Error(err)
			}
			return nil
		}
		a, err := export.OCITar(o, img.Names, time.Unix(1, 0))
		if err != nil {
			s.Error(err)
		}
		return a
	}
	a := archive()
	if a == nil {
		return
	}
	sum := s.sum(a)
	if sum == "" {
		return
	}
	if again := s.sum(archive()); again != sum {
		s.Errorf("oci.tar of image %s is %s, and another time %s", img.Desc().ID, sum, again)
	}
	s.content(a, sum, -1)
	all := s.members("oci.tar of image "+img.Desc().ID, a)
	var index struct {
		Manifests []struct{ Digest digest.Digest }
	}
	if err := json.Unmarshal(all["index.json"], &index); err != nil || len(index.Manifests) != 1 || all["oci-layout"] == nil {
		s.Errorf("image %s: index.json of oci.tar: %s, %v", img.Desc().ID, all["index.json"], err)
		return
	}
	if m := index.Manifests[0].Digest; all["blobs/sha256/"+m.Encoded()] == nil {
		s.Errorf("image %s: oci.tar has no manifest %s", img.Desc().ID, m)
	}
	for name, body := range all {
		if dir, file := path.Split(name); strings.HasPrefix(name, "blobs/") && file != "" {
			d := digest.NewDigestFromEncoded(digest.Algorithm(path.Base(dir)), file)
			if d.Algorithm().FromBytes(body) != d {
				s.Errorf("image %s: %s in oci.tar is something else", img.Desc().ID, name)
			}
		}
	}
}

func (s *suite) exportDocker(img imgsrc.Listed, f *imgsrc.Facts, diffs []imgsrc.Content) {
	s.Helper()
	config, err := imgsrc.ConfigDocker(f)
	if err != nil || f.LacksDiffIDs() {
		return
	}
	d := &export.DockerImage{Config: config, Names: []string{"localhost/name:1", "no reference"}, Made: time.Unix(1, 0)}
	for n, c := range diffs {
		size, err := c.Size(s.Context())
		if err != nil {
			s.Error(err)
			return
		}
		d.Layers = append(d.Layers, export.DockerLayer{Digest: f.Layers[n].DiffID, Ending: ".tar", Size: size, Read: c.ReadAt})
	}
	a, err := export.DockerTar(d)
	if err != nil {
		s.Error(err)
		return
	}
	sum := s.sum(a)
	if sum == "" {
		return
	}
	s.content(a, sum, -1)
	all := s.members("docker.tar of image "+img.Desc().ID, a)
	var list []struct {
		Config           string
		RepoTags, Layers []string
	}
	if err := json.Unmarshal(all["manifest.json"], &list); err != nil || len(list) != 1 || len(list[0].Layers) != len(diffs) ||
		!slices.Equal(list[0].RepoTags, []string{"localhost/name:1"}) || !bytes.Equal(all[list[0].Config], config) {
		s.Errorf("image %s: manifest.json of docker.tar: %s, %v", img.Desc().ID, all["manifest.json"], err)
		return
	}
	for n, name := range list[0].Layers {
		if got := digest.FromBytes(all[name]); got != f.Layers[n].DiffID {
			s.Errorf("image %s: layer %d of docker.tar is %s, want %s", img.Desc().ID, n, got, f.Layers[n].DiffID)
		}
	}
}

func (s *suite) exportRootfs(img imgsrc.Listed, f *imgsrc.Facts) {
	s.Helper()
	var indexes []*layer.Index
	var all []imgsrc.Files
	for n := range f.Layers {
		files, err := img.Files(s.Context(), n)
		if err != nil {
			s.Error(err)
			return
		}
		defer files.Close()
		x, err := layer.BuildIndex(s.Context(), files)
		if err != nil {
			s.Error(err)
			return
		}
		indexes, all = append(indexes, x), append(all, files)
	}
	t, err := layer.Merge(s.Context(), indexes)
	if err != nil {
		s.Error(err)
		return
	}
	r, err := export.LayOutRootfs(s.Context(), t, time.Unix(1, 0))
	if err != nil {
		if !errors.Is(err, imgsrc.ErrDamaged) { // an image may have links to nothing
			s.Error(err)
		}
		return
	}
	a := &rootfsContent{r, t, func(ctx context.Context, p layer.Place, b []byte, off int64) (int, error) {
		if p.Extents == nil {
			return all[p.Layer].ReadBody(ctx, p.Body, b, off)
		}
		file := make([]byte, p.Size) // small, in a test
		at := int64(0)
		for _, x := range p.Extents {
			if _, err := all[p.Layer].ReadBody(ctx, p.Body, file[x.Off:x.Off+x.Len], at); err != nil && err != io.EOF {
				return 0, err
			}
			at += x.Len
		}
		return bytes.NewReader(file).ReadAt(b, off)
	}}
	sum := s.sum(a)
	if sum == "" {
		return
	}
	s.content(a, sum, r.Size())
	if n := len(s.members("rootfs.tar of image "+img.Desc().ID, a)); n != int(t.Len()) {
		s.Errorf("image %s: rootfs.tar has %d members, and the tree %d", img.Desc().ID, n, t.Len())
	}
}

// A rootfsContent is a rootfs.tar as a Content.
type rootfsContent struct {
	r    *export.RootfsTar
	t    *layer.Tree
	read export.PlaceReader
}

func (c *rootfsContent) Size(context.Context) (int64, error) { return c.r.Size(), nil }

func (c *rootfsContent) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	return c.r.ReadAt(ctx, c.t, c.read, p, off)
}

func (c *rootfsContent) Close() error { return nil }
