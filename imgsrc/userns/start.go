package userns

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.podman.io/storage/pkg/idtools"
	"go.podman.io/storage/pkg/reexec"
	"go.podman.io/storage/pkg/unshare"
	"golang.org/x/sys/unix"
)

// ErrUnavailable is that no user namespace can be had here that is of any use.
var ErrUnavailable = errors.New("no user namespace")

const (
	socketFD = 3
	gateFD   = 4

	// mapped is the argument of a child whose namespace has its mapping.
	mapped = "mapped"
	// ownMounts is the argument of a child that has mounts of its own.
	ownMounts = "mounts"
	// goAhead is what the parent writes when the mapping is there.
	goAhead = "go"
	// ready is the first message of a child that runs in its namespace; another one is why it does not.
	ready = "ready"
	// endTime is how long a child has to end by itself, and newuidmap and newgidmap have for theirs.
	endTime = 10 * time.Second
	// leftTime is how long what a child has started, and left, may keep its stderr open.
	leftTime = 200 * time.Millisecond
)

// AppArmorHint is what may help where root of a namespace has no rights there.
const AppArmorHint = "where kernel.apparmor_restrict_unprivileged_userns is 1, as on Ubuntu, imgfs needs an AppArmor profile that allows userns"

// Register makes main what a child does that is started by this name. It is to be called by an init function, and the
// program's main must call reexec.Init of go.podman.io/storage/pkg/reexec before anything else. The child ends when main
// returns.
func Register(name string, main func(*Conn)) {
	reexec.Register(name, func() {
		if !slices.Contains(os.Args, mapped) {
			enter()
			return
		}
		c, err := newConn(os.NewFile(socketFD, "parent"))
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		// What is unmounted outside goes here, too, where that is said at all.
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil && slices.Contains(os.Args, ownMounts) {
			_ = c.Send([]byte("it gives no rights ("+err.Error()+"); "+AppArmorHint), nil)
			os.Exit(1)
		}
		if c.Send([]byte(ready), nil) == nil {
			main(c)
		}
	})
}

// enter is the child's first step: it waits for the mapping, and begins anew as the namespace's root.
func enter() {
	unix.CloseOnExec(gateFD)
	said, err := io.ReadAll(os.NewFile(gateFD, "gate"))
	if err != nil || string(said) != goAhead {
		os.Exit(1) // the parent says why
	}
	err = unix.Exec("/proc/self/exe", append(os.Args, mapped), os.Environ())
	fmt.Fprintln(os.Stderr, "starting anew in the user namespace:", err)
	os.Exit(1)
}

// A Child is a process in a user namespace of its own.
type Child struct {
	*Conn
	// Alone says why the namespace has only the user's own id; nil if it has the subordinate ones.
	Alone error

	cmd    *exec.Cmd
	stderr *tail
	ended  chan struct{} // closed when the process has been waited for
}

// Start starts what was registered by this name, and returns when it runs in its namespace. With mounts it has mounts of
// its own, too: it can mount, and holds on to all file systems that are mounted when it is started, unless the mounts
// around are shared (mount_namespaces(7)), as systemd has them. Error: [ErrUnavailable].
func Start(name string, mounts bool) (*Child, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("making a socket: %w", err)
	}
	remote := os.NewFile(uintptr(pair[1]), "child")
	defer remote.Close()
	conn, err := newConn(os.NewFile(uintptr(pair[0]), "child"))
	if err != nil {
		return nil, err
	}
	gateChild, gate, err := os.Pipe()
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("making a pipe: %w", err)
	}
	defer gate.Close()
	defer gateChild.Close()
	c := &Child{Conn: conn, cmd: reexec.Command(name), stderr: &tail{}, ended: make(chan struct{})}
	c.cmd.ExtraFiles = []*os.File{remote, gateChild}
	c.cmd.Stderr, c.cmd.WaitDelay = c.stderr, leftTime
	c.cmd.Env = append(os.Environ(),
		// How the containers libraries know whose root they are.
		unshare.UsernsEnvName+"=done",
		"_CONTAINERS_ROOTLESS_UID="+strconv.Itoa(os.Geteuid()), "_CONTAINERS_ROOTLESS_GID="+strconv.Itoa(os.Getegid()))
	// A session of its own: Ctrl-C is for the parent.
	c.cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, Setsid: true}
	if mounts {
		c.cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWNS
		c.cmd.Args = append(c.cmd.Args, ownMounts)
	}
	if err := c.cmd.Start(); err != nil {
		conn.Close()
		return nil, fmt.Errorf("%w: %s", ErrUnavailable, whyNone(err))
	}
	go func() {
		_ = c.cmd.Wait() // what it ended with is in ProcessState
		close(c.ended)
	}()
	remote.Close()
	gateChild.Close()
	if c.Alone, err = mapIDs(c.cmd.Process.Pid); err == nil {
		_, err = gate.WriteString(goAhead)
	}
	gate.Close()
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	switch said, _, err := conn.Receive(); {
	case err != nil:
		c.Close()
		return nil, fmt.Errorf("%w: %s", ErrUnavailable, c.Last())
	case string(said) != ready:
		c.Close()
		return nil, fmt.Errorf("%w: %s", ErrUnavailable, said)
	}
	return c, nil
}

// whyNone says why there is no namespace. The system's errors have other names.
func whyNone(err error) string {
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EUSERS):
		return "user.max_user_namespaces allows no more of them"
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return "they are not allowed here (kernel.unprivileged_userns_clone, or a container's seccomp profile)"
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS):
		return "the kernel has none"
	}
	return err.Error()
}

// PID is the child's number in this process's namespace.
func (c *Child) PID() int { return c.cmd.Process.Pid }

// Close ends the child, by force if it does not end by itself.
func (c *Child) Close() {
	c.Conn.Close()
	select {
	case <-c.ended:
		return
	case <-time.After(endTime):
	}
	_ = c.cmd.Process.Kill()
	<-c.ended
}

// Last says what the child ended with, and what it said last. The child must have ended, or closed its connection.
func (c *Child) Last() string {
	select {
	case <-c.ended:
	case <-time.After(endTime):
		return "it does not answer"
	}
	text := c.cmd.ProcessState.String()
	if said := c.stderr.String(); said != "" {
		text += ": " + said
	}
	return text
}

// mapIDs gives a process that is new in its user namespace its ids there.
func mapIDs(pid int) (alone, err error) {
	uid, gid := os.Geteuid(), os.Getegid()
	if uid == 0 { // all ids are root's, if he is the machine's
		return nil, writeMaps(pid, [][2]string{{"uid_map", "0 0 4294967295"}, {"gid_map", "0 0 4294967295"}})
	}
	name := strconv.Itoa(uid)
	if u, err := user.LookupId(name); err == nil {
		name = u.Username
	}
	ranges, alone := idtools.NewIDMappings(name, name)
	for _, program := range []string{"newuidmap", "newgidmap"} {
		if _, err := exec.LookPath(program); err != nil && alone == nil {
			alone = fmt.Errorf("there is no %s (Debian's package uidmap)", program)
		}
	}
	if alone != nil {
		return fmt.Errorf("user %s has no subordinate ids here: %w; see subuid(5), and `podman system migrate` afterwards", name, alone), mapOwn(pid, uid, gid)
	}
	return nil, errors.Join(mapRanges("newuidmap", pid, uid, ranges.UIDs()), mapRanges("newgidmap", pid, gid, ranges.GIDs()))
}

// mapRanges maps 0 to own, and the ranges behind it.
func mapRanges(program string, pid, own int, ranges []idtools.IDMap) error {
	args := []string{strconv.Itoa(pid), "0", strconv.Itoa(own), "1"}
	for _, r := range ranges {
		args = append(args, strconv.Itoa(r.ContainerID+1), strconv.Itoa(r.HostID), strconv.Itoa(r.Size))
	}
	ctx, cancel := context.WithTimeout(context.Background(), endTime) // they may ask a directory service
	defer cancel()
	out, err := exec.CommandContext(ctx, program, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", program, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// mapOwn maps 0 to the user's own id, which everybody may do.
func mapOwn(pid, uid, gid int) error {
	return writeMaps(pid, [][2]string{
		{"setgroups", "deny"}, // or the kernel takes no gid_map
		{"uid_map", fmt.Sprintf("0 %d 1", uid)},
		{"gid_map", fmt.Sprintf("0 %d 1", gid)},
	})
}

func writeMaps(pid int, files [][2]string) error {
	for _, f := range files {
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/%s", pid, f[0]), []byte(f[1]), 0); err != nil {
			return fmt.Errorf("mapping ids: %w", err)
		}
	}
	return nil
}

// A tail keeps the end of what is written to it.
type tail struct {
	mu   sync.Mutex
	text []byte // guarded by mu
}

const tailSize = 2 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, p...)
	if n := len(t.text); n > tailSize {
		t.text = append(t.text[:0], t.text[n-tailSize:]...)
	}
	return len(p), nil
}

// String is that end as one line.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.ReplaceAll(strings.TrimSpace(string(t.text)), "\n", "; ")
}
