package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/mount"
	"github.com/imgfs/imgfs/test/needs"
)

// built is the command that the tests run, and the directory that it and all they make is in; others may run the same
// tests at the same time. It is built when it is first asked for: most tests of the parts do without.
var built struct {
	once         sync.Once
	dir, program string
	err          error
}

// TestMain fails if the tests leave a mount, a process or a state file.
func TestMain(m *testing.M) {
	code := m.Run()
	if built.dir != "" {
		for _, what := range left() {
			fmt.Fprintln(os.Stderr, "left behind:", what)
			code = 1
		}
		if err := os.RemoveAll(built.dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// program returns the path of the built command. From then on t.TempDir is below built.dir.
func program(t *testing.T) string {
	t.Helper()
	built.once.Do(func() { built.err = build() })
	if built.err != nil {
		t.Fatal(built.err)
	}
	return built.program
}

func build() error {
	dir, err := os.MkdirTemp("", "imgfs-cmd-")
	if err != nil {
		return err
	}
	built.dir = dir
	if built.dir, err = filepath.EvalSymlinks(dir); err != nil {
		return err
	}
	if err := os.Chmod(built.dir, 0o755); err != nil { // one test runs the command as another user
		return err
	}
	if err := os.Setenv("TMPDIR", built.dir); err != nil {
		return err
	}
	built.program = filepath.Join(built.dir, "imgfs")
	cmd := exec.Command("go", "build", "-buildvcs=false", "-tags", "containers_image_openpgp", "-o", built.program, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building the command: %w\n%s", err, out)
	}
	return nil
}

// left names what the tests have left, and takes it away.
func left() (what []string) {
	pids, err := processes()
	if err != nil {
		what = append(what, err.Error())
	}
	for _, pid := range pids {
		what = append(what, fmt.Sprintf("process %d", pid))
		_ = unix.Kill(pid, unix.SIGKILL) // it may have ended meanwhile
	}
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(built.dir))
	if err != nil {
		what = append(what, err.Error())
	}
	for _, m := range mounts {
		what = append(what, "mount "+m.Mountpoint)
		_ = unix.Unmount(m.Mountpoint, unix.MNT_DETACH)
	}
	states, err := filepath.Glob("/run/imgfs/*")
	if err != nil {
		what = append(what, err.Error())
	}
	for _, name := range states {
		if b, err := os.ReadFile(name); err == nil && bytes.Contains(b, []byte(built.dir+"/")) {
			what = append(what, "state file "+name)
			_ = os.Remove(name)
		}
	}
	return what
}

// processes returns the processes that run the program and have not ended.
func processes() (pids []int, err error) {
	names, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if exe, err := os.Readlink(name + "/exe"); err != nil || strings.TrimSuffix(exe, " (deleted)") != built.program {
			continue
		}
		if stat, err := os.ReadFile(name + "/stat"); err != nil || bytes.Contains(stat, []byte(") Z ")) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(name))
		if err != nil {
			return nil, err
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

// result is how a command ended.
type result struct {
	code           int
	stdout, stderr string
}

// start prepares the program with args, in dir. Its cache is not the user's.
func start(t *testing.T, dir string, args ...string) (*exec.Cmd, *bytes.Buffer, *bytes.Buffer) {
	t.Helper()
	if len(args) > 0 && args[0] == "mount" {
		args = append([]string{"mount", "--cache-dir", cacheDir(t)}, args[1:]...)
	}
	cmd := exec.Command(program(t), args...)
	cmd.Dir = dir
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	return cmd, &stdout, &stderr
}

// imgfs runs the program with args in dir.
func imgfs(t *testing.T, dir string, args ...string) result {
	t.Helper()
	cmd, stdout, stderr := start(t, dir, args...)
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// silent runs the program, which must succeed without a word.
func silent(t *testing.T, dir string, args ...string) {
	t.Helper()
	if r := imgfs(t, dir, args...); r != (result{}) {
		t.Errorf("imgfs %s: %+v", strings.Join(args, " "), r)
	}
}

func cacheDir(t *testing.T) string {
	return filepath.Join(filepath.Dir(program(t)), "cache-"+strings.ReplaceAll(t.Name(), "/", "-"))
}

// workDir returns a directory with an OCI layout "layout" of one image, named app:1, and what else tests need.
func workDir(t *testing.T) string {
	t.Helper()
	needs.FUSE(t)
	program(t)
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	writeLayout(t, filepath.Join(dir, "layout"))
	for _, d := range []string{"empty", "full", "store/overlay-images"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{"full/x", "file"} {
		write(t, filepath.Join(dir, f), "x")
	}
	return dir
}

func writeLayout(t *testing.T, dir string) {
	t.Helper()
	blob := func(text string) string {
		sum := fmt.Sprintf("%x", sha256.Sum256([]byte(text)))
		write(t, filepath.Join(dir, "blobs/sha256", sum), text)
		return fmt.Sprintf(`"digest":"sha256:%s","size":%d`, sum, len(text))
	}
	layer := blob(strings.Repeat("\x00", 1024)) // a tar without entries
	diffID := strings.Split(layer, `"`)[3]
	config := blob(`{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["` + diffID + `"]}}`)
	manifest := blob(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",` +
		`"config":{"mediaType":"application/vnd.oci.image.config.v1+json",` + config + `},` +
		`"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar",` + layer + `}]}`)
	write(t, filepath.Join(dir, "oci-layout"), `{"imageLayoutVersion":"1.0.0"}`)
	write(t, filepath.Join(dir, "index.json"), `{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json",`+
		manifest+`,"annotations":{"org.opencontainers.image.ref.name":"app:1"}}]}`)
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// images returns the names in a mount's ids.
func images(t *testing.T, mountpoint string) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(mountpoint, "ids"))
	if err != nil {
		t.Error(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// stateOf returns what is known of the mount at mountpoint, nil if there is none.
func stateOf(t *testing.T, mountpoint string) *mount.State {
	t.Helper()
	mounts, err := mount.List()
	if err != nil {
		t.Fatal(err)
	}
	for i := range mounts {
		if mounts[i].Mountpoint == mountpoint {
			return &mounts[i]
		}
	}
	return nil
}

// until waits for something that another process brings about.
func until(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

func exists(name string) bool {
	_, err := os.Lstat(name)
	return err == nil
}
