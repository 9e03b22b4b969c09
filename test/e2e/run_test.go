package e2e

import (
	"errors"
	"fmt"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/test/reaper"
)

const (
	scriptVar = "IMGFS_E2E_SCRIPT" // in the environment of every process that a script starts: its work directory
	mountVar  = "IMGFS_E2E_MOUNT"  // in the environment of a serving process: its mountpoint
)

// A run is one execution of the test binary: a directory for all that it makes, with the binary under test in bin.
type run struct {
	dir    string
	reaper *reaper.Reaper
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
		r := &run{dir: dir}
		if r.reaper, err = reaper.Start(dir); err != nil {
			t.Fatal(err)
		}
		current = r
		if err := errors.Join(os.Mkdir(filepath.Join(dir, "work"), 0o755), os.Mkdir(filepath.Join(dir, "bin"), 0o755)); err != nil {
			t.Fatalf("preparing a directory: %v", err)
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
	if left := reaper.Leftovers(reaper.RunVar, r.dir); len(left) > 0 {
		fmt.Printf("e2e: left behind: %s\n", strings.Join(left, "; "))
		clean = false
	}
	if err := r.reaper.Close(); err != nil {
		fmt.Printf("e2e: the reaper: %v\n", err)
		clean = false
	}
	return clean
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
	env.Setenv("TZ", "UTC")
	for _, name := range []string{"IMGFS_ACCEPT", "IMGFS_ACCEPT_STORE", "SOAK_SECONDS"} {
		env.Setenv(name, os.Getenv(name))
	}
	env.Setenv(reaper.RunVar, r.dir)
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

// program puts a program before all others of its name. No process begins meanwhile: it would have the file open for writing
// until it runs a program of its own, and who runs this one before that is told ETXTBSY.
func (s *script) program(name, text string) error {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	return os.WriteFile(filepath.Join(s.work, ".bin", name), []byte(text), 0o755)
}

// A script is what one script has made and must be taken away at its end.
type script struct {
	work       string
	env        []string // as setup has made it
	t          testscript.T
	mounts     []string
	registries map[string]*registryServer
	stopped    map[string]*registryServer // registries that can be started again
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
	for _, p := range reaper.Processes(scriptVar, s.work) {
		if !slices.ContainsFunc(p.Environ, serves) {
			_ = unix.Kill(p.PID, unix.SIGKILL)
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
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		if left = reaper.Leftovers(scriptVar, s.work); len(left) == 0 || time.Now().After(deadline) {
			break
		}
	}
	if temp, err := filepath.Glob(filepath.Join(s.work, ".tmp", "*imgfs*")); err == nil {
		left = append(left, temp...)
	}
	for _, p := range reaper.Processes(scriptVar, s.work) {
		_ = unix.Kill(p.PID, unix.SIGKILL)
	}
	for _, m := range slices.Backward(reaper.MountsBelow(s.work)) {
		_ = unix.Unmount(m, unix.MNT_DETACH)
	}
	_ = os.RemoveAll(s.work) // the reaper has another try
	if len(left) > 0 {
		s.t.Fatal("left behind: " + strings.Join(left, "; "))
	}
}

// serves says of a variable that it is in the environment of what the command mount has started.
func serves(variable string) bool { return strings.HasPrefix(variable, mountVar+"=/") }

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
