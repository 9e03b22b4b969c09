package imgsrc

import (
	"slices"

	"golang.org/x/sys/unix"
)

// Placed is a source that lies in files of this machine.
type Placed interface {
	Source
	// Files are the directories and files in which the source lies, as absolute paths.
	Files() []string
}

// localFileSystems are those on which a stat needs no server to answer, by their numbers in statfs(2).
var localFileSystems = []int64{
	unix.BTRFS_SUPER_MAGIC, unix.EROFS_SUPER_MAGIC_V1, unix.EXT4_SUPER_MAGIC, unix.F2FS_SUPER_MAGIC, unix.ISOFS_SUPER_MAGIC,
	unix.OVERLAYFS_SUPER_MAGIC, unix.RAMFS_MAGIC, unix.SQUASHFS_MAGIC, unix.TMPFS_MAGIC, unix.XFS_SUPER_MAGIC, zfsMagic,
}

const zfsMagic = 0x2fc12fc1

// isNear says whether a source's stamp is there at once: its files are on local file systems, or it keeps the stamp in memory,
// as sources without files do. Of what cannot be told it is not said.
func isNear(src Source) bool {
	placed, ok := src.(Placed)
	return !ok || !slices.ContainsFunc(placed.Files(), func(dir string) bool {
		var st unix.Statfs_t
		return unix.Statfs(dir, &st) != nil || !slices.Contains(localFileSystems, int64(uint32(st.Type)))
	})
}
