package sourcetest

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
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
			s.compareFiles(files, diff)
			if err := errors.Join(files.Close(), diff.Close()); err != nil {
				s.Error(err)
			}
		}
	}
	if compared != s.want.Diffs {
		s.Errorf("%d layers have files, want %d", compared, s.want.Diffs)
	}
}

func (s *suite) compareFiles(files imgsrc.Files, diff imgsrc.Content) {
	size, err := diff.Size(s.Context())
	if err != nil {
		s.Error(err)
		return
	}
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
	r := tar.NewReader(readerOf(s, diff, size))
	for _, f := range all {
		h, err := r.Next()
		if err != nil {
			s.Errorf("%q is in no tar: %v", f.Name, err)
			return
		}
		if f.Name != h.Name || f.Link != h.Linkname || f.Mode != uint32(h.Mode)&0o7777 || f.UID != uint32(h.Uid) || f.GID != uint32(h.Gid) ||
			f.Sec != h.ModTime.Unix() || int(f.Nsec) != h.ModTime.Nanosecond() {
			s.Errorf("%+v, and the tar has %+v", f, h)
		}
		if f.Type != tar.TypeReg {
			continue
		}
		want, err := io.ReadAll(r)
		if err != nil || int64(len(want)) != f.Size {
			s.Errorf("%q: %d bytes, and the tar has %d, %v", f.Name, f.Size, len(want), err)
			continue
		}
		body := imgsrc.Body{Path: path.Clean("/" + f.Name)[1:], Size: f.Stored, Where: f.Where}
		if f.Extents != nil {
			continue // what a sparse file is made of is not the tar's alone
		}
		for _, step := range []int{len(want) + 1, 1000} {
			var got []byte
			for err = nil; err == nil; {
				p := make([]byte, step)
				var n int
				n, err = files.ReadBody(s.Context(), body, p, int64(len(got)))
				got = append(got, p[:n]...)
			}
			if err != io.EOF || !bytes.Equal(got, want) {
				s.Errorf("%q, %d bytes at a time: %d bytes, want %d, %v", f.Name, step, len(got), len(want), err)
			}
		}
	}
	if h, err := r.Next(); err != io.EOF {
		s.Errorf("the tar has %v, %v and the files have not", h, err)
	}
}

func readerOf(s *suite, c imgsrc.Content, size int64) io.Reader {
	return io.NewSectionReader(readerAt{s, c}, 0, size)
}

type readerAt struct {
	s *suite
	c imgsrc.Content
}

func (r readerAt) ReadAt(p []byte, off int64) (int, error) {
	return r.c.ReadAt(r.s.Context(), p, off)
}
