package mount

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// connections is where the control files of FUSE connections are, if anybody has mounted them.
const connections = "/sys/fs/fuse/connections"

// A process that is killed may be kept by the kernel: one of its threads tells the kernel to forget a name and waits for
// the lock of a directory, whose holder waits for an answer of the process. The thread keeps the connection open, so the
// holder waits for ever, and with it all who use the mount. Only who aborts the connection ends that.

// lingers says whether the process pid that started at that time, of which it is known that it was killed, has a thread that has
// not ended.
func lingers(pid int, started uint64) bool {
	state, at, err := processStat(pid)
	if err != nil || at != started {
		return false
	}
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	return err == nil && (state != 'Z' && state != 'X' || len(threads) > 1)
}

// killed says whether SIGKILL is on its way to a process: nothing that it did or could do counts any more.
func killed(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return false
	}
	for lines := bufio.NewScanner(bytes.NewReader(b)); lines.Scan(); {
		name, set, _ := strings.Cut(lines.Text(), ":")
		if name != "SigPnd" && name != "ShdPnd" { // of the thread, of the process
			continue
		}
		signals, err := strconv.ParseUint(strings.TrimSpace(set), 16, 64)
		if err == nil && signals&(1<<(unix.SIGKILL-1)) != 0 {
			return true
		}
	}
	return false
}

// abort ends the connection of the mount of a device, as its serving process does by ending: all requests fail. Only root and the
// user who mounted may.
func abort(device string) error {
	_, minor, _ := strings.Cut(device, ":")
	name := filepath.Join(minor, "abort")
	err := os.WriteFile(filepath.Join(connections, name), []byte("1"), 0)
	if err == nil || os.Geteuid() != 0 {
		return err
	}
	dir, err := openConnections()
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	fd, err := unix.Openat(dir, name, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening the control of FUSE connection %s: %w", minor, err)
	}
	_, err = unix.Write(fd, []byte("1"))
	return errors.Join(err, unix.Close(fd))
}

// openConnections mounts the control files of FUSE connections nowhere: they are gone when the descriptor is closed.
func openConnections() (dir int, err error) {
	fs, err := unix.Fsopen("fusectl", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("opening fusectl: %w", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("opening fusectl: %w", err)
	}
	dir, err = unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("opening fusectl: %w", err)
	}
	return dir, nil
}
