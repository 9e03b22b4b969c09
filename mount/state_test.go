package mount

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"testing"
	"time"
)

func TestRunning(t *testing.T) {
	_, started, err := processStat(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if !running(os.Getpid(), started) {
		t.Error("this process is not running")
	}
	if running(os.Getpid(), started+1) {
		t.Error("a process with another start time is taken for this one")
	}
	// Ended and not waited for: /proc still knows it.
	cmd := exec.Command("/bin/sh", "-c", "read x")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_, started, err = processStat(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	until(t, "a zombie is gone", func() bool { return !running(cmd.Process.Pid, started) })
	if _, _, err := processStat(cmd.Process.Pid); err != nil {
		t.Errorf("that was no zombie: %v", err)
	}
	_ = cmd.Wait() // read ended with 1
}

func TestLockState(t *testing.T) {
	dir := t.TempDir()
	unlock, err := lockState(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := lockState(ended, dir); !errors.Is(err, context.Canceled) {
		t.Errorf("a second lock: error %v", err)
	}
	unlock()
	unlock, err = lockState(t.Context(), dir)
	if err != nil {
		t.Fatalf("after unlocking: %v", err)
	}
	unlock()
}

func TestReadStates(t *testing.T) {
	dir := t.TempDir()
	_, started, err := processStat(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	living := State{Mountpoint: "/a", Sources: []string{"oci:/x"}, PID: os.Getpid(), Started: started, Device: "0:1"}
	dead := State{Mountpoint: "/b", PID: 1, Started: 1 << 60} // process 1 is another one now
	for _, st := range []State{living, dead} {
		if err := st.write(dir); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{
		"7.json": "{", "8.json": "", "9.json": `{"mountpoint":"/c","pid":10}`, "x.json": "null", "5.json.new": `{"pid":5}`,
	} {
		if err := os.WriteFile(dir+"/"+name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	all, err := readStates(dir)
	if err != nil || len(all) != 2 {
		t.Fatalf("%v, error %v", all, err)
	}
	for _, st := range all {
		if st.Dead != (st.PID == 1) {
			t.Errorf("%+v", st)
		}
	}
}

func TestForget(t *testing.T) {
	for _, test := range []struct {
		name          string
		created, file bool
		stays         bool
	}{
		{"made by us", true, false, false},
		{"made by us and used since", true, true, true},
		{"there before", false, false, true},
	} {
		dir, at := t.TempDir(), t.TempDir()+"/at"
		if err := os.Mkdir(at, 0o755); err != nil {
			t.Fatal(err)
		}
		if test.file {
			if err := os.WriteFile(at+"/file", nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		st := State{Mountpoint: at, PID: 3, Created: test.created}
		if err := st.write(dir); err != nil {
			t.Fatal(err)
		}
		if err := st.forget(dir); err != nil {
			t.Errorf("%s: %v", test.name, err)
		}
		if _, err := os.Stat(at); (err == nil) != test.stays {
			t.Errorf("%s: the directory: %v", test.name, err)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
			t.Errorf("%s: left %v, error %v", test.name, left, err)
		}
	}
}

func TestOwn(t *testing.T) {
	dir := t.TempDir()
	uid := os.Geteuid()
	for range 2 {
		if err := own(dir+"/new", uid); err != nil {
			t.Error(err)
		}
	}
	if err := os.Mkdir(dir+"/open", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir+"/open", 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("new", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"open", "link", "missing/dir"} {
		if err := own(dir+"/"+name, uid); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	if err := own(dir+"/new", uid+1); err == nil {
		t.Error("another user's directory is taken")
	}
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
