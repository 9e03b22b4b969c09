package e2e

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

const (
	runVar    = "IMGFS_E2E_RUN"    // in the environment of every process that a run starts: the run's directory
	scriptVar = "IMGFS_E2E_SCRIPT" // likewise: the script's work directory
	mountVar  = "IMGFS_E2E_MOUNT"  // in the environment of a serving process: its mountpoint
	reaperVar = "IMGFS_E2E_REAPER" // makes this binary the reaper of that directory
)

// A run is one execution of the test binary: a directory for all that it makes, with the binary under test in bin, and the
// reaper, a process in a session of its own that waits for its standard input to end. That happens when this process ends,
// also by a signal or a panic; the reaper then takes away what is still there.
type run struct {
	dir    string
	reaper *exec.Cmd
	alive  io.Closer // the reaper's standard input
}

var (
	starting sync.Once
	current  *run // what TestMain closes; nil as long as no test has asked for it
)

// start makes the run, once, and builds the program, unless the environment variable IMGFS is the path of another one
// to test.
func start(t *testing.T) *run {
	t.Helper()
	starting.Do(func() {
		dir, err := os.MkdirTemp("", "imgfs-e2e-")
		if err != nil {
			t.Fatal(err)
		}
		r := &run{dir: dir, reaper: exec.Command("/proc/self/exe")}
		r.reaper.Env = append(os.Environ(), reaperVar+"="+dir)
		r.reaper.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // Ctrl-C is not for the reaper
		if r.alive, err = r.reaper.StdinPipe(); err == nil {
			err = r.reaper.Start()
		}
		if err == nil {
			err = errors.Join(os.Mkdir(filepath.Join(dir, "work"), 0o755), os.Mkdir(filepath.Join(dir, "bin"), 0o755))
		}
		current = r
		if err != nil {
			t.Fatalf("preparing a directory and its reaper: %v", err)
		}
		if given := os.Getenv("IMGFS"); given != "" {
			if err := os.Symlink(given, filepath.Join(dir, "bin", "imgfs")); err != nil {
				t.Fatal(err)
			}
			return
		}
		build := exec.Command("go", "build", "-buildvcs=false", "-tags", "containers_image_openpgp",
			"-o", filepath.Join(dir, "bin", "imgfs"), "github.com/imgfs/imgfs/cmd/imgfs")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("building imgfs: %v\n%s", err, out)
		}
	})
	if current == nil || !exists(filepath.Join(current.dir, "bin", "imgfs")) {
		t.Fatal("there is no imgfs to test: an earlier test has said why")
	}
	return current
}

// close says whether the scripts left nothing, and removes the directory.
func (r *run) close() (clean bool) {
	clean = true
	if left := leftovers(runVar, r.dir); len(left) > 0 {
		fmt.Printf("e2e: left behind: %s\n", strings.Join(left, "; "))
		clean = false
	}
	_ = r.alive.Close()
	_ = r.reaper.Wait()
	if exists(r.dir) {
		fmt.Printf("e2e: %s could not be removed\n", r.dir)
		clean = false
	}
	return clean
}

// reap waits for the test process to end and then ends its processes, takes away its mounts and removes dir.
func reap(dir string) {
	_, _ = io.Copy(io.Discard, os.Stdin)
	for range 100 {
		for _, p := range processes(runVar, dir) {
			_ = unix.Kill(p.pid, unix.SIGKILL)
		}
		for _, m := range slices.Backward(mountsBelow(dir)) {
			if err := unix.Unmount(m, unix.MNT_DETACH); err != nil {
				_ = exec.Command("fusermount3", "-u", "-z", m).Run()
			}
		}
		if len(leftovers(runVar, dir)) == 0 && os.RemoveAll(dir) == nil {
			return
		}
		// Images hold directories that their owner may not write.
		_ = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				_ = os.Chmod(p, 0o700)
			}
			return nil
		})
		time.Sleep(50 * time.Millisecond)
	}
}

// setup prepares one script's environment.
func (r *run) setup(env *testscript.Env) error {
	work := env.WorkDir
	helpers, err := filepath.Abs("testdata/bin")
	if err != nil {
		return err
	}
	env.Setenv("PATH", filepath.Join(work, ".bin")+":"+filepath.Join(r.dir, "bin")+":"+helpers+":"+os.Getenv("PATH")+":/usr/sbin:/sbin")
	env.Setenv("HOME", filepath.Join(work, ".home"))
	env.Setenv("XDG_RUNTIME_DIR", filepath.Join(work, ".run"))
	env.Setenv("XDG_CACHE_HOME", filepath.Join(work, ".cache"))
	env.Setenv("LC_ALL", "C.UTF-8")
	for _, name := range []string{"IMGFS_ACCEPT", "IMGFS_ACCEPT_STORE", "SOAK_SECONDS"} {
		env.Setenv(name, os.Getenv(name))
	}
	env.Setenv(runVar, r.dir)
	env.Setenv(scriptVar, work)
	for _, d := range []string{".bin", ".home", ".run", ".cache"} {
		if err := os.Mkdir(filepath.Join(work, d), 0o700); err != nil {
			return err
		}
	}
	s := &script{work: work, env: env.Vars, t: env.T(), registries: map[string]*registryServer{}}
	env.Values[scriptKey{}] = s
	env.Defer(s.close)
	return nil
}

// A script is what one script has made and must be taken away at its end.
type script struct {
	work       string
	env        []string // as setup has made it
	t          testscript.T
	mounts     []string
	registries map[string]*registryServer
	engines    []*engine
	servers    []*httptest.Server // of files
	locks      map[string]*os.File
	user       *holder // of an ordinary user's mount namespace, or nil
}

type scriptKey struct{}

func of(ts *testscript.TestScript) *script { return ts.Value(scriptKey{}).(*script) }

// close unmounts what the script has mounted, and fails it if anything else is left. What the script started in the
// background has ended by then, unless the script has failed.
func (s *script) close() {
	for _, f := range s.locks {
		_ = f.Close()
	}
	for _, r := range s.registries {
		r.stop()
	}
	for _, f := range s.servers {
		f.Close()
	}
	for _, e := range s.engines {
		e.stop()
	}
	for _, p := range processes(scriptVar, s.work) {
		if !p.serves {
			_ = unix.Kill(p.pid, unix.SIGKILL)
		}
	}
	for _, m := range slices.Backward(s.mounts) {
		cmd := exec.Command(filepath.Join(current.dir, "bin", "imgfs"), "umount", m)
		cmd.Env = s.env
		if out, err := cmd.CombinedOutput(); err != nil {
			s.t.Log(fmt.Sprintf("imgfs umount %s: %v\n%s", m, err, out))
			_ = unix.Unmount(m, unix.MNT_DETACH)
		}
	}
	if s.user != nil {
		s.user.stop()
	}
	var left []string
	for range 200 {
		if left = leftovers(scriptVar, s.work); len(left) == 0 {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if temp, err := filepath.Glob(filepath.Join(s.work, ".tmp", "*imgfs*")); err == nil {
		left = append(left, temp...)
	}
	for _, p := range processes(scriptVar, s.work) {
		_ = unix.Kill(p.pid, unix.SIGKILL)
	}
	for _, m := range slices.Backward(mountsBelow(s.work)) {
		_ = unix.Unmount(m, unix.MNT_DETACH)
	}
	_ = os.RemoveAll(s.work) // the reaper has another try
	if len(left) > 0 {
		s.t.Fatal("left behind: " + strings.Join(left, "; "))
	}
}

// leftovers names the mounts below dir and the processes that have dir in their environment variable name. A store's bind mount
// of itself is podman's, and is no leftover.
func leftovers(name, dir string) []string {
	left := slices.DeleteFunc(mountsBelow(dir), func(m string) bool { return strings.HasSuffix(m, "/store/root/overlay") })
	for _, p := range processes(name, dir) {
		left = append(left, fmt.Sprintf("process %d (%s)", p.pid, p.command))
	}
	return left
}

// mountsBelow returns the mountpoints below dir, in the order of /proc/self/mountinfo: an inner one after an outer one.
func mountsBelow(dir string) []string {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return []string{err.Error()}
	}
	defer f.Close()
	var found []string
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") { // none of these names has a character that is escaped
			found = append(found, fields[4])
		}
	}
	return found
}

type process struct {
	pid     int
	command string
	serves  bool // it was started by the command mount
}

// processes returns those that have name=value in the environment that they were started with, zombies left out.
func processes(name, value string) []process {
	var found []process
	environs, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, path := range environs {
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		env, err := os.ReadFile(path)
		if err != nil || pid == os.Getpid() {
			continue
		}
		vars := strings.Split(string(env), "\x00")
		if !slices.Contains(vars, name+"="+value) {
			continue
		}
		serves := slices.ContainsFunc(vars, func(v string) bool { return strings.HasPrefix(v, mountVar+"=/") })
		command, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if len(command) > 0 { // a zombie has none
			found = append(found, process{serves: serves, pid: pid, command: string(bytes.ReplaceAll(bytes.TrimRight(command, "\x00"), []byte{0}, []byte{' '}))})
		}
	}
	return found
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
