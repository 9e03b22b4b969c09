package userns

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"go.podman.io/storage/pkg/reexec"
	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/test/needs"
)

const echoes, dies, leaves = "userns-test-echoes", "userns-test-dies", "userns-test-leaves"

func init() {
	Register(echoes, echo)
	Register(dies, func(*Conn) {
		fmt.Fprintln(os.Stderr, "first\nlast")
		os.Exit(3)
	})
	Register(leaves, func(c *Conn) {
		left := exec.Command("sleep", "60")
		left.Stderr = os.Stderr
		if err := left.Start(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return
		}
		_ = c.Send([]byte(strconv.Itoa(left.Process.Pid)), nil)
		_, _, _ = c.Receive()
		fmt.Fprintln(os.Stderr, "ended")
	})
}

// echo sends back what comes, after who this is there, and with a file that has what it came with.
func echo(c *Conn) {
	caps, _ := os.ReadFile("/proc/self/status")
	_, caps, _ = bytes.Cut(caps, []byte("CapEff:\t"))
	caps, _, _ = bytes.Cut(caps, []byte("\n"))
	mount := unix.Mount("tmpfs", "/mnt", "tmpfs", 0, "")
	_ = c.Send(fmt.Appendf(nil, "uid %d, all capabilities: %t, mounts: %t", os.Getuid(), strings.Contains(string(caps), "ffffff"), mount == nil), nil)
	for {
		message, file, err := c.Receive()
		if err != nil {
			return
		}
		_ = c.Send(message, file)
		if file != nil {
			file.Close()
		}
	}
}

func TestMain(m *testing.M) {
	if reexec.Init() {
		return
	}
	os.Exit(m.Run())
}

func TestChild(t *testing.T) {
	for _, mounts := range []bool{false, true} {
		t.Run(fmt.Sprintf("mounts=%t", mounts), func(t *testing.T) {
			c := begin(t, echoes, mounts)
			said, _, err := c.Receive()
			if want := fmt.Sprintf("uid 0, all capabilities: true, mounts: %t", mounts); err != nil || string(said) != want {
				t.Errorf("%q, %v, want %q", said, err, want)
			}
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			long := bytes.Repeat([]byte("0123456789"), 100_000)
			sent := [][]byte{[]byte("short"), {}, long}
			go func() {
				for i, message := range sent {
					file := w
					if i == 1 {
						file = nil
					}
					if err := c.Send(message, file); err != nil {
						t.Error(err)
					}
				}
				w.Close()
			}()
			for i, want := range sent {
				message, file, err := c.Receive()
				if err != nil || !bytes.Equal(message, want) || (file != nil) != (i != 1) {
					t.Fatalf("message %d: %d bytes, file %v, %v", i, len(message), file, err)
				}
				if file != nil {
					fmt.Fprint(file, i)
					file.Close()
				}
			}
			// The other end closes what it has sent: the pipe's end is seen.
			if text, err := io.ReadAll(r); err != nil || string(text) != "02" {
				t.Errorf("through the pipe came %q, %v", text, err)
			}
			pid := c.PID()
			c.Close()
			if unix.Kill(pid, 0) == nil {
				t.Errorf("process %d is still there", pid)
			}
		})
	}
}

func TestLast(t *testing.T) {
	c := begin(t, dies, false)
	if _, _, err := c.Receive(); err == nil {
		t.Error("a process that is gone has said something")
	}
	if got, want := c.Last(), "exit status 3: first; last"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// A process that a child has started, and not waited for, keeps nobody from seeing that the child has ended.
func TestLeft(t *testing.T) {
	c := begin(t, leaves, false)
	said, _, err := c.Receive()
	if err != nil {
		t.Fatal(err, c.Last())
	}
	left, err := strconv.Atoi(string(said))
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if err := unix.Kill(left, unix.SIGKILL); err != nil {
		t.Errorf("the child was waited for until what it had left was gone: %v", err)
	}
	if got, want := c.Last(), "exit status 0: ended"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func begin(t *testing.T, name string, mounts bool) *Child {
	t.Helper()
	c, err := Start(name, mounts)
	if errors.Is(err, ErrUnavailable) {
		needs.Unmet(t, "user namespaces: "+err.Error())
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}
