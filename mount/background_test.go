package mount

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func itoa(n int) string { return strconv.Itoa(n) }

func contains(words []string, word string) bool {
	for _, w := range words {
		if w == word {
			return true
		}
	}
	return false
}

// children returns the processes whose command line has at in it.
func processes(t *testing.T, at string) (pids []int) {
	t.Helper()
	names, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil || !strings.Contains(string(b), at) {
			continue
		}
		pid, err := strconv.Atoi(strings.Split(name, "/")[2])
		if err == nil && pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids
}

func TestChildFails(t *testing.T) {
	at := place(t)
	out, err := command("-o", "nonsense", at).CombinedOutput()
	if got := string(out); err == nil || !strings.Contains(got, ErrOption.Error()) || strings.Count(got, "\n") != 1 {
		t.Errorf("error %v: %q", err, got)
	}
	out, err = command("-die", at).CombinedOutput()
	if got := string(out); err == nil || !strings.Contains(got, "exit status 9") || strings.Count(got, "\n") != 1 {
		t.Errorf("error %v: %q", err, got)
	}
}

// A parent that is asked to end, or is killed, before the tree can be read takes its child along, even if the tree
// never answers.
func TestParentEnds(t *testing.T) {
	for _, test := range []struct {
		signal unix.Signal
		hang   string
	}{
		{unix.SIGINT, "interruptible"},
		{unix.SIGINT, "deaf"},
		{unix.SIGTERM, "deaf"},
		{unix.SIGKILL, "interruptible"}, // who reads from a deaf server cannot even be killed
	} {
		signal, at := test.signal, place(t)
		cmd := command("-hang", test.hang, at)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		until(t, "the mount", func() bool { e, err := mountAt(at); return err == nil && e != nil })
		time.Sleep(20 * time.Millisecond) // probably in the listing by now; before it is as good
		if err := cmd.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err == nil {
			t.Errorf("%v: the parent ended well", signal)
		}
		if signal == unix.SIGKILL {
			until(t, "the child ends", func() bool { return len(processes(t, at)) == 0 })
		}
		if pids := processes(t, at); len(pids) > 0 {
			t.Errorf("%v: processes %v are left", signal, pids)
		}
	}
}

// What the parent was given does not live on in the child.
func TestChildKeepsNothing(t *testing.T) {
	at := place(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := command(at)
	cmd.ExtraFiles = []*os.File{w}
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if _, err := r.Read(make([]byte, 1)); err == nil {
		t.Error("something was written")
	} // and Read returned: nobody has the other end
	end(t, at)
}
