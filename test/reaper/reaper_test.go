package reaper

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const leaverVar = "IMGFS_TEST_LEAVER" // makes this binary one that makes things in that directory, and waits

func TestMain(m *testing.M) {
	Main()
	if dir := os.Getenv(leaverVar); dir != "" {
		fmt.Println(leave(dir))
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// leave starts a reaper, and what it is for.
func leave(dir string) error {
	if _, err := Start(dir); err != nil {
		return err
	}
	if os.Geteuid() == 0 {
		at := filepath.Join(dir, "mnt")
		if err := errors.Join(os.Mkdir(at, 0o700), unix.Mount("tmpfs", at, "tmpfs", 0, "")); err != nil {
			return err
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "read-only"), 0o500); err != nil {
		return err
	}
	sleep := exec.Command("sleep", "30")
	sleep.Env = append(os.Environ(), RunVar+"="+dir)
	sleep.Stdout = os.Stdout
	return sleep.Start()
}

// Nothing is left of a test that is killed.
func TestReaper(t *testing.T) {
	dir := t.TempDir() + "/run"
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	leaver := exec.Command("/proc/self/exe")
	leaver.Env = append(os.Environ(), leaverVar+"="+dir)
	_, err1 := leaver.StdinPipe()
	out, err2 := leaver.StdoutPipe()
	if err := errors.Join(err1, err2, leaver.Start()); err != nil {
		t.Fatal(err)
	}
	said := make([]byte, 1000)
	if n, err := out.Read(said); string(said[:n]) != "<nil>\n" {
		t.Errorf("making what is to be left: %s%v", said[:n], err)
	}
	if len(Leftovers(RunVar, dir)) == 0 {
		t.Error("nothing to take away")
	}
	if err := leaver.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, out); err != nil { // until the process that it had started has ended
		t.Error(err)
	}
	_ = leaver.Wait()
	for range 500 {
		if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Errorf("left: %q", Leftovers(RunVar, dir))
}
