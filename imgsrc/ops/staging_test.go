package ops

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// stagingVar makes this test binary stage in the directory that it names, and stay there until it is killed.
const stagingVar = "IMGFS_TEST_STAGING"

func stageAndStay(dir string) {
	own, _, err := stageIn(dir, slog.New(slog.DiscardHandler))
	if err == nil {
		err = os.WriteFile(filepath.Join(own, "blob"), []byte("half"), 0o600)
	}
	if err == nil {
		err = os.Rename(own, own+".ready")
	}
	if err != nil {
		panic(err)
	}
	time.Sleep(time.Hour)
}

// What a push leaves whose process was killed goes with the next push to the same place, and only that: not what is of a
// push that goes on, or of somebody else.
func TestStagingOfTheDead(t *testing.T) {
	dir := t.TempDir()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), stagingVar+"="+dir)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	var left string
	for deadline := time.Now().Add(30 * time.Second); left == ""; {
		if found, _ := filepath.Glob(filepath.Join(dir, stagingPrefix+"*.ready")); len(found) > 0 {
			left = found[0]
		} else if time.Now().After(deadline) {
			t.Fatal("the other process does not stage")
		} else {
			time.Sleep(5 * time.Millisecond)
		}
	}
	target := filepath.Join(t.TempDir(), "theirs")
	link, file := filepath.Join(dir, stagingPrefix+"link"), filepath.Join(dir, stagingPrefix+"file")
	err = errors.Join(os.Mkdir(target, 0o700), os.Symlink(target, link), os.WriteFile(file, nil, 0o600), os.Mkdir(filepath.Join(dir, "images"), 0o700))
	if err != nil {
		t.Fatal(err)
	}
	kept := []string{target, link, file, filepath.Join(dir, "images")}
	if os.Geteuid() == 0 {
		others := filepath.Join(dir, stagingPrefix+"others")
		if err := errors.Join(os.Mkdir(others, 0o700), os.Chown(others, 65534, 65534)); err != nil {
			t.Fatal(err)
		}
		kept = append(kept, others)
	}
	push := func() {
		t.Helper()
		own, discard, err := stageIn(dir, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		if err := removeIfDead(own); !errors.Is(err, unix.EWOULDBLOCK) {
			t.Errorf("removing the directory of a push that goes on: %v", err)
		}
		discard()
		if _, err := os.Lstat(own); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("after the push: %v", err)
		}
		for _, path := range kept {
			if _, err := os.Lstat(path); err != nil {
				t.Error(err)
			}
		}
	}
	push()
	if _, err := os.Lstat(filepath.Join(left, "blob")); err != nil {
		t.Errorf("what a living process writes was taken away: %v", err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	push()
	if _, err := os.Lstat(left); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what a dead process has left is there: %v", err)
	}
}

// Of many pushes that begin at once none takes another's directory for a dead one.
func TestStagingAtOnce(t *testing.T) {
	dir := t.TempDir()
	failed := make(chan error, 16)
	for range cap(failed) {
		go func() {
			var err error
			for range 50 {
				own, discard, serr := stageIn(dir, slog.New(slog.DiscardHandler))
				err = errors.Join(err, serr)
				if serr == nil {
					err = errors.Join(err, os.WriteFile(filepath.Join(own, "blob"), nil, 0o600))
				}
				discard()
			}
			failed <- err
		}()
	}
	for range cap(failed) {
		if err := <-failed; err != nil {
			t.Error(err)
		}
	}
	noStaging(t, dir)
}
