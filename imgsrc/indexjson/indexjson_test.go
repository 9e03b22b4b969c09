package indexjson

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
)

// open returns a directory, with an index.json of this text if it is not empty.
func open(t *testing.T, text string) (*os.Root, string) {
	t.Helper()
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		root.Close()
		entries, err := os.ReadDir(dir)
		for _, e := range entries {
			if e.Name() != "index.json" {
				t.Errorf("left: %s", e.Name())
			}
		}
		if err != nil {
			t.Error(err)
		}
	})
	file := filepath.Join(dir, "index.json")
	if text != "" {
		write(t, file, text)
	}
	return root, file
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func want(t *testing.T, file, text string) {
	t.Helper()
	got, err := os.ReadFile(file)
	if err != nil || string(got) != text {
		t.Errorf("index.json is %q, %v; want %q", got, err, text)
	}
}

// appending returns a next that appends to what is there.
func appending(t *testing.T, root *os.Root, more string) func() (was, text []byte, err error) {
	return func() (was, text []byte, err error) {
		was, err = Read(t.Context(), root)
		return was, append(append([]byte(nil), was...), more...), err
	}
}

func TestUpdate(t *testing.T) {
	root, file := open(t, "")
	if err := Update(t.Context(), root, appending(t, root, "1"), nil); err != nil {
		t.Fatal(err)
	}
	want(t, file, "1")
	write(t, filepath.Join(root.Name(), Temp), "left by a process that was killed")
	if err := os.Chmod(file, 0o606); err != nil {
		t.Fatal(err)
	}
	ready := func() error { want(t, file, "1"); return nil }
	if err := Update(t.Context(), root, appending(t, root, "2"), ready); err != nil {
		t.Fatal(err)
	}
	want(t, file, "12")
	if info, err := os.Stat(file); err != nil || info.Mode() != 0o606 {
		t.Errorf("the mode is %v, %v", info.Mode(), err)
	}
}

// What another tool writes between reading and renaming is not lost.
func TestUpdateWhileWritten(t *testing.T) {
	for before, theirs := range map[string]string{"1": "2", "": "3"} { // also the first index there is
		root, file := open(t, before)
		calls := 0
		err := Update(t.Context(), root, appending(t, root, "9"), func() error {
			calls++
			write(t, file, theirs)
			return nil
		})
		if err != nil || calls != 1 {
			t.Errorf("%q: %d calls, error %v", before, calls, err)
		}
		want(t, file, theirs+"9")
	}
}

// What another tool writes between the last look at the file and the rename is put back.
func TestExchange(t *testing.T) {
	for is, replaced := range map[string]bool{"as it was": true, "another tool's": false} {
		root, file := open(t, is)
		write(t, filepath.Join(root.Name(), Temp), "ours")
		got, err := exchange(root, []byte("as it was"), []byte("ours"))
		if got != replaced || err != nil {
			t.Errorf("%s: %v, %v", is, got, err)
		}
		if !replaced {
			want(t, file, is)
			want(t, filepath.Join(root.Name(), Temp), "ours")
			if err := removeTemp(root); err != nil {
				t.Error(err)
			}
			continue
		}
		want(t, file, "ours")
	}
}

func TestUpdateFails(t *testing.T) {
	broken := errors.New("broken")
	root, file := open(t, "1")
	for name, test := range map[string]struct {
		next  func() (was, text []byte, err error)
		ready func() error
		want  error
	}{
		"nothing to change": {next: func() (was, text []byte, err error) { return []byte("1"), nil, nil }},
		"no text":           {next: func() (was, text []byte, err error) { return nil, []byte("2"), broken }, want: broken},
		"not ready":         {next: appending(t, root, "2"), ready: func() error { return broken }, want: broken},
		"too long": {next: func() (was, text []byte, err error) { return []byte("1"), make([]byte, Max+1), nil },
			want: imgsrc.ErrInvalid},
		"always another one": {next: func() (was, text []byte, err error) { return []byte("0"), []byte("2"), nil }, want: unix.EBUSY},
	} {
		if err := Update(t.Context(), root, test.next, test.ready); !errors.Is(err, test.want) {
			t.Errorf("%s: error %v", name, err)
		}
		want(t, file, "1")
	}
	// While another one has the lock.
	dir, err := lock(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := Update(ctx, root, appending(t, root, "2"), nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("locked: error %v", err)
	}
	want(t, file, "1")
}

func TestRead(t *testing.T) {
	root, file := open(t, "")
	if text, err := Read(t.Context(), root); text != nil || err != nil {
		t.Errorf("nothing: %q, %v", text, err)
	}
	write(t, file, `{"manifests":`)
	soon := time.Now().Add(time.Minute) // however long it is until the other goes on, it is young
	if err := os.Chtimes(file, soon, soon); err != nil {
		t.Fatal(err)
	}
	go func() {
		time.Sleep(100 * time.Millisecond)
		_ = os.WriteFile(file, []byte(`{"manifests":[]}`), 0o644) // the test sees it if it fails
	}()
	if text, err := Read(t.Context(), root); string(text) != `{"manifests":[]}` || err != nil {
		t.Errorf("cut short for a moment: %q, %v", text, err)
	}
	old := time.Now().Add(-time.Hour)
	write(t, file, `{"manifests":`)
	if err := os.Chtimes(file, old, old); err != nil {
		t.Fatal(err)
	}
	if text, err := Read(t.Context(), root); string(text) != `{"manifests":` || err != nil {
		t.Errorf("cut short: %q, %v", text, err)
	}
	if err := os.Truncate(file, Max+1); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(t.Context(), root); !errors.Is(err, imgsrc.ErrDamaged) {
		t.Errorf("too long: %v", err)
	}
	if err := errors.Join(os.Remove(file), unix.Mkfifo(file, 0o644)); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(t.Context(), root); !errors.Is(err, imgsrc.ErrDamaged) {
		t.Errorf("a pipe: %v", err)
	}
}
