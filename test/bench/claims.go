package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// claims checks, one by one, the answers to the kernel that imgfs's tree is built upon.
func (b *bencher) claims() error {
	copied := filepath.Join(b.dir, "claims-copy")
	if err := b.with("", func(s *server) error {
		return errors.Join(os.Mkdir(copied, 0o755), b.sh("cp -r %s/d* %s/", s.at, copied)())
	}); err != nil {
		return err
	}
	fmt.Printf("\nclaims, %d files of %d bytes in %d directories, read again and again: least / median of %d runs\n\n", dirs*files, fileSize, dirs, b.runs)
	fmt.Print("| | answered | time | requests a run | ratio of medians |\n|---|---|---|---|---|\n")
	for _, claim := range []struct {
		what, line string
		ways       [][2]string // how to answer, and what that is called; the first is what imgfs does
	}{
		{"cat of all files", "cat %s/d*/*", [][2]string{{"", "OPEN: ENOSYS"}, {wayOpen, "OPEN: a handle"}}},
		{"grep -r", "grep -r nosuchtext %s; true", [][2]string{{"", "OPEN, OPENDIR: ENOSYS"}, {wayOpen + "," + wayOpenDir + "," + wayCacheDir, "both: a handle"}}},
		{"find", "find %s/d*", [][2]string{
			{"", "OPENDIR: ENOSYS"}, {wayOpenDir + "," + wayCacheDir, "OPENDIR: a handle, cached"}, {wayOpenDir, "OPENDIR: a handle"},
		}},
		{"ls -lR", "ls -lR %s/d*", [][2]string{{"", "GETXATTR: EOPNOTSUPP"}, {wayNoData, "GETXATTR: ENODATA"}}},
	} {
		var reference time.Duration
		for _, way := range claim.ways {
			if err := b.with(way[0], func(s *server) error {
				return b.claim(claim.what, way[1], claim.line, s, &reference)
			}); err != nil {
				return err
			}
		}
		if err := b.claim(claim.what, "the file system below", claim.line, &server{at: copied}, &reference); err != nil {
			return err
		}
	}
	return b.liveClaims()
}

// claim prints one row: a command over a tree that has been read before.
func (b *bencher) claim(what, how, line string, s *server, reference *time.Duration) error {
	run := b.sh(line+" >/dev/null", s.at)
	if err := run(); err != nil { // now all is cached that can be
		return err
	}
	if _, err := s.order("count"); err != nil {
		return err
	}
	var times []time.Duration
	for range b.runs {
		began := time.Now()
		if err := run(); err != nil {
			return err
		}
		times = append(times, time.Since(began))
	}
	count, err := s.order("count")
	if err != nil {
		return err
	}
	requests := ""
	if count != "" {
		var n int
		if _, err := fmt.Sscan(count, &n); err != nil {
			return fmt.Errorf("the server answers %q: %w", count, err)
		}
		requests = fmt.Sprint(n / b.runs)
	}
	t := summary(times)
	if *reference == 0 {
		*reference = t.median
	}
	fmt.Printf("| %s | %s | %s | %s | %.2f |\n", what, how, t, requests, ratio(t.median, *reference))
	return nil
}

// liveClaims counts how often another process sees an old state of what has just changed.
func (b *bencher) liveClaims() error {
	const changes = 100
	fmt.Printf("\nclaims, what changes, with OPEN and OPENDIR answered with ENOSYS and attribute timeout 0: %d changes, each looked at once\n\n", changes)
	fmt.Print("| | mtime | stale |\n|---|---|---|\n")
	for _, way := range [][2]string{{"", "moves"}, {wayStill, "does not move"}} {
		if err := b.with(way[0], func(s *server) error {
			var added, removed, text int
			for i := range changes {
				name := fmt.Sprintf("n%03d", i)
				if err := s.stale("add "+name, "ls", filepath.Join(s.at, "live"), func(out string) bool { return strings.Contains(out, name) }, &added); err != nil {
					return err
				}
			}
			for i := range changes {
				name := fmt.Sprintf("n%03d", i)
				if err := s.stale("remove "+name, "ls", filepath.Join(s.at, "live"), func(out string) bool { return !strings.Contains(out, name) }, &removed); err != nil {
					return err
				}
			}
			for i := range changes {
				now := fmt.Sprintf("text %03d", i) // always of one size
				if err := s.stale("text "+now, "cat", filepath.Join(s.at, "text"), func(out string) bool { return out == now }, &text); err != nil {
					return err
				}
			}
			fmt.Printf("| ls of a directory, an entry added | %s | %d |\n| ls of a directory, an entry removed | %s | %d |\n| cat of a file, other bytes of the same size | %s | %d |\n",
				way[1], added, way[1], removed, way[1], text)
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}

// A server is this program, serving the claims' file system in another process.
type server struct {
	at     string
	in     io.WriteCloser // nil: nothing is served, at is a plain directory
	answer *bufio.Scanner
}

// with serves in the given way for as long as f runs.
func (b *bencher) with(way string, f func(*server) error) (err error) {
	s := &server{at: filepath.Join(b.dir, "claims")}
	if err := os.MkdirAll(s.at, 0o755); err != nil {
		return err
	}
	cmd := exec.Command("/proc/self/exe", "-serve", "enosys,"+way, s.at)
	cmd.Stderr = os.Stderr
	if s.in, err = cmd.StdinPipe(); err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	defer func() {
		_ = s.in.Close() // it unmounts and ends
		if waited := cmd.Wait(); waited != nil {
			_ = unix.Unmount(s.at, unix.MNT_DETACH)
			err = errors.Join(err, fmt.Errorf("serving %q: %w", way, waited))
		}
	}()
	s.answer = bufio.NewScanner(out)
	if !s.answer.Scan() {
		return errors.New("the claims' file system did not come up")
	}
	return f(s)
}

func (s *server) order(line string) (string, error) {
	if s.in == nil {
		return "", nil
	}
	if _, err := fmt.Fprintln(s.in, line); err != nil {
		return "", err
	}
	if !s.answer.Scan() {
		return "", errors.New("the claims' file system has gone")
	}
	return s.answer.Text(), nil
}

// stale gives an order, looks with program at path, and counts in n if what it prints is not right.
func (s *server) stale(order, program, path string, right func(string) bool, n *int) error {
	if _, err := s.order(order); err != nil {
		return err
	}
	out, err := exec.Command(program, path).Output()
	if err != nil {
		return fmt.Errorf("%s %s: %w", program, path, err)
	}
	if !right(string(out)) {
		*n++
	}
	return nil
}
