// Package needs has the tests ask their machine for what they cannot do without: programs, root, /dev/fuse. A test whose
// wish is not met skips, and fails where the environment variable CI is "true".
package needs

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// Unmet ends a test that cannot run here.
func Unmet(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal("this test needs " + why)
	}
	t.Skip("needs " + why)
}

// Programs ends a test unless all programs are installed.
func Programs(t testing.TB, programs ...string) {
	t.Helper()
	for _, program := range programs {
		if _, err := exec.LookPath(program); err != nil {
			Unmet(t, program)
		}
	}
}

// Root ends a test unless it runs as root.
func Root(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		Unmet(t, "root")
	}
}

// FUSE ends a test unless it may mount without a helper.
func FUSE(t testing.TB) {
	t.Helper()
	Root(t)
	if _, err := os.Stat("/dev/fuse"); err != nil {
		Unmet(t, "/dev/fuse")
	}
}

// Run runs a program, and returns what it wrote to its standard output, to the byte.
func Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, &stderr)
	}
	return string(out)
}

// Line runs a program, and returns what it wrote to its standard output without the white space around it.
func Line(t testing.TB, name string, args ...string) string {
	t.Helper()
	return strings.TrimSpace(Run(t, name, args...))
}
