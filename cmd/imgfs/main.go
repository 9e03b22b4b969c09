package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"
	"go.podman.io/storage/pkg/reexec"
	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/mount"
)

func main() {
	// The containers libraries start this program again under names of their own, to do work in a changed root.
	if reexec.Init() {
		return
	}
	completeEnviron()
	os.Exit(run(os.Args, os.Stdout, os.Stderr))
}

// app is what all subcommands share.
type app struct {
	stdout io.Writer
	parent *mount.Parent // whom this process tells that the mount is ready; nil unless it is the one in the background
	ran    bool          // whether a subcommand began to run: errors before are in how it was called
}

// run runs one command line and returns the exit code. An error is one line, on stderr or, from the process in the
// background, through its parent.
func run(args []string, stdout, stderr io.Writer) (code int) {
	a := &app{stdout: stdout, parent: mount.FindParent()}
	fail := func(text string, code int) int {
		text = oneLine(text)
		if a.parent != nil {
			a.parent.Failed(text, code)
		} else {
			fmt.Fprintf(stderr, "imgfs: %s\n", text)
		}
		return code
	}
	defer func() {
		if reason := recover(); reason != nil {
			code = fail(fmt.Sprintf("internal error: %v (at %s)", reason, panicSite(debug.Stack())), exitFailed)
		}
	}()
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()

	var cmd *cobra.Command
	if filepath.Base(args[0]) == "mount.imgfs" {
		cmd = newMountHelperCommand(a)
	} else {
		cmd = newRootCommand(a)
	}
	cmd.SetArgs(args[1:])
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	called, err := cmd.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	if !a.ran {
		err = &usageError{err: err, command: called.CommandPath()}
	}
	return fail(err.Error(), exitCode(err))
}

// oneLine makes one line of an error that has several, as those of errors.Join have, and cobra's that ask what was meant.
func oneLine(text string) string {
	var line strings.Builder
	for part := range strings.FieldsFuncSeq(text, func(r rune) bool { return r == '\n' || r == '\r' }) {
		switch before := line.String(); {
		case strings.HasSuffix(before, "?"):
			line.WriteString(" ")
		case before != "":
			line.WriteString("; ")
		}
		line.WriteString(strings.Trim(part, " \t"))
	}
	return line.String()
}

// panicSite returns the place in a stack (as debug.Stack prints it) where the panic began.
func panicSite(stack []byte) string {
	_, after, found := strings.Cut(string(stack), "\npanic(")
	if !found {
		return "unknown place"
	}
	lines := strings.Split(after, "\n")
	if len(lines) < 4 {
		return "unknown place"
	}
	return strings.TrimSpace(lines[3])
}

// usageError is a mistake in how the command was called.
type usageError struct {
	err     error
	command string // "imgfs mount"; where to look for help, if not empty
}

func (e *usageError) Error() string {
	if e.command == "" {
		return e.err.Error()
	}
	return fmt.Sprintf("%s; see `%s --help`", oneLine(e.err.Error()), e.command)
}

func (e *usageError) Unwrap() error { return e.err }

// usage returns a usageError for a command that runs already.
func usage(cmd *cobra.Command, err error) error {
	return &usageError{err: err, command: cmd.CommandPath()}
}

// isChild says whether err is one that the process in the background has already worded.
func isChild(err error) bool {
	var child *mount.ChildError
	return errors.As(err, &child)
}
