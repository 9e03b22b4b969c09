package mount

import (
	"fmt"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// goneTime is how long after one look at the mount table the next may be: other programs can change it all the time.
const goneTime = 50 * time.Millisecond

// gone returns a channel that is closed when the mount is in this process's mount table no more. It may have been detached
// (umount -l) while files are open: then requests still come. stop ends the watch.
func (m *mounted) gone() (gone <-chan struct{}, stop func()) {
	seen := make(chan struct{})
	table, err := unix.Open("/proc/self/mountinfo", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		m.log.Debug("watching the mount table", "error", err)
		return seen, func() {}
	}
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
		unix.Close(table)
		m.log.Debug("watching the mount table", "error", err)
		return seen, func() {}
	}
	go func() {
		defer unix.Close(table)
		defer unix.Close(ends[0])
		for {
			if there, err := hasDevice(m.state.Device); err == nil && !there {
				close(seen)
				return
			}
			// The kernel reports each change of the table once to whoever has it open.
			changed := []unix.PollFd{{Fd: int32(table), Events: unix.POLLPRI}, {Fd: int32(ends[0]), Events: unix.POLLIN}}
			if _, err := unix.Poll(changed, -1); err != nil && err != unix.EINTR {
				m.log.Debug("watching the mount table", "error", err)
				return
			}
			if changed[1].Revents != 0 {
				return
			}
			time.Sleep(goneTime)
		}
	}()
	return seen, func() { unix.Close(ends[1]) }
}

// hasDevice says whether a file system is mounted anywhere that this process sees.
func hasDevice(device string) (bool, error) {
	found, err := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) {
		is := fmt.Sprintf("%d:%d", i.Major, i.Minor) == device
		return !is, is
	})
	return len(found) > 0, err
}
