package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/test/needs"
)

func TestCommandErrors(t *testing.T) {
	dir := workDir(t)
	if err := os.Symlink("layout", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "broken/oci-layout"), `{"imageLayoutVersion":"1.0.0"}`)
	write(t, filepath.Join(dir, "broken/index.json"), `{"schemaVersion":2,`)
	needs.Run(t, "tar", "-C", dir+"/full", "-cf", dir+"/rootfs.tar", ".")
	silent(t, dir, "mount", "layout", "mounted")
	tests := []struct {
		args string
		code int
		text string // in the one line on stderr
	}{
		{"nonsense", 2, `unknown command "nonsense"`},
		{"help nonsense", 2, `unknown command "nonsense"`},
		{"mount", 2, "no mountpoint given; see `imgfs mount --help`"},
		{"mount --nonsense m", 2, "--nonsense"},
		{"mount --cache-size lots layout m", 2, "not a size"},
		{"mount --log-level loud layout m", 2, "loud"},
		{"mount --authfile missing layout m", 2, "missing: there is no such file"},
		{"mount -o nonsense layout m", 2, "nonsense"},
		{"mount -o platform=arm64 layout m", 2, `-o platform=: "arm64" is not a platform`},
		{"mount --platform arm64 layout m", 2, `--platform: "arm64" is not a platform: write os/architecture or os/architecture/variant, as in linux/arm64; see`},
		{"mount containers-storage:missing m", 2, "absolute path of a store (it is written containers-storage:"},
		{"mount docker:a m", 2, "the // before the host is missing (it is written docker://HOST"},
		{"umount", 2, "one mountpoint"},
		{"umount a b", 2, "one mountpoint"},
		{"list x", 2, "unknown command"},
		{"version x", 2, "unknown command"},

		{"mount missing m", 3, `mounting on m: source "missing": there is no such file or directory`},
		{"mount empty m", 3, "neither an OCI image layout"},
		{"mount oci:missing m", 3, "no such source"},
		{"mount oci:empty m", 3, "no such source"},
		{"mount broken m", 3, "index.json"},
		{"mount containers-storage:/missing m", 3, "there is no such directory"},
		{"mount sif:file m", 3, "transport sif is not supported"},
		{"mount docker://127.0.0.1:1/a m", 3, "connection refused"},
		{"mount docker-archive:file m", 3, "no tar archive"},
		{"mount oci-archive:missing m", 3, "no such"},
		{"mount file m", 3, "no tar archive"},
		{"mount dir:full m", 3, "no manifest.json"},
		{"mount nonsense:x m", 3, `"nonsense" is neither a transport`},
		{"mount layout missing m", 3, `source "missing"`},

		{"mount rootfs.tar m", 3, "> MOUNTPOINT/load"},

		{"mount layout mounted/ids/foo", 4, "it lies in an imgfs mount, that of " + dir + "/mounted: mount elsewhere"},
		{"mount layout /proc/xx", 4, "no directory can be made there: /proc is a file system of type proc"},
		{"mount layout file", 4, "not a directory"},
		{"mount layout full", 4, `not empty (it holds "x")`},
		{"mount layout missing/m", 4, "no such directory"},
		{"mount layout mounted", 4, "already mounted; `imgfs umount " + dir + "/mounted`"},
		{"mount layout /proc", 4, "type proc"},
		{"mount layout layout/blobs", 4, "in the source oci:" + dir + "/layout"},
		{"mount layout link/m", 4, "in the source oci:" + dir + "/layout"},
		{"mount layout layout", 4, "in the source oci:"},
		{"mount layout/../layout .", 4, "is in it"},
		{"mount store store/m", 4, "in the source containers-storage:" + dir + "/store"},
		{"mount layout --log-file empty/log empty", 4, "log file"},
		{"umount empty", 4, "not a mount"},
		{"umount missing", 4, "not a mount"},
		{"umount /proc", 4, "not an imgfs mount"},
	}
	for _, test := range tests {
		r := imgfs(t, dir, strings.Fields(test.args)...)
		if r.code != test.code || r.stdout != "" || strings.Count(r.stderr, "\n") != 1 ||
			!strings.HasPrefix(r.stderr, "imgfs: ") || !strings.Contains(r.stderr, test.text) {
			t.Errorf("imgfs %s: %+v; want code %d, %q", test.args, r, test.code, test.text)
		}
	}
	for _, name := range []string{"m", "empty/log"} {
		if exists(filepath.Join(dir, name)) {
			t.Errorf("%s was made", name)
		}
	}
	silent(t, dir, "umount", "mounted")
}

// In the foreground the same things are errors.
func TestCommandErrorsForeground(t *testing.T) {
	dir := workDir(t)
	for args, code := range map[string]int{
		"mount -f missing m": 3, "mount -f oci:missing m": 3, "mount -f layout full": 4, "mount -f -o nonsense layout m": 2,
	} {
		r := imgfs(t, dir, strings.Fields(args)...)
		last := r.stderr[strings.LastIndex(strings.TrimSuffix(r.stderr, "\n"), "\n")+1:]
		if r.code != code || !strings.HasPrefix(last, "imgfs: ") {
			t.Errorf("imgfs %s: %+v, want code %d", args, r, code)
		}
	}
}

func TestCommandMount(t *testing.T) {
	dir := workDir(t)
	silent(t, dir, "mount", "layout", "m") // relative paths, and the process moves to /
	if got := images(t, dir+"/m"); len(got) != 1 || len(got[0]) != 64 {
		t.Errorf("ids: %q", got)
	}
	if r := imgfs(t, dir, "list"); r.code != 0 || r.stderr != "" ||
		!strings.Contains(strings.Join(strings.Fields(r.stdout), " "), fmt.Sprintf("%s/m oci:%s/layout 1 ", dir, dir)) {
		t.Errorf("list: %+v", r)
	}
	if err := os.WriteFile(dir+"/m/README", nil, 0o644); err == nil {
		t.Error("the README could be written")
	}
	silent(t, dir, "umount", "m")
	if exists(dir + "/m") {
		t.Error("the mountpoint is still there")
	}

	silent(t, dir, "mount", "oci:layout:app:1", "-o", "ro", "empty")
	if got := images(t, dir+"/empty"); len(got) != 1 {
		t.Errorf("ids of a named image: %q", got)
	}
	if err := unix.Access(dir+"/empty/README", unix.W_OK); err != unix.EROFS {
		t.Errorf("read-only: %v", err)
	}
	pid := stateOf(t, dir+"/empty").PID
	// On a busy machine it is said that the process has not ended, which is none of what is tested here.
	if r := imgfs(t, dir, "umount", "--lazy", "empty/"); r.code != 0 || r.stderr != "" && !strings.Contains(r.stderr, fmt.Sprintf("process %d ends when", pid)) {
		t.Errorf("umount --lazy: %+v", r)
	}
	until(t, "the process ends", func() bool { return !alive(t, pid) })
	if !exists(dir + "/empty") {
		t.Error("a mountpoint that was there is gone")
	}
}

func TestCommandSeveralSources(t *testing.T) {
	dir := workDir(t)
	writeLayout(t, dir+"/second")
	silent(t, dir, "mount", "layout", "oci:second", "m")
	if got := images(t, dir+"/m"); len(got) != 1 { // it is the same image
		t.Errorf("ids: %q", got)
	}
	if st := stateOf(t, dir+"/m"); st == nil || len(st.Sources) != 2 {
		t.Errorf("state %+v", st)
	}
	silent(t, dir, "umount", "m")
}

func TestCommandManyMounts(t *testing.T) {
	dir := workDir(t)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			at := fmt.Sprintf("m%d", i)
			for range 2 {
				silent(t, dir, "mount", "layout", at)
				if got := images(t, filepath.Join(dir, at)); len(got) != 1 {
					t.Errorf("%s: ids: %q", at, got)
				}
				silent(t, dir, "umount", at)
				if exists(filepath.Join(dir, at)) {
					t.Errorf("%s is still there", at)
				}
			}
		})
	}
	wg.Wait()
}

func TestCommandSignals(t *testing.T) {
	dir := workDir(t)
	for _, signal := range []unix.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP} {
		cmd, stdout, stderr := start(t, dir, "mount", "--foreground", "layout", "m")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		until(t, "the mount", func() bool { return exists(dir + "/m/README") })
		if err := cmd.Process.Signal(signal); err != nil {
			t.Error(err)
		}
		if err := cmd.Wait(); err != nil || stdout.Len() > 0 || stderr.Len() > 0 {
			t.Errorf("%v in the foreground: %v, %q, %q", signal, err, stdout, stderr)
		}
		if exists(dir + "/m") {
			t.Errorf("%v: the mountpoint is still there", signal)
		}

		silent(t, dir, "mount", "layout", "m")
		pid := stateOf(t, dir+"/m").PID
		if err := unix.Kill(pid, signal); err != nil {
			t.Error(err)
		}
		until(t, "the process ends", func() bool { return !alive(t, pid) })
		if exists(dir+"/m") || stateOf(t, dir+"/m") != nil {
			t.Errorf("%v in the background: something is left", signal)
		}
	}
}

func alive(t *testing.T, pid int) bool {
	t.Helper()
	pids, err := processes()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pids {
		if p == pid {
			return true
		}
	}
	return false
}

// Ctrl-C at any moment of starting leaves either a mount that works, or nothing.
func TestCommandInterruptedStart(t *testing.T) {
	dir := workDir(t)
	for wait := time.Duration(0); wait < 80*time.Millisecond; wait += 5 * time.Millisecond {
		cmd, _, stderr := start(t, dir, "mount", "layout", "m")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(wait)
		_ = cmd.Process.Signal(unix.SIGINT) // it may have ended already
		err := cmd.Wait()
		switch {
		case err == nil:
			if got := images(t, dir+"/m"); len(got) != 1 {
				t.Errorf("after %v: ids: %q", wait, got)
			}
			silent(t, dir, "umount", "m")
		case cmd.ProcessState.ExitCode() > 0 && strings.Count(stderr.String(), "\n") != 1:
			t.Errorf("after %v: %v: %q", wait, err, stderr)
		}
		if pids, err := processes(); err != nil || len(pids) > 0 {
			t.Errorf("after %v: processes %v are left, error %v", wait, pids, err)
		}
		if exists(dir + "/m") {
			t.Errorf("after %v: the mountpoint is left", wait)
		}
	}
}

func TestCommandKilled(t *testing.T) {
	dir := workDir(t)
	kill := func() {
		t.Helper()
		pid := stateOf(t, dir+"/m").PID
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		until(t, "the process ends", func() bool { return !alive(t, pid) })
	}
	silent(t, dir, "mount", "layout", "m")
	kill()
	if r := imgfs(t, dir, "list"); !strings.Contains(r.stdout, dir+"/m") || !strings.Contains(r.stdout, "dead") {
		t.Errorf("list: %+v", r)
	}
	silent(t, dir, "mount", "layout", "m")
	if got := images(t, dir+"/m"); len(got) != 1 {
		t.Errorf("ids: %q", got)
	}
	kill()
	silent(t, dir, "umount", "m")
	if exists(dir + "/m") {
		t.Error("the mountpoint is still there")
	}
}

func TestCommandBusy(t *testing.T) {
	dir := workDir(t)
	silent(t, dir, "mount", "layout", "m")
	pid := stateOf(t, dir+"/m").PID
	f, err := os.Open(dir + "/m/README")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if r := imgfs(t, dir, "umount", "m"); r.code != 1 || !strings.Contains(r.stderr, fmt.Sprintf("(%d)", os.Getpid())) ||
		!strings.Contains(r.stderr, "--lazy") || strings.Count(r.stderr, "\n") != 1 {
		t.Errorf("umount: %+v", r)
	}
	if r := imgfs(t, dir, "umount", "--lazy", "m"); r.code != 0 || !strings.Contains(r.stderr, fmt.Sprintf("process %d ends when no file in it is open and nothing is under way", pid)) {
		t.Errorf("umount --lazy: %+v", r)
	}
	if stateOf(t, dir+"/m") != nil {
		t.Error("a detached mount is listed")
	}
	f.Close()
	until(t, "the process ends", func() bool { return !alive(t, pid) })
}

func TestCommandLogFile(t *testing.T) {
	dir := workDir(t)
	silent(t, dir, "mount", "--log-file", "log", "--log-level", "info", "layout", "m")
	silent(t, dir, "umount", "m")
	b, err := os.ReadFile(dir + "/log")
	if err != nil || !strings.Contains(string(b), "msg=mounted") || !strings.Contains(string(b), "msg=unmounted") {
		t.Errorf("the log: %q, error %v", b, err)
	}
	if r := imgfs(t, dir, "mount", "--log-file", "missing/log", "layout", "m"); r.code != 1 || strings.Count(r.stderr, "\n") != 1 {
		t.Errorf("a log file that cannot be made: %+v", r)
	}
}

// mount(8) finds mount.imgfs in /sbin; here it is called as mount(8) calls it.
func TestCommandMountHelper(t *testing.T) {
	dir := workDir(t)
	helper := filepath.Join(dir, "mount.imgfs")
	if err := os.Symlink(program(t), helper); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) (string, error) {
		out, err := exec.Command(helper, args...).CombinedOutput()
		return string(out), err
	}
	if out, err := run("oci:"+dir+"/layout", dir+"/empty", "-n", "-o", "rw,noexec,x-systemd.automount"); err != nil || out != "" {
		t.Errorf("%v: %q", err, out)
	}
	if got := images(t, dir+"/empty"); len(got) != 1 {
		t.Errorf("ids: %q", got)
	}
	silent(t, dir, "umount", "empty")
	if out, err := run(dir+"/layout", dir+"/empty", "-o", "ro,nonsense"); err == nil || strings.Count(out, "\n") != 1 {
		t.Errorf("a bad option: %v: %q", err, out)
	}
	if out, err := run(dir+"/layout", dir+"/empty", "-f", "-o", "ro,platform=linux/arm64,noexec"); err != nil || out != "" {
		t.Errorf("a platform: %v: %q", err, out)
	}
	if out, err := run(dir+"/layout", dir+"/empty", "-f", "-s", "-o", "ro,platform=arm64"); err == nil || !strings.Contains(out, `"arm64" is not a platform`) {
		t.Errorf("a platform that is none: %v: %q", err, out)
	}
	if out, err := run(dir+"/layout", dir+"/empty", "-f", "-s", "-o", "ro,nonsense"); err != nil || out != "" {
		t.Errorf("a fake, sloppy mount: %v: %q", err, out)
	}
	if stateOf(t, dir+"/empty") != nil {
		t.Error("a fake mount is a mount")
	}
}

func TestCommandText(t *testing.T) {
	dir := t.TempDir()
	for args, text := range map[string]string{
		"":                "Exit codes:",
		"help":            "imgfs umount",
		"help mount":      "containers-storage:[[DRIVER@]GRAPHROOT[+RUNROOT]]",
		"mount --help":    "Exit codes:",
		"mount -h":        "platform=os/architecture[/variant]",
		"version":         "imgfs ",
		"--version":       "imgfs ",
		"completion bash": "bash completion",
		"completion zsh":  "#compdef imgfs",
		"completion fish": "fish completion",
	} {
		r := imgfs(t, dir, strings.Fields(args)...)
		if r.code != 0 || r.stderr != "" || !strings.Contains(r.stdout, text) {
			t.Errorf("imgfs %s: code %d, stderr %q, stdout without %q", args, r.code, r.stderr, text)
		}
	}
}
