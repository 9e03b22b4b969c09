// Package reaper takes away what a test process leaves, whichever way it ends: also by a signal that it cannot catch, or a
// panic. All that the test makes lies below one directory, and all that it starts has that directory in its environment, which
// is inherited; so both can be found. That is done by a second process, the reaper, which outlives the first.
//
//	func TestMain(m *testing.M) {
//		reaper.Main()
//		os.Exit(m.Run())
//	}
package reaper

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// RunVar is in the environment of every process that a test starts: the test's directory.
	RunVar = "IMGFS_TEST_RUN"
	// reaperVar makes a test binary the reaper of that directory.
	reaperVar = "IMGFS_TEST_REAPER"
)

// A Reaper is a process in a session of its own that waits for its standard input to end. That happens when the process that has
// started it ends.
type Reaper struct {
	process *exec.Cmd
	alive   io.Closer // its standard input
}

// Start starts a reaper of dir, whose name must have no character that /proc/self/mountinfo escapes. Error: what exec says.
func Start(dir string) (*Reaper, error) {
	r := &Reaper{process: exec.Command("/proc/self/exe")}
	r.process.Env = append(os.Environ(), reaperVar+"="+dir)
	r.process.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // Ctrl-C is not for the reaper
	in, err := r.process.StdinPipe()
	if err == nil {
		r.alive, err = in, r.process.Start()
	}
	if err != nil {
		return nil, fmt.Errorf("starting a reaper of %s: %w", dir, err)
	}
	return r, nil
}

// Close has the reaper take away what there is, and the directory. Error: the directory could not be removed.
func (r *Reaper) Close() error { return errors.Join(r.alive.Close(), r.process.Wait()) }

// Main is the reaper, in the process that is one: it does not return there.
func Main() {
	dir := os.Getenv(reaperVar)
	if dir == "" {
		return
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	if !reap(dir) {
		fmt.Fprintf(os.Stderr, "%s could not be removed\n", dir)
		os.Exit(1)
	}
	os.Exit(0)
}

// reap ends the processes of dir, takes away its mounts and removes it.
func reap(dir string) (done bool) {
	for range 100 {
		for _, p := range Processes(RunVar, dir) {
			_ = unix.Kill(p.PID, unix.SIGKILL)
		}
		for _, m := range slices.Backward(MountsBelow(dir)) {
			if err := unix.Unmount(m, unix.MNT_DETACH); err != nil {
				_ = exec.Command("fusermount3", "-u", "-z", m).Run()
			}
		}
		if len(Leftovers(RunVar, dir)) == 0 && os.RemoveAll(dir) == nil {
			return true
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
	return false
}
