package e2e

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/moby/sys/mountinfo"
	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

const (
	holderVar = "IMGFS_E2E_HOLDER" // makes this binary the holder of a mount namespace, for that home directory
	userVar   = "USERID"           // of the user

	userName = "imgfs-user"
	userHome = "/home/" + userName
)

// users counts the scripts that have one: what one of them does to all processes of its user is no other's business, nor that of
// another run on this machine.
var (
	users    atomic.Int32
	firstUID = 100_000 + os.Getpid()%50_000*16 // below the ids that he has in /etc/subuid
)

// A holder is a process that keeps a mount namespace, in which there is an ordinary user: with ids in /etc/subuid, with a
// home directory, with /dev/fuse for everybody. Nothing of him is on the machine itself.
type holder struct {
	process *exec.Cmd
	alive   io.Closer // its standard input: it ends with it
}

// rootless starts one, and makes the programs as and asroot, which run a line with bash in that namespace, by the user in his
// home directory and by root. From outside the home directory is $WORK/user.
func rootless(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, args, len(args) == 0, "rootless")
	need(ts, false, []string{"podman", "buildah", "newuidmap", "newgidmap", "fusermount3", "nsenter", "setpriv"})
	s, uid := of(ts), firstUID+int(users.Add(1))
	home := filepath.Join(s.work, "user")
	for _, dir := range []string{home, filepath.Join(home, "tmp")} {
		ts.Check(errors.Join(os.Mkdir(dir, 0o700), os.Chown(dir, uid, uid)))
	}
	ts.Check(os.Chmod(current.dir, 0o711))
	h := &holder{process: exec.Command("/proc/self/exe")}
	h.process.Env = append(s.env, holderVar+"="+home, userVar+"="+strconv.Itoa(uid))
	h.process.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS, Setsid: true}
	var err error
	h.alive, err = h.process.StdinPipe()
	ts.Check(err)
	said, err := h.process.StdoutPipe()
	ts.Check(err)
	ts.Check(h.process.Start())
	s.user = h
	ready, err := io.ReadAll(said)
	ts.Check(err)
	if string(ready) != "ready" {
		cannot(ts, "a mount namespace with an ordinary user: "+string(ready))
	}
	enter := fmt.Sprintf("#!/bin/sh\nexec nsenter --mount=/proc/%d/ns/mnt -- ", h.process.Process.Pid)
	user := fmt.Sprintf("setpriv --reuid %d --regid %d --init-groups --inh-caps=-all env -u XDG_CACHE_HOME -u CONTAINERS_STORAGE_CONF ", uid, uid) +
		fmt.Sprintf("HOME=%s TMPDIR=%s/tmp XDG_RUNTIME_DIR=/run/user/%d USER=%s LOGNAME=%s ", userHome, userHome, uid, userName, userName)
	for name, line := range map[string]string{"as": enter + user + `bash -o pipefail -c "cd; $1"`, "asroot": enter + `bash -o pipefail -c "cd /; $1"`} {
		ts.Check(s.program(name, line+"\n"))
	}
	ts.Setenv(userVar, strconv.Itoa(uid))
	if err := ts.Exec("as", "unshare --user true"); err != nil {
		cannot(ts, "user namespaces for ordinary users")
	}
}

// cannot is need for what is no program.
func cannot(ts *testscript.TestScript, what string) {
	if os.Getenv("CI") == "true" {
		ts.Fatalf("%s: cannot be had; where CI=true that is a failure", what)
	}
	of(ts).t.Skip(what + ": cannot be had")
}

func (h *holder) stop() {
	_ = h.alive.Close()
	_ = h.process.Wait()
}

// hold is that process.
func hold(home string) (code int) {
	uid, _ := strconv.Atoi(os.Getenv(userVar))
	if err := furnish(home, uid); err != nil {
		fmt.Print(err)
		return 1
	}
	fmt.Print("ready")
	_ = os.Stdout.Close()
	_, _ = io.Copy(io.Discard, os.Stdin)
	return 0
}

// furnish makes the namespace what the user needs. Its mounts are private: those of scripts that run beside would stay here
// when they are unmounted there, and so would the processes that serve them.
func furnish(home string, uid int) error {
	if err := detachFUSE(); err != nil {
		return err
	}
	dir := home + ".etc"
	upper, work := filepath.Join(dir, "upper"), filepath.Join(dir, "work")
	run := fmt.Sprintf("/run/user/%d", uid)
	err := errors.Join(
		os.Mkdir(dir, 0o755),
		unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=755"),
		os.Mkdir(upper, 0o755), os.Mkdir(work, 0o755),
		unix.Mount("overlay", "/etc", "overlay", 0, "lowerdir=/etc,upperdir="+upper+",workdir="+work),
		unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=755"),
		os.MkdirAll(run, 0o700), os.Chown(run, uid, uid), os.Chmod(filepath.Dir(run), 0o755),
		unix.Mount("tmpfs", "/home", "tmpfs", 0, "mode=755"),
		os.Mkdir(userHome, 0o700),
		unix.Mount(home, userHome, "", unix.MS_BIND, ""),
		unix.Mknod(filepath.Join(dir, "fuse"), unix.S_IFCHR|0o666, int(unix.Mkdev(10, 229))), os.Chmod(filepath.Join(dir, "fuse"), 0o666),
		unix.Mount(filepath.Join(dir, "fuse"), "/dev/fuse", "", unix.MS_BIND, ""),
	)
	for file, line := range map[string]string{
		"/etc/passwd": fmt.Sprintf("%s:x:%d:%d::%s:/bin/sh", userName, uid, uid, userHome),
		"/etc/group":  fmt.Sprintf("%s:x:%d:", userName, uid),
		"/etc/subuid": userName + ":1000000:65536",
		"/etc/subgid": userName + ":1000000:65536",
	} {
		text, readErr := os.ReadFile(file)
		if readErr != nil && !errors.Is(readErr, os.ErrNotExist) {
			err = errors.Join(err, readErr)
		}
		lines := strings.TrimRight(string(text), "\n") + "\n" + line + "\n"
		err = errors.Join(err, os.WriteFile(file, []byte(strings.TrimLeft(lines, "\n")), 0o644))
	}
	return err
}

func detachFUSE() error {
	mounts, err := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) { return !strings.HasPrefix(i.FSType, "fuse"), false })
	for _, m := range mounts {
		if e := unix.Unmount(m.Mountpoint, unix.MNT_DETACH); !errors.Is(e, unix.EINVAL) { // else it went with the one above it
			err = errors.Join(err, e)
		}
	}
	return err
}
