package mount

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// The kernel's own emergency exit leaves a mount that answers nothing.
func TestAborted(t *testing.T) {
	at := place(t)
	control := t.TempDir()
	if err := unix.Mount("fusectl", control, "fusectl", 0, ""); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skipf("mounting fusectl: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(control, 0); err != nil {
			t.Error(err)
		}
	})
	st := start(t, at)
	if err := os.WriteFile(control+"/"+strings.TrimPrefix(st.Device, "0:")+"/abort", []byte("1"), 0); err != nil {
		t.Error(err)
	}
	until(t, "the process ends", func() bool { return !running(st.PID, st.Started) })
}

func TestKilled(t *testing.T) {
	kill := func(st State) {
		t.Helper()
		if err := unix.Kill(st.PID, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		until(t, "the process ends", func() bool { return !running(st.PID, st.Started) })
	}
	at := place(t)

	kill(start(t, at))
	if st := state(t, at); !st.Dead {
		t.Errorf("state %+v", st)
	}
	kill(start(t, at)) // replaces the first
	end(t, at)
	if _, err := os.Lstat(at); err == nil {
		t.Error("the directory that the first process made was not removed")
	}

	// The same, but what is there at the end is a living mount, and the place is named by a symlink.
	kill(start(t, at))
	link := t.TempDir() + "/link"
	if err := os.Symlink(at, link); err != nil {
		t.Fatal(err)
	}
	if out, err := command(link).CombinedOutput(); err != nil {
		t.Fatalf("mounting over a dead mount: %v: %s", err, out)
	}
	if got := read(t, at+"/file"); got != fileText {
		t.Errorf("read %q", got)
	}
	end(t, link)
	if _, err := os.Lstat(at); err == nil {
		t.Error("the directory that the first process made was not removed")
	}

	// Whoever unmounts a dead mount by other means leaves a state file, which is forgotten.
	st := start(t, at)
	kill(st)
	if err := unix.Unmount(at, 0); err != nil {
		t.Error(err)
	}
	if _, err := List(); err != nil {
		t.Error(err)
	}
	dir, err := stateDir()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(st.file(dir)); err == nil {
		t.Error("the state file is still there")
	}
	if err := os.Remove(at); err != nil {
		t.Error(err)
	}
}

// Who has the mount in a mount namespace of its own keeps the process, and is named.
func TestKeptElsewhere(t *testing.T) {
	at := place(t)
	st := start(t, at)
	holder := exec.Command("unshare", "--mount", "--propagation", "private", "cat")
	in, err := holder.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	let := func() {
		in.Close()
		_ = holder.Wait()
	}
	defer let()
	name := fmt.Sprintf("cat (%d)", holder.Process.Pid)
	until(t, "another mount namespace has it", func() bool { return slices.Contains(elsewhere(st.Device), name) })
	if err := unix.Unmount(at, 0); err != nil {
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := waitEnd(ended, &st, false); !errors.Is(err, ErrServing) || !strings.Contains(err.Error(), name) {
		t.Errorf("the error is %v", err)
	}
	let()
	until(t, "the process ends", func() bool { return !running(st.PID, st.Started) })
	if found := elsewhere(st.Device); len(found) > 0 {
		t.Errorf("it is still in use by %q", found)
	}
}

// A process that was killed while it waited in the kernel for a lock, whose holder waits for an answer of it.
func TestKilledAndKept(t *testing.T) {
	for name, replace := range map[string]func(t *testing.T, at string){
		"umount": func(t *testing.T, at string) { end(t, at) },
		"mount": func(t *testing.T, at string) {
			start(t, at)
			if got := read(t, at+"/file"); got != fileText {
				t.Errorf("read %q", got)
			}
			end(t, at)
		},
	} {
		t.Run(name, func(t *testing.T) {
			at := place(t)
			st := start(t, at)
			reader := exec.Command("ls", at+"/locked")
			if err := reader.Start(); err != nil {
				t.Fatal(err)
			}
			until(t, "the process waits in the kernel", func() bool { return waitsForLock(t, st.PID) })
			// Who waits for its answer is kept as well, by the thread that its process id is of.
			_, started, err := processStat(reader.Process.Pid)
			if err != nil || !running(reader.Process.Pid, started) {
				t.Fatalf("the reader does not run: %v", err)
			}
			if err := errors.Join(reader.Process.Kill(), unix.Kill(st.PID, unix.SIGKILL)); err != nil {
				t.Fatal(err)
			}
			until(t, "the reader is known to be killed", func() bool { return !running(reader.Process.Pid, started) })
			if !lingers(reader.Process.Pid, started) {
				t.Error("the reader has ended, and nobody has answered")
			}
			until(t, "the process is known to be killed", func() bool { return state(t, at).Dead })
			replace(t, at)
			_ = reader.Wait() // it ends
			until(t, "the process is gone", func() bool { return !lingers(st.PID, st.Started) })
		})
	}
}

// waitsForLock says whether a thread of a process waits in the kernel for what no signal ends.
func waitsForLock(t *testing.T, pid int) bool {
	t.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(threads, func(name string) bool {
		b, err := os.ReadFile(name)
		return err == nil && bytes.Contains(b, []byte(") D "))
	})
}

func TestBusy(t *testing.T) {
	at := place(t)
	st := start(t, at)
	f, err := os.Open(at + "/file")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	err = Unmount(t.Context(), at, false)
	if !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), "("+itoa(os.Getpid())+")") {
		t.Errorf("error %v", err)
	}
	if err := Unmount(t.Context(), at, true); !errors.Is(err, ErrServing) {
		t.Errorf("lazily, with an open file: error %v", err)
	}
	if got := make([]byte, 5); true {
		if _, err := f.ReadAt(got, 0); err != nil || string(got) != fileText[:5] {
			t.Errorf("the open file: %q, error %v", got, err)
		}
	}
	// The place is free for the next one while the first still serves.
	second := start(t, at)
	if second.PID == st.PID {
		t.Error("the second mount is the first")
	}
	end(t, at)
	f.Close()
	until(t, "the process ends", func() bool { return !running(st.PID, st.Started) })
}

// Ending is called once, whichever way the mount ends; while a file is open in one that was detached, and not before.
func TestEnding(t *testing.T) {
	signal := func(s unix.Signal) func(string, State) error {
		return func(_ string, st State) error { return unix.Kill(st.PID, s) }
	}
	for name, test := range map[string]struct {
		open bool
		do   func(at string, st State) error
		want string
	}{
		"SIGTERM":                {true, signal(unix.SIGTERM), "terminated signal received\n"},
		"SIGINT":                 {false, signal(unix.SIGINT), "interrupt signal received\n"},
		"umount(2)":              {false, func(at string, _ State) error { return unix.Unmount(at, 0) }, "unmounted\n"},
		"umount(2), lazily":      {true, func(at string, _ State) error { return unix.Unmount(at, unix.MNT_DETACH) }, "unmounted\n"},
		"covered by another one": {true, cover, ""},
	} {
		t.Run(name, func(t *testing.T) {
			at, file := place(t), t.TempDir()+"/ending"
			st := start(t, at, "-ending", file)
			f, err := os.Open(at + "/file")
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if !test.open {
				f.Close()
			}
			if err := test.do(at, st); err != nil {
				t.Fatal(err)
			}
			if test.want != "" {
				until(t, "it is said that the mount ends", func() bool { text, _ := os.ReadFile(file); return string(text) == test.want })
			} else if _, err := os.Stat(file); err == nil {
				t.Error("it is said that the mount ends")
			} else if err := unix.Unmount(at, 0); err != nil { // what covers it
				t.Error(err)
			}
			f.Close()
			if test.want == "" {
				end(t, at)
			}
			until(t, "the process ends", func() bool { return !running(st.PID, st.Started) })
			if text, _ := os.ReadFile(file); test.want != "" && string(text) != test.want {
				t.Errorf("said %q", text)
			}
		})
	}
}

// cover mounts something over a mount, which can then be seen no more, and is mounted all the same.
func cover(at string, _ State) error {
	if os.Geteuid() != 0 {
		return nil
	}
	if err := unix.Mount("tmpfs", at, "tmpfs", 0, ""); err != nil {
		return err
	}
	_, err := os.Stat(at) // the table is changed and reported by now
	return err
}

// leftState writes the state file of a dead process for a mount at the same place, whose device number is in use again.
func leftState(t *testing.T, at, device string) (file string) {
	t.Helper()
	dir, err := stateDir()
	if err != nil {
		t.Fatal(err)
	}
	st := State{Mountpoint: at, PID: 1, Started: 1 << 60, Device: device, Created: true} // before all others in the directory
	if err := st.write(dir); err != nil {
		t.Fatal(err)
	}
	file = st.file(dir)
	t.Cleanup(func() {
		if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
	})
	return file
}

// A state file that a dead process left does not make a living mount count as dead.
func TestStateLeftBehind(t *testing.T) {
	at := place(t)
	left := leftState(t, at, "0:1")
	if out, err := command(at).CombinedOutput(); err != nil {
		t.Fatalf("mounting: %v: %s", err, out)
	}
	if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the new mount has left the old state file: %v", err)
	}
	st := state(t, at)
	leftState(t, at, st.Device)
	all, err := List()
	if err != nil {
		t.Fatal(err)
	}
	for _, other := range all {
		if other.Mountpoint == at && (other.Dead || other.PID != st.PID) {
			t.Errorf("listed: %+v", other)
		}
	}

	leftState(t, at, st.Device)
	f, err := os.Open(at + "/file")
	if err != nil {
		t.Fatal(err)
	}
	if err := Unmount(t.Context(), at, false); !errors.Is(err, ErrBusy) {
		t.Errorf("unmounting while a file is open: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	end(t, at)
	if running(st.PID, st.Started) {
		t.Error("Unmount returned before the process had ended")
	}
}

// The same, where the living mount is one of which this user has no state file.
func TestStateOfNobody(t *testing.T) {
	at := place(t)
	st := start(t, at)
	dir, err := stateDir()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(st.file(dir)); err != nil {
		t.Fatal(err)
	}
	leftState(t, at, st.Device)
	f, err := os.Open(at + "/file")
	if err != nil {
		t.Fatal(err)
	}
	if err := Unmount(t.Context(), at, false); !errors.Is(err, ErrBusy) {
		t.Errorf("unmounting while a file is open: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	end(t, at)
	until(t, "the process ends", func() bool { return !running(st.PID, st.Started) })
}

// What was dead when it was looked at may have been replaced before the lock is had.
func TestClearDeadOfLiving(t *testing.T) {
	at := place(t)
	start(t, at)
	if err := clearDead(t.Context(), at); !errors.Is(err, errReplaced) {
		t.Errorf("error %v", err)
	}
	if got := read(t, at+"/file"); got != fileText {
		t.Errorf("read %q", got)
	}
	end(t, at)
	if err := clearDead(t.Context(), at); err != nil {
		t.Errorf("with nothing there: %v", err)
	}
}

func TestOneOfMany(t *testing.T) {
	at := place(t)
	var wg sync.WaitGroup
	results := make([]string, 8)
	for i := range results {
		wg.Go(func() {
			out, err := command(at).CombinedOutput()
			if err != nil {
				results[i] = string(out)
			}
		})
	}
	wg.Wait()
	won := 0
	for _, text := range results {
		switch {
		case text == "":
			won++
		case !strings.Contains(text, ErrMounted.Error()):
			t.Errorf("a loser says %q", text)
		}
	}
	if won != 1 {
		t.Errorf("%d processes have mounted", won)
	}
	end(t, at)
}
