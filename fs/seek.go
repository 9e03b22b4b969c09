package fs

import (
	"context"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
)

// seek finds data or a hole in a file from off on, as lseek(2) does.
func (f *FS) seek(ctx context.Context, n node, off int64, whence uint32) (int64, error) {
	v := f.view(n)
	a, err := v.attr(ctx, n, false)
	if err != nil {
		return 0, err
	}
	if off < 0 || off >= a.size {
		return 0, syscall.ENXIO
	}
	extents := []imgsrc.Extent{{Off: 0, Len: a.size}}
	if tv, ok := v.(treeView); ok {
		t, e, err := tv.at(ctx, n)
		if err != nil {
			return 0, err
		}
		if p, _ := t.Place(e); p.Extents != nil {
			extents = p.Extents
		}
	}
	switch whence {
	case unix.SEEK_DATA:
		for _, x := range extents {
			if off < x.Off+x.Len {
				return max(off, x.Off), nil
			}
		}
		return 0, syscall.ENXIO
	case unix.SEEK_HOLE:
		for _, x := range extents {
			if off < x.Off {
				break
			}
			off = max(off, min(x.Off+x.Len, a.size))
		}
		return off, nil
	}
	return 0, syscall.EINVAL
}
