package cachefile

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func testDir(t *testing.T) *os.Root {
	t.Helper()
	dir, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dir.Close() })
	return dir
}

func lock(t *testing.T, dir *os.Root, name string) *os.File {
	t.Helper()
	f, err := Lock(t.Context(), dir, name, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// TestLockWaits has a file ended by who holds its lock, in each way that there is, while another waits for it.
func TestLockWaits(t *testing.T) {
	ends := map[string]func(dir *os.Root, f *os.File) error{
		"renamed": func(dir *os.Root, _ *os.File) error { return dir.Rename("part/x", "whole") },
		"removed": func(dir *os.Root, f *os.File) error { Remove(dir, "part/x", f, slog.Default()); return nil },
		"replaced": func(dir *os.Root, _ *os.File) error {
			return errors.Join(dir.Remove("part/x"), dir.WriteFile("part/x", nil, 0o600))
		},
		"killed": func(_ *os.Root, f *os.File) error { return f.Close() },
	}
	for how, end := range ends {
		t.Run(how, func(t *testing.T) {
			dir := testDir(t)
			first := lock(t, dir, "part/x")
			if _, err := TryLock(dir, "part/x", os.O_RDWR); !errors.Is(err, ErrBusy) {
				t.Fatalf("a locked file: %v", err)
			}
			got := make(chan error)
			var second *os.File
			go func() {
				var err error
				second, err = Lock(t.Context(), dir, "part/x", time.Minute)
				got <- err
			}()
			select {
			case err := <-got:
				t.Fatalf("did not wait: %v", err)
			case <-time.After(3 * pollTime):
			}
			if err := end(dir, first); err != nil {
				t.Fatal(err)
			}
			if err := <-got; err != nil {
				t.Fatal(err)
			}
			defer second.Close()
			if !Is(dir, "part/x", second) {
				t.Error("the lock is on a file that its name does not name")
			}
		})
	}
}

// TestLockEnds checks what a waiting process does about one that is stuck, and about its own end.
func TestLockEnds(t *testing.T) {
	dir := testDir(t)
	lock(t, dir, "part/x")
	if _, err := Lock(t.Context(), dir, "part/x", 2*pollTime); !errors.Is(err, ErrBusy) {
		t.Errorf("beside a stuck process: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Lock(ctx, dir, "part/x", time.Minute); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestRemoveOther checks that a file that somebody else has put there stays.
func TestRemoveOther(t *testing.T) {
	dir := testDir(t)
	f := lock(t, dir, "part/x")
	if err := errors.Join(dir.Remove("part/x"), dir.WriteFile("part/x", []byte("other"), 0o600)); err != nil {
		t.Fatal(err)
	}
	Remove(dir, "part/x", f, slog.Default())
	if b, err := dir.ReadFile("part/x"); err != nil || string(b) != "other" {
		t.Errorf("%q, %v", b, err)
	}
}

func TestRoom(t *testing.T) {
	f, err := Unnamed("imgfs-cachefile-")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := os.Stat(f.Name()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it has a name: %v", err)
	}
	if n, err := Room(f, 1); err != nil || n < 1 || n > 64<<20 {
		t.Errorf("%d, %v", n, err)
	}
	if _, err := Room(f, 1<<62); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("more than there is: %v", err)
	}
}

func TestIdentify(t *testing.T) {
	dir := testDir(t)
	f := lock(t, dir, "part/x")
	identify := func() Identity {
		t.Helper()
		id, err := Identify(f)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	was := identify()
	if identify() != was {
		t.Error("it changes by itself")
	}
	if _, err := f.WriteString("abc"); err != nil {
		t.Fatal(err)
	}
	if now := identify(); now == was || now.Size != 3 {
		t.Errorf("after writing: %+v", now)
	}
}
