package mount

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// place returns a new path to mount on, which is checked to be left as it was.
func place(t *testing.T) string {
	t.Helper()
	if _, err := os.Stat(devFUSE); err != nil || os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root and " + devFUSE)
		}
		t.Skip("needs root and " + devFUSE)
	}
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nothingLeft(t, dir) })
	return dir + "/at"
}

// nothingLeft takes away what a test that failed has left below dir, and complains about what any test has left.
func nothingLeft(t *testing.T, dir string) {
	states, err := List()
	if err != nil {
		t.Error(err)
	}
	for _, st := range states {
		if strings.HasPrefix(st.Mountpoint, dir) {
			t.Errorf("left: %+v", st)
			if !st.Dead {
				_ = unix.Kill(st.PID, unix.SIGKILL) // it may end by itself
			}
		}
	}
	left, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		t.Error(err)
	}
	for _, i := range left {
		t.Errorf("left mounted: %s", i.Mountpoint)
		if err := unix.Unmount(i.Mountpoint, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("left in the directory: %v, error %v", entries, err)
	}
}

// command returns the serving program, to be run with args.
func command(args ...string) *exec.Cmd {
	return exec.Command(os.Args[0], append([]string{"serve"}, args...)...)
}

// start mounts in the background and returns the state.
func start(t *testing.T, at string, args ...string) State {
	t.Helper()
	if out, err := command(append(args, at)...).CombinedOutput(); err != nil || len(out) > 0 {
		t.Fatalf("mounting: %v: %s", err, out)
	}
	return state(t, at)
}

func state(t *testing.T, at string) State {
	t.Helper()
	states, err := List()
	if err != nil {
		t.Fatal(err)
	}
	for _, st := range states {
		if st.Mountpoint == at {
			return st
		}
	}
	t.Fatalf("no state of %s in %v", at, states)
	return State{}
}

func end(t *testing.T, at string) {
	t.Helper()
	if err := Unmount(t.Context(), at, false); err != nil {
		t.Errorf("unmounting: %v", err)
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

func TestServe(t *testing.T) {
	at := place(t)
	st := start(t, at)
	if got := read(t, at+"/file"); got != fileText {
		t.Errorf("read %q", got)
	}
	if !st.Created || st.Dead || len(st.Sources) != 1 || !running(st.PID, st.Started) {
		t.Errorf("state %+v", st)
	}
	if got := read(t, "/sys/class/bdi/"+st.Device+"/read_ahead_kb"); got != "1024\n" {
		t.Errorf("read-ahead is %q", got)
	}
	cwd, err := os.Readlink("/proc/" + itoa(st.PID) + "/cwd")
	if err != nil || cwd != "/" {
		t.Errorf("the process is in %s, error %v", cwd, err)
	}
	if _, err := Check(at); !errors.Is(err, ErrMounted) || !strings.Contains(err.Error(), "imgfs umount "+at) {
		t.Errorf("mounting again: error %v", err)
	}
	end(t, at)
	if running(st.PID, st.Started) {
		t.Error("Unmount returned before the process had ended")
	}
	if _, err := os.Lstat(at); err == nil {
		t.Error("the mountpoint was not removed")
	}
}

func TestServeKeepsDirectory(t *testing.T) {
	at := place(t)
	if err := os.Mkdir(at, 0o750); err != nil {
		t.Fatal(err)
	}
	start(t, at)
	end(t, at)
	if err := os.Remove(at); err != nil {
		t.Error(err)
	}
}

func TestServeFlags(t *testing.T) {
	at := place(t)
	for _, test := range []struct {
		words  string
		mount  []string // options of the mount
		super  []string // options of the file system
		absent []string
	}{
		{"", []string{"rw", "nosuid", "nodev"}, []string{"max_read=1048576"}, []string{"allow_other", "default_permissions", "noexec", "ro"}},
		{"ro", []string{"ro", "nosuid", "nodev"}, []string{"ro"}, []string{"rw"}},
		{"noexec,allow_other", []string{"rw", "noexec"}, []string{"allow_other", "default_permissions"}, nil},
		{"dev,suid", []string{"rw"}, nil, []string{"nosuid", "nodev"}},
	} {
		start(t, at, "-o", test.words)
		found, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(at))
		if err != nil || len(found) != 1 {
			t.Fatalf("%v, error %v", found, err)
		}
		i := found[0]
		if i.FSType != "fuse.imgfs" || i.Source != "test:a,b" {
			t.Errorf("%q: type %s, source %s", test.words, i.FSType, i.Source)
		}
		mount, super := strings.Split(i.Options, ","), strings.Split(i.VFSOptions, ",")
		for _, w := range test.mount {
			if !contains(mount, w) {
				t.Errorf("%q: no %s in %s", test.words, w, i.Options)
			}
		}
		for _, w := range test.super {
			if !contains(super, w) {
				t.Errorf("%q: no %s in %s", test.words, w, i.VFSOptions)
			}
		}
		for _, w := range test.absent {
			if contains(mount, w) || contains(super, w) {
				t.Errorf("%q: %s in %s - %s", test.words, w, i.Options, i.VFSOptions)
			}
		}
		end(t, at)
	}
}

// The kernel takes a source of a few kilobytes, and refuses to mount with a longer one.
func TestServeManySources(t *testing.T) {
	at := place(t)
	st := start(t, at, "-more", "60")
	if len(st.Sources) != 61 {
		t.Errorf("the state has %d sources", len(st.Sources))
	}
	found, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(at))
	if err != nil || len(found) != 1 {
		t.Fatalf("%v, error %v", found, err)
	}
	if got := found[0].Source; !strings.HasPrefix(got, "test:a,b, test:000") || !strings.HasSuffix(got, "1 and 58 more") {
		t.Errorf("the source is %q", got)
	}
	end(t, at)
}

func TestServeNoXattr(t *testing.T) {
	at := place(t)
	start(t, at, "-o", "noxattr")
	if _, err := unix.Getxattr(at+"/file", "user.x", nil); err != unix.EOPNOTSUPP {
		t.Errorf("getxattr: %v", err)
	}
	end(t, at)
}

func TestServePanic(t *testing.T) {
	for _, test := range []struct {
		level string
		stack bool
	}{{"error", false}, {"debug", true}} {
		at := place(t)
		var log strings.Builder
		cmd := command("-foreground", "-log-level", test.level, at)
		cmd.Stderr = &log
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		until(t, "the mount", func() bool { _, err := os.Stat(at + "/panic"); return err == nil })
		if _, err := os.ReadFile(at + "/panic"); !errors.Is(err, unix.EIO) {
			t.Errorf("reading: %v", err)
		}
		if got := read(t, at+"/file"); got != fileText {
			t.Errorf("after the panic: %q", got)
		}
		end(t, at)
		if err := cmd.Wait(); err != nil {
			t.Errorf("the process ended with %v", err)
		}
		var lines []string
		for line := range strings.Lines(log.String()) {
			if strings.Contains(line, "panic while answering") {
				lines = append(lines, line)
			}
		}
		if len(lines) == 0 || !strings.Contains(lines[0], "no reader may see this") || strings.Contains(lines[0], "main_test.go") != test.stack {
			t.Errorf("%s: the log: %s", test.level, log.String())
		}
	}
}

func TestSignals(t *testing.T) {
	for _, signal := range []unix.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP} {
		at := place(t)
		cmd := command("-foreground", at)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		until(t, "the mount", func() bool { _, err := os.Stat(at + "/file"); return err == nil })
		if err := cmd.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("%v: ended with %v", signal, err)
		}
	}
}

// A signal while files are open cuts them off.
func TestSignalWhileOpen(t *testing.T) {
	at := place(t)
	st := start(t, at)
	f, err := os.Open(at + "/file")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Kill(st.PID, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	until(t, "the process ends", func() bool { return !running(st.PID, st.Started) })
	if _, err := os.Lstat(at); err == nil {
		t.Error("the mountpoint is still there")
	}
}

func TestUnmountedFromOutside(t *testing.T) {
	at := place(t)
	for _, args := range [][]string{{"umount", at}, {"umount", "-l", at}, {helper, "-u", at}} {
		if _, err := exec.LookPath(args[0]); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
		st := start(t, at)
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Errorf("%v: %v: %s", args, err, out)
		}
		until(t, "the process ends", func() bool { return !running(st.PID, st.Started) })
		if _, err := os.Lstat(at); err == nil {
			t.Errorf("%v: the mountpoint is still there", args)
		}
	}
}
