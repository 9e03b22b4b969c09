package sourcetest

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"maps"
	"path"

	"github.com/imgfs/imgfs/imgsrc"
)

// files compares the files of every layer that is there as a tar with that tar, as the standard library reads it.
func (s *suite) files() {
	compared := 0
	for _, img := range s.sound() {
		for n := range s.facts(img).Layers {
			diff, err := img.Diff(s.Context(), n)
			if errors.Is(err, imgsrc.ErrAbsent) || errors.Is(err, imgsrc.ErrUnsupported) {
				continue
			}
			if err != nil {
				s.Errorf("image %s, layer %d: %v", img.Desc().ID, n, err)
				continue
			}
			files, err := img.Files(s.Context(), n)
			if err != nil {
				s.Errorf("image %s, the files of layer %d: %v", img.Desc().ID, n, err)
				continue
			}
			compared++
			b, err := s.whole(diff, nil)
			if err != nil {
				s.Error(err)
			}
			entries, err := readTar(b)
			if err != nil {
				s.Errorf("image %s, layer %d: %v", img.Desc().ID, n, err)
			}
			s.compareFiles(files, entries)
			if err := files.Close(); err != nil {
				s.Error(err)
			}
		}
	}
	if compared != s.want.Diffs {
		s.Errorf("%d layers have files, want %d", compared, s.want.Diffs)
	}
}

// compareFiles compares files with the entries of their tar.
func (s *suite) compareFiles(files imgsrc.Files, want []tarEntry) {
	s.Helper()
	if k := files.Key(); k.Form == "" || !k.Transient && k.Digest.Validate() != nil {
		s.Errorf("the key of files is %+v", k)
	}
	var all []imgsrc.File
	if err := files.Entries(s.Context(), func(f *imgsrc.File) error { all = append(all, *f); return nil }); err != nil {
		s.Error(err)
		return
	}
	root, err := files.Root(s.Context())
	first := len(all) > 0 && all[0].Type == tar.TypeDir && path.Clean("/"+all[0].Name) == "/"
	if err != nil || first != (root != nil) || first && (root.Mode != all[0].Mode || root.Sec != all[0].Sec) {
		s.Errorf("the root is %+v, %v, and the first of %d entries %v", root, err, len(all), first)
	}
	stop := errors.New("enough")
	if err := files.Entries(s.Context(), func(*imgsrc.File) error { return stop }); len(all) > 0 && !errors.Is(err, stop) {
		s.Errorf("what emit returned came back as %v", err)
	}
	if len(all) != len(want) {
		s.Errorf("%d files, and the tar has %d", len(all), len(want))
		return
	}
	for i := range all {
		s.compareFile(files, &all[i], want[i])
	}
}

func (s *suite) compareFile(files imgsrc.Files, f *imgsrc.File, want tarEntry) {
	s.Helper()
	xattrs := map[string]string{}
	for _, x := range f.Xattrs {
		xattrs[x.Name] = x.Value
	}
	if f.Name != want.Name || f.Type != want.Typeflag || f.Link != want.Linkname || f.Mode != uint32(want.Mode)&0o7777 || f.UID != uint32(want.Uid) ||
		f.GID != uint32(want.Gid) || f.Sec != want.ModTime.Unix() || int(f.Nsec) != want.ModTime.Nanosecond() || int64(f.Major) != want.Devmajor ||
		int64(f.Minor) != want.Devminor || !maps.Equal(xattrs, xattrsOf(want.Header)) || f.Type == tar.TypeReg && f.Size != want.Size {
		s.Errorf("%+v, and the tar has %+v", f, want.Header)
	}
	if f.Type != tar.TypeReg {
		return
	}
	body := imgsrc.Body{Path: path.Clean("/" + f.Name)[1:], Size: f.Stored, Where: f.Where}
	if got, err := s.readFile(files, body, f.Size, f.Extents); err != nil || !bytes.Equal(got, want.body) {
		s.Errorf("%q: %d bytes, want %d, or others, %v", f.Name, len(got), len(want.body), err)
	}
	if f.Extents != nil {
		return
	}
	for _, step := range []int{len(want.body) + 1, 1000} {
		var got []byte
		var err error
		for err == nil {
			p := make([]byte, step)
			var n int
			n, err = files.ReadBody(s.Context(), body, p, int64(len(got)))
			got = append(got, p[:n]...)
		}
		if err != io.EOF || !bytes.Equal(got, want.body) {
			s.Errorf("%q, %d bytes at a time: %d bytes, want %d, %v", f.Name, step, len(got), len(want.body), err)
		}
	}
}

type readerAt struct {
	s *suite
	c imgsrc.Content
}

func (r readerAt) ReadAt(p []byte, off int64) (int, error) {
	return r.c.ReadAt(r.s.Context(), p, off)
}
