package e2e

import (
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/test/reaper"
)

// patience is how long anything is waited for before the script fails; nothing is measured by it.
const patience = 3 * time.Minute

func usage(ts *testscript.TestScript, neg bool, args []string, ok bool, text string) {
	if neg || !ok {
		ts.Fatalf("usage: %s (got %q, negated: %v)", text, args, neg)
	}
}

func need(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, args, len(args) > 0, "need PROGRAM...")
	for _, program := range args {
		if _, err := exec.LookPath(program); err == nil {
			continue
		}
		if os.Getenv("CI") == "true" {
			ts.Fatalf("%s is missing; where CI=true that is a failure", program)
		}
		of(ts).t.Skip(program + " is missing")
	}
}

func mount(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, args, len(args) > 0, "mount [FLAG...] [SOURCE...] MOUNTPOINT")
	s, at := of(ts), ts.MkAbs(args[len(args)-1])
	ts.Setenv(mountVar, at)
	err := ts.Exec("imgfs", slices.Concat([]string{"mount", "--cache-dir", filepath.Join(s.work, ".cache")}, args)...)
	ts.Setenv(mountVar, "")
	ts.Check(err)
	s.mounts = append(s.mounts, at)
}

func mounted(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, args, len(args) == 1, "mounted MOUNTPOINT")
	s := of(ts)
	s.mounts = append(s.mounts, ts.MkAbs(args[0]))
}

func umount(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, args, len(args) == 1, "umount MOUNTPOINT")
	s, at := of(ts), ts.MkAbs(args[0])
	ts.Check(ts.Exec("imgfs", "umount", at))
	if slices.Contains(reaper.MountsBelow(s.work), at) {
		ts.Fatalf("umount has returned and %s is still mounted", at)
	}
	if p := reaper.Processes(mountVar, at); len(p) > 0 {
		ts.Fatalf("umount has returned and process %d still runs", p[0].PID)
	}
	s.mounts = slices.DeleteFunc(s.mounts, func(m string) bool { return m == at })
}

func lockFile(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, args, len(args) == 1, "lock FILE")
	s, path := of(ts), ts.MkAbs(args[0])
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	ts.Check(err)
	ts.Check(unix.FcntlFlock(f.Fd(), unix.F_SETLKW, &unix.Flock_t{Type: unix.F_WRLCK}))
	if s.locks == nil {
		s.locks = map[string]*os.File{}
	}
	s.locks[path] = f
}

func unlockFile(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, args, len(args) == 1, "unlock FILE")
	s, path := of(ts), ts.MkAbs(args[0])
	if s.locks[path] == nil {
		ts.Fatalf("%s is not locked", path)
	}
	ts.Check(s.locks[path].Close())
	delete(s.locks, path)
}

func killMount(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, args, len(args) == 1, "killmount MOUNTPOINT")
	at := ts.MkAbs(args[0])
	serving := reaper.Processes(mountVar, at)
	if len(serving) == 0 {
		ts.Fatalf("no process serves %s", at)
	}
	for _, p := range serving {
		ts.Check(unix.Kill(p.PID, unix.SIGKILL))
	}
	poll(ts, "the end of the killed process", func() bool { return len(reaper.Processes(mountVar, at)) == 0 })
}

func fileServer(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, args, len(args) == 2, "fileserver NAME DIR")
	server := httptest.NewServer(http.FileServer(http.Dir(ts.MkAbs(args[1]))))
	s := of(ts)
	s.servers = append(s.servers, server)
	ts.Setenv(args[0], strings.TrimPrefix(server.URL, "http://"))
}

func exits(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, args, len(args) > 1, "exits CODE PROGRAM [ARG...]")
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		exit, ok := err.(*exec.ExitError)
		if !ok {
			ts.Fatalf("%s: %v", args[1], err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

func waitFor(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, args, len(args) == 1, "waitfor LINE")
	poll(ts, args[0], func() bool { return ts.Exec("bash", "-c", args[0]) == nil })
}

func poll(ts *testscript.TestScript, what string, done func() bool) {
	for deadline := time.Now().Add(patience); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			ts.Fatalf("waited in vain for: %s", what)
		}
	}
}

func setEnv(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, args, len(args) == 2, "setenv NAME LINE")
	ts.Check(ts.Exec("bash", "-o", "pipefail", "-c", args[1]))
	value := strings.TrimSpace(ts.ReadFile("stdout"))
	if value == "" {
		ts.Fatalf("%s prints nothing", args[1])
	}
	ts.Setenv(args[0], value)
}

func hasJSON(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, false, args, len(args) == 2, "[!] hasjson FILE FILTER")
	need(ts, false, []string{"jq"})
	err := ts.Exec("jq", "-e", args[1], ts.MkAbs(args[0]))
	if neg == (err == nil) {
		ts.Fatalf("jq -e %q %s: %v", args[1], args[0], err)
	}
}

func statSize(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, args, len(args) == 1, "statsize DIR")
	n := 0
	ts.Check(filepath.WalkDir(ts.MkAbs(args[0]), func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := os.Lstat(p)
		if err != nil {
			return err
		}
		_, read, err := hashFile(p)
		if err != nil {
			return err
		}
		if read != info.Size() {
			return fmt.Errorf("%s: stat says %d bytes, read %d", p, info.Size(), read)
		}
		n++
		return nil
	}))
	fmt.Fprintf(ts.Stdout(), "%d files\n", n)
}
