// Command demo is a tour of imgfs as a user would take it: it makes a few images, mounts them, and runs the commands of
// the tour with the program whose path is its argument, printing each with its real output. It needs no network and no
// programs but a shell and coreutils; steps that show jq, rsync or curl are left out where they are missing.
//
// All happens in a temporary directory and on the loopback interface. However it ends, nothing is left of it.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: demo IMGFS")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	err := demo(ctx, os.Args[1], os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func demo(ctx context.Context, imgfs string, out io.Writer) (err error) {
	imgfs, err = filepath.Abs(imgfs)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "imgfs-demo-")
	if err != nil {
		return fmt.Errorf("making a directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := makeImages(filepath.Join(dir, "layout")); err != nil {
		return err
	}
	address, closeRegistry, err := serveRegistry()
	if err != nil {
		return err
	}
	defer closeRegistry()

	s := &shell{dir: dir, out: out, env: append(os.Environ(),
		"PATH="+filepath.Dir(imgfs)+":"+os.Getenv("PATH"), "LC_ALL=C.UTF-8", "TZ=UTC")}
	// Whatever stops the tour, the mount is taken down before its directory is removed.
	defer func() { err = errors.Join(err, s.unmount(imgfs)) }()
	for _, step := range tour {
		if err := s.show(ctx, strings.ReplaceAll(step, "REGISTRY", address)); err != nil {
			return err
		}
	}
	return nil
}

// serveRegistry starts an empty registry on a port of the loopback interface: 5000 if it is free.
func serveRegistry() (address string, closeRegistry func(), err error) {
	l, err := net.Listen("tcp", "127.0.0.1:5000")
	if err != nil {
		l, err = net.Listen("tcp", "127.0.0.1:0")
	}
	if err != nil {
		return "", nil, fmt.Errorf("starting a registry: %w", err)
	}
	server := &http.Server{
		Handler:           registry.New(registry.Logger(log.New(io.Discard, "", 0))),
		ReadHeaderTimeout: time.Minute,
	}
	go func() { _ = server.Serve(l) }() // returns when it is closed
	return l.Addr().String(), func() { _ = server.Close() }, nil
}

// A shell runs commands in one directory.
type shell struct {
	dir string
	env []string
	out io.Writer // gets the commands and what they print
}

// show prints a step and runs it. A step that begins with "# " is a heading; "PROGRAM? COMMAND" is run where PROGRAM is
// there, "fails: COMMAND" must fail.
func (s *shell) show(ctx context.Context, step string) error {
	if text, ok := strings.CutPrefix(step, "# "); ok {
		fmt.Fprintf(s.out, "\n# %s\n", text)
		return nil
	}
	if program, command, ok := strings.Cut(step, "? "); ok && !strings.Contains(program, " ") {
		if !there(program) {
			return nil
		}
		step = command
	}
	step, fails := strings.CutPrefix(step, "fails: ")
	fmt.Fprintf(s.out, "$ %s\n", step)
	cmd := s.command(ctx, step)
	err := cmd.Run()
	if ctx.Err() != nil {
		return fmt.Errorf("interrupted: %w", ctx.Err())
	}
	switch {
	case fails && err == nil:
		return fmt.Errorf("%s: succeeded, which was not expected", step)
	case !fails && err != nil:
		return fmt.Errorf("%s: %w", step, err)
	}
	return nil
}

// command is a line for bash, whose echo names the error of a write; any other shell does, too.
func (s *shell) command(ctx context.Context, line string) *exec.Cmd {
	name := "bash"
	if !there(name) {
		name = "sh"
	}
	cmd := exec.CommandContext(ctx, name, "-c", line)
	cmd.Args[0] = "bash"
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = s.dir, s.env, s.out, s.out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for the demo, which then ends the command
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

func there(program string) bool {
	_, err := exec.LookPath(program)
	return err == nil
}

// unmount takes the mount down if it is there.
func (s *shell) unmount(imgfs string) error {
	at := filepath.Join(s.dir, mountpoint)
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || !strings.Contains(string(mounts), " "+at+" ") {
		return err
	}
	cmd := exec.Command(imgfs, "umount", "--lazy", at)
	cmd.Env, cmd.Stderr = s.env, os.Stderr
	return cmd.Run()
}
