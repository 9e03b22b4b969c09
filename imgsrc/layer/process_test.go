package layer

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"
)

// cacheProcess is what the test binary does when it is started as another user of the cache in dir: it reads the layer
// in the file IMGFS_TEST_BLOB and prints how often it opened it and the digest of what it read. With IMGFS_TEST_STUCK
// it prints "started" when its pass has begun, and never ends it.
func cacheProcess(dir string) int {
	path := os.Getenv("IMGFS_TEST_BLOB")
	blob, err := os.ReadFile(path)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	c, err := OpenCache(dir, 0, slog.New(slog.DiscardHandler))
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer c.Close()
	var opened atomic.Int32
	d := c.Diff(digest.FromBytes(blob), "", func(context.Context) (io.ReadCloser, error) {
		opened.Add(1)
		if os.Getenv("IMGFS_TEST_STUCK") != "" {
			fmt.Println("started")
			io.Copy(io.Discard, os.Stdin) // until the test ends, whichever way
			os.Exit(1)
		}
		return os.Open(path)
	})
	b, err := readAll(context.Background(), d)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println(opened.Load(), digest.FromBytes(b))
	return 0
}

func process(t *testing.T, dir, blob string, env ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), append(env, "IMGFS_TEST_CACHE="+dir, "IMGFS_TEST_BLOB="+blob)...)
	cmd.Stderr = os.Stderr
	return cmd
}

// Processes that want one layer at the same moment decompress it once.
func TestProcesses(t *testing.T) {
	plain := payload(8<<20 + 7)
	dir, path := t.TempDir(), filepath.Join(t.TempDir(), "blob")
	if err := os.WriteFile(path, gzipped(t, plain), 0o600); err != nil {
		t.Fatal(err)
	}
	const n = 4
	var cmds []*exec.Cmd
	var outs [n]strings.Builder
	for i := range n {
		cmd := process(t, dir, path)
		cmd.Stdout = &outs[i]
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		cmds = append(cmds, cmd)
	}
	total := 0
	for i, cmd := range cmds {
		if err := cmd.Wait(); err != nil {
			t.Errorf("%v: %s", err, outs[i].String())
			continue
		}
		var opened int
		var got string
		if _, err := fmt.Sscan(outs[i].String(), &opened, &got); err != nil || got != digest.FromBytes(plain).String() {
			t.Errorf("process %d: %q", i, outs[i].String())
		}
		total += opened
	}
	if total != 1 {
		t.Errorf("%d passes, want one", total)
	}
}

// Who waits for a process that is killed does the work himself, and nothing is left of it.
func TestKilledProcess(t *testing.T) {
	plain := payload(1<<20 + 7)
	blob := gzipped(t, plain)
	dir, path := t.TempDir(), filepath.Join(t.TempDir(), "blob")
	if err := os.WriteFile(path, blob, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := process(t, dir, path, "IMGFS_TEST_STUCK=1")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "started\n" {
		t.Fatalf("%q, %v", line, err)
	}
	c := testCache(t, dir, 0)
	if n := len(files(t, dir, partDir)); n != 1 {
		t.Errorf("%d part files while the process lives, want one", n)
	}
	b := &testBlob{bytes: blob}
	ctx, cancel := context.WithCancel(t.Context())
	d := c.Diff(b.digest(), "", b.open)
	left := make(chan error)
	go func() {
		_, err := d.Size(ctx)
		left <- err
	}()
	cancel() // also while waiting for a process
	if err := <-left; err != context.Canceled {
		t.Errorf("%v, want context.Canceled", err)
	}
	if b.opened.Load() != 0 {
		t.Error("the pass began while the other process had the lock")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	wantContent(t, d, plain)
	if left := files(t, dir, partDir); left != nil {
		t.Errorf("left: %v", left)
	}
}
