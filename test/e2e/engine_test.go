package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/test/reaper"
)

// An engine is Debian's dockerd, with a socket and directories of its own. Those are not in the script's: a socket's path
// has to be short.
type engine struct {
	dir     string
	process *exec.Cmd
}

// startEngine starts one, which ends with the script.
func startEngine(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, args, len(args) == 0, "engine")
	need(ts, false, []string{"dockerd", "docker"})
	s := of(ts)
	dir, err := os.MkdirTemp("", "imgfs-engine-")
	ts.Check(err)
	host := "unix://" + filepath.Join(dir, "sock")
	log, err := os.Create(filepath.Join(dir, "log"))
	ts.Check(err)
	defer log.Close()
	cmd := exec.Command("dockerd", "--iptables=false", "--ip-forward=false", "--bridge=none", "--exec-root", filepath.Join(dir, "exec"),
		"--data-root", filepath.Join(dir, "data"), "-p", filepath.Join(dir, "pid"), "-H", host)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	ts.Check(cmd.Start())
	s.engines = append(s.engines, &engine{dir, cmd})
	ts.Setenv("DOCKER_HOST", host)
	poll(ts, "dockerd to answer at "+host, func() bool { return exec.Command("docker", "-H", host, "version").Run() == nil })
}

// stopEngine makes the engine stand still, as one that hangs: what asks it waits. With -go it goes on, with -kill it is gone.
func stopEngine(ts *testscript.TestScript, neg bool, args []string) {
	s := of(ts)
	signal, known := map[string]unix.Signal{"": unix.SIGSTOP, "-go": unix.SIGCONT, "-kill": unix.SIGKILL}[strings.Join(args, " ")]
	usage(ts, neg, args, len(s.engines) > 0 && known, "stopengine [-go|-kill]")
	ts.Check(unix.Kill(s.engines[len(s.engines)-1].process.Process.Pid, signal))
}

// stop ends the engine, which ends what it has started, and takes its directories away.
func (e *engine) stop() {
	_ = e.process.Process.Signal(syscall.SIGTERM)
	killed := time.AfterFunc(20*time.Second, func() { _ = unix.Kill(-e.process.Process.Pid, unix.SIGKILL) })
	_ = e.process.Wait()
	killed.Stop()
	for _, m := range reaper.MountsBelow(e.dir) {
		_ = unix.Unmount(m, unix.MNT_DETACH)
	}
	_ = os.RemoveAll(e.dir)
}
