package storage

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// nobody is what stat(2) gives for the owner of a file who has no id in the user namespace. It is also an id.
const nobody = 65534

// A namespace is what the user namespace of this process has of ids.
type namespace struct {
	all    bool // it has all
	nobody bool // nobody is a user and a group there
}

var ownNamespace = sync.OnceValue(func() namespace {
	is := namespace{all: true, nobody: true}
	for _, file := range []string{"/proc/self/uid_map", "/proc/self/gid_map"} {
		text, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		has := false
		for line := range strings.Lines(string(text)) {
			var first, outside, count uint64
			_, _ = fmt.Sscan(line, &first, &outside, &count)
			has = has || first <= nobody && nobody < first+count
			is.all = is.all && count == 1<<32-1
		}
		is.nobody = is.nobody && has
	}
	return is
})

var errNoID = errors.New("its owner has no id in the user namespace")

// checkOwner fails if what stat says of an entry's owner is not known to be so: EACCES. A store that was made with other
// subordinate ids than its user has now has such owners.
func (l *listed) checkOwner(name string, st *unix.Stat_t) error {
	if st.Uid != nobody && st.Gid != nobody || os.Geteuid() != 0 || ownNamespace().all {
		return nil
	}
	known := ownNamespace().nobody
	if kind := st.Mode & unix.S_IFMT; known && (kind == unix.S_IFREG || kind == unix.S_IFDIR) {
		// O_NOATIME is for a file's owner, and for root only if that has an id. Nothing tells it of a group, or of a link.
		fd, err := unix.Openat(int(l.f.Fd()), name, unix.O_RDONLY|unix.O_NOATIME|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err == nil {
			unix.Close(fd)
		}
		known = err != unix.EPERM && err != unix.EACCES
	}
	if !known {
		return fmt.Errorf("%w: %w", errNoID, unix.EACCES)
	}
	return nil
}
