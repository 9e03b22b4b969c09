package mount

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	devFUSE = "/dev/fuse"
	helper  = "fusermount3"

	// requestSize is the most that one READ or WRITE may carry, in bytes. The kernel's own default is an eighth of it,
	// and a request costs about the same either way.
	requestSize = 1 << 20
)

// attachDevice mounts a FUSE file system at path, and returns the descriptor on which the kernel sends its requests. It
// uses mount(2) where that is allowed (root, also in a user namespace) and fusermount3 otherwise. Errors: ErrNoFUSE,
// ErrDenied, and the system's.
func attachDevice(path, source string, f Flags) (fd int, err error) {
	fd, err = mountDirect(path, source, f)
	switch {
	case err == nil:
		return fd, nil
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return -1, fmt.Errorf("%w (%w): load the kernel module (modprobe fuse), or give the container the device (--device %s)",
			ErrNoFUSE, err, devFUSE)
	case !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EACCES):
		return -1, err
	}
	bin, lookErr := exec.LookPath(helper)
	if lookErr != nil {
		return -1, fmt.Errorf("%w (%w, and there is no %s): be root or install the package fuse3; a container needs --device %s --cap-add SYS_ADMIN",
			ErrNoFUSE, err, helper, devFUSE)
	}
	return mountByHelper(bin, path, source, f)
}

func mountDirect(path, source string, f Flags) (int, error) {
	fd, err := unix.Open(devFUSE, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("opening %s: %w", devFUSE, err)
	}
	var flags uintptr
	for _, o := range []struct {
		on   bool
		flag uintptr
	}{
		{f.ReadOnly, unix.MS_RDONLY},
		{f.NoExec, unix.MS_NOEXEC},
		{!f.Dev, unix.MS_NODEV},
		{!f.Suid, unix.MS_NOSUID},
	} {
		if o.on {
			flags |= o.flag
		}
	}
	data := fmt.Sprintf("fd=%d,rootmode=%o,user_id=%d,group_id=%d,max_read=%d",
		fd, unix.S_IFDIR, os.Geteuid(), os.Getegid(), requestSize)
	if f.AllowOther {
		data += ",allow_other,default_permissions"
	}
	if err := unix.Mount(source, path, "fuse."+subtype, flags, data); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("mount(2): %w", err)
	}
	return fd, nil
}

// mountByHelper has fusermount3, which is set-uid root, mount and send the descriptor back over a socket, as
// mount.fuse3(8) and libfuse do.
func mountByHelper(bin, path, source string, f Flags) (int, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("socketpair: %w", err)
	}
	local, remote := os.NewFile(uintptr(pair[0]), "local"), os.NewFile(uintptr(pair[1]), "remote")
	defer local.Close()

	// A comma in a value would begin the next option.
	escape := strings.NewReplacer(`\`, `\\`, `,`, `\,`)
	options := []string{"fsname=" + escape.Replace(source), "subtype=" + subtype, fmt.Sprintf("max_read=%d", requestSize)}
	for _, o := range []struct {
		on   bool
		word string
	}{
		{f.ReadOnly, "ro"},
		{f.NoExec, "noexec"},
		{!f.Dev, "nodev"},
		{!f.Suid, "nosuid"},
		{f.AllowOther, "allow_other"},
		{f.AllowOther, "default_permissions"},
	} {
		if o.on {
			options = append(options, o.word)
		}
	}
	cmd := exec.Command(bin, "-o", strings.Join(options, ","), "--", path)
	cmd.Args[0] = helper // which begins its messages
	cmd.Env = append(os.Environ(), "_FUSE_COMMFD=3", "LC_ALL=C")
	cmd.ExtraFiles = []*os.File{remote}
	out, err := cmd.CombinedOutput()
	remote.Close()
	if err != nil {
		return -1, helperError(out, err)
	}
	return receiveDescriptor(local)
}

// helperError puts what fusermount3 wrote into one error.
func helperError(out []byte, err error) error {
	text := strings.ReplaceAll(strings.TrimSpace(string(out)), "\n", "; ")
	switch {
	case text == "":
		return fmt.Errorf("%s: %w: %w", helper, ErrNoFUSE, err)
	case strings.Contains(text, "allow_other"):
		return fmt.Errorf("%s: %w", text, ErrDenied)
	case strings.Contains(text, devFUSE+": Permission denied"):
		return fmt.Errorf("%s (udev makes it accessible to everybody: mode 0666): %w", text, ErrNoFUSE)
	case strings.Contains(text, "mountpoint"):
		return fmt.Errorf("%s: %w", text, ErrNoAccess)
	}
	return fmt.Errorf("%s: %w", text, ErrNoFUSE)
}

func receiveDescriptor(local *os.File) (int, error) {
	var data [1]byte
	control := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(int(local.Fd()), data[:], control, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("receiving the FUSE device from %s: %w", helper, err)
	}
	messages, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil || len(messages) != 1 {
		return -1, fmt.Errorf("receiving the FUSE device from %s: %d messages: %w", helper, len(messages), errors.Join(err, unix.EPROTO))
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return -1, fmt.Errorf("receiving the FUSE device from %s: %d descriptors: %w", helper, len(fds), errors.Join(err, unix.EPROTO))
	}
	return fds[0], nil
}

// detach takes the mount at path away: at once from the directory tree and, if lazy, when its last user is gone from
// the kernel; not lazy it fails with EBUSY while there are users. It is EINVAL if nothing is mounted there.
func detach(path string, lazy bool) error {
	flags := unix.UMOUNT_NOFOLLOW
	if lazy {
		flags |= unix.MNT_DETACH
	}
	err := unix.Unmount(path, flags)
	if !errors.Is(err, unix.EPERM) {
		return err
	}
	bin, lookErr := exec.LookPath(helper)
	if lookErr != nil {
		return fmt.Errorf("%w, and there is no %s", err, helper)
	}
	args := []string{"-u", "--", path}
	if lazy {
		args = []string{"-u", "-z", "--", path}
	}
	cmd := exec.Command(bin, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	switch {
	case err == nil:
		return nil
	case bytes.Contains(out, []byte("busy")):
		return unix.EBUSY
	case bytes.Contains(out, []byte("not found")), bytes.Contains(out, []byte("not mounted")), bytes.Contains(out, []byte("Invalid argument")):
		return unix.EINVAL
	}
	return fmt.Errorf("%s: %w", strings.ReplaceAll(strings.TrimSpace(string(out)), "\n", "; "), unix.EPERM)
}
