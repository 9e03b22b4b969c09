package servers

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/imgfs/imgfs/test/needs"
)

// ShortDir makes a directory whose path leaves room for a socket's name, or for what podman takes for a run root.
func ShortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "imgfs-d")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// A Dockerd is an engine of Debian's, with a socket and a root of its own.
type Dockerd struct {
	testing.TB
	Host string // of DOCKER_HOST
	dir  string
	cmd  *exec.Cmd
}

// StartDockerd starts an engine, which ends with the test.
func StartDockerd(t testing.TB) *Dockerd {
	t.Helper()
	needs.Programs(t, "dockerd", "containerd", "docker")
	needs.Root(t)
	dir := ShortDir(t)
	d := &Dockerd{TB: t, dir: dir, Host: "unix://" + filepath.Join(dir, "sock")}
	d.Start()
	t.Cleanup(d.clean)
	return d
}

// Start starts the engine again, after Stop.
func (d *Dockerd) Start() {
	d.Helper()
	log, err := os.OpenFile(filepath.Join(d.dir, "log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		d.Fatal(err)
	}
	defer log.Close()
	d.cmd = exec.Command("dockerd", "--iptables=false", "--ip-forward=false", "--bridge=none",
		"--exec-root", filepath.Join(d.dir, "exec"), "--data-root", filepath.Join(d.dir, "data"), "-p", filepath.Join(d.dir, "pid"), "-H", d.Host)
	d.cmd.Stdout, d.cmd.Stderr = log, log
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := d.cmd.Start(); err != nil {
		d.Fatal(err)
	}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		cmd := exec.Command("docker", "-H", d.Host, "version")
		if cmd.Run() == nil {
			return
		}
		if time.Now().After(end) {
			text, _ := os.ReadFile(filepath.Join(d.dir, "log"))
			d.Stop()
			needs.Unmet(d.TB, "dockerd does not start here:\n"+string(text))
		}
	}
}

// Stop ends the engine, which ends its containerd, and waits for it.
func (d *Dockerd) Stop() {
	if d.cmd == nil {
		return
	}
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		d.Error(err)
	}
	killed := time.AfterFunc(20*time.Second, func() { _ = syscall.Kill(-d.cmd.Process.Pid, syscall.SIGKILL) })
	_ = d.cmd.Wait() // how a stopped engine exits is its own affair
	killed.Stop()
	d.cmd = nil
}

// clean stops the engine and wants nothing of it to be left.
func (d *Dockerd) clean() {
	d.Stop()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		d.Error(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if at := strings.Fields(line)[4]; strings.HasPrefix(at, d.dir+"/") {
			if err := syscall.Unmount(at, syscall.MNT_DETACH); err != nil {
				d.Errorf("unmounting %s: %v", at, err)
			}
		}
	}
}

// Docker runs the engine's client, and returns what it prints.
func (d *Dockerd) Docker(args ...string) string {
	d.Helper()
	return needs.Line(d.TB, "docker", append([]string{"-H", d.Host}, args...)...)
}
