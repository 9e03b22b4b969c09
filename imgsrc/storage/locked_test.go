package storage

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.podman.io/image/v5/types"
	"go.podman.io/storage/pkg/reexec"
	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
)

const lockHolder = "imgfs-test-hold-lock"

func init() { reexec.Register(lockHolder, holdLock) }

// holdLock is another program that has a lock of a store, until its input ends.
func holdLock() {
	f, err := os.OpenFile(os.Args[1], os.O_RDWR, 0)
	if err == nil {
		err = unix.FcntlFlock(f.Fd(), unix.F_SETLKW, &unix.Flock_t{Type: unix.F_WRLCK})
	}
	fmt.Println("locked", err)
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// lockFile has another process lock a file, until unlock is called.
func lockFile(t *testing.T, path string) (unlock func()) {
	t.Helper()
	cmd := reexec.Command(lockHolder, path)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := false
	unlock = func() {
		if !ended {
			ended = true
			in.Close()
			_ = cmd.Wait()
		}
	}
	t.Cleanup(unlock)
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "locked <nil>\n" {
		t.Fatal(line, err)
	}
	return unlock
}

// Who receives an image while another program has the store locked says so, can leave, and gives up in the end. Nothing comes of
// it when the lock is free.
func TestReceiveWhileLocked(t *testing.T) {
	r := newReal(t, "vfs")
	s, err := OpenToReceive(t.Context(), r.options())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	dir := sample(t)
	if err := s.Receive(t.Context(), "localhost/base:1", "", copyFrom(t.Context(), t, dir, "localhost/base:1", nil)); err != nil {
		t.Fatal(err)
	}
	for _, lock := range []string{"storage.lock", "vfs-images/images.lock", "vfs-layers/layers.lock"} {
		t.Run(filepath.Base(lock), func(t *testing.T) {
			for name, test := range map[string]struct {
				before bool // the lock is taken before the store is opened, and not in the middle of the copy
				leaves bool
			}{"leaves": {true, true}, "leaves the copy": {false, true}, "gives up": {true, false}, "gives up the copy": {false, false}} {
				if lock == "storage.lock" && !test.before {
					continue // it is for those who open the store
				}
				t.Run(name, func(t *testing.T) {
					s.lockedTime = time.Minute
					if !test.leaves {
						s.lockedTime = 3 * lockedLook
					}
					unlock := func() {}
					take := func() { unlock = lockFile(t, filepath.Join(r.root, lock)) }
					if test.before {
						take()
					}
					ctx, leave := context.WithCancelCause(t.Context())
					left := errors.New("left")
					var said []string
					ctx = imgsrc.WithWaiting(ctx, func(why string) {
						said = append(said, why)
						if why != "" && test.leaves {
							leave(left)
						}
					})
					err := s.Receive(ctx, "localhost/late:1", "", func(to types.ImageReference) error {
						if !test.before {
							take()
						}
						return copyFrom(ctx, t, dir, "localhost/app:1.0", nil)(to)
					})
					switch {
					case test.leaves && !errors.Is(err, left):
						t.Error(err)
					case !test.leaves && (!errors.Is(err, imgsrc.ErrLocked) || !errors.Is(err, syscall.ETIMEDOUT)):
						t.Error(err)
					}
					if len(said) != 2 || !strings.Contains(said[0], "the store is locked by ") || !strings.Contains(said[0], "(process ") || said[1] != "" {
						t.Errorf("it said %q", said)
					}
					unlock()
					for receiving := true; receiving; time.Sleep(10 * time.Millisecond) { // what was left behind
						s.strays.turn <- struct{}{}
						receiving = s.strays.receiving > 0
						<-s.strays.turn
					}
					if err := s.Receive(t.Context(), "localhost/base:2", "", copyFrom(t.Context(), t, dir, "localhost/base:1", nil)); err != nil {
						t.Error(err)
					}
					l, err := s.List(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					for _, img := range l.Images {
						for _, name := range img.Names {
							if name == "localhost/late:1" {
								t.Error("an image came of it")
							}
						}
					}
				})
			}
		})
	}
}

func TestBlocker(t *testing.T) {
	const text = `1: POSIX  ADVISORY  WRITE 100 00:23:77 0 EOF
1: -> POSIX  ADVISORY  READ 200 00:23:77 0 EOF
2: FLOCK  ADVISORY  WRITE 101 00:23:78 0 EOF
2: -> FLOCK  ADVISORY  WRITE 201 00:23:78 0 EOF
3: POSIX  ADVISORY  WRITE 102 fe:00:79 0 EOF
3: -> POSIX  ADVISORY  WRITE 202 fe:00:79 0 EOF
3:  -> POSIX  ADVISORY  WRITE 203 fe:00:79 0 EOF
x
`
	all := map[string]bool{"77": true, "78": true, "79": true}
	for pid, want := range map[string]string{"200": "100", "201": "", "202": "102", "203": "102", "100": ""} {
		if got := blocker(text, []string{"1", pid}, all); got != want {
			t.Errorf("%s waits for %q, want %q", pid, got, want)
		}
	}
	if got := blocker(text, []string{"200"}, map[string]bool{"79": true}); got != "" {
		t.Errorf("on another file it waits for %q", got)
	}
}
