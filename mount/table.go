package mount

import (
	"errors"
	"fmt"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// subtype is the part of the file system type after "fuse.", by which a mount of ours is told from others.
const subtype = "imgfs"

// An entry is one mount in this process's mount table.
type entry struct {
	device string // "0:52", as in /sys/class/bdi; no two mounted FUSE file systems share one
	fsType string
}

// ours says whether imgfs made the mount.
func (e *entry) ours() bool { return e.fsType == "fuse."+subtype }

// mountAt returns the mount that is seen at path (which must be resolved), nil if there is none. Where several lie on
// top of each other that is the last one.
func mountAt(path string) (*entry, error) {
	found, err := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) { return i.Mountpoint != path, false })
	if err != nil {
		return nil, fmt.Errorf("reading the mount table: %w", err)
	}
	if len(found) == 0 {
		return nil, nil
	}
	top := found[len(found)-1]
	return &entry{device: fmt.Sprintf("%d:%d", top.Major, top.Minor), fsType: top.FSType}, nil
}

// oursOn returns where the mount of ours is whose files have this device number, empty if there is none.
func oursOn(dev uint64) (string, error) {
	found, err := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) {
		skip = !(&entry{fsType: i.FSType}).ours() || unix.Mkdev(uint32(i.Major), uint32(i.Minor)) != dev
		return skip, !skip
	})
	if err != nil {
		return "", fmt.Errorf("reading the mount table: %w", err)
	}
	if len(found) == 0 {
		return "", nil
	}
	return found[0].Mountpoint, nil
}

// disconnected says whether the process that served the FUSE mount at path is gone. It asks by statfs(2), the one
// request for which the kernel has no cached answer; a mount whose server hangs makes it hang as well, and a mount that
// belongs to another user counts as connected.
func disconnected(path string) bool {
	var st unix.Statfs_t
	err := unix.Statfs(path, &st)
	return errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ECONNABORTED)
}
