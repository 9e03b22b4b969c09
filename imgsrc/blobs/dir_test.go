package blobs

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// A directory that is made anew is the one that is meant: that is how layouts are rebuilt.
func TestOSDirReplaced(t *testing.T) {
	at := filepath.Join(t.TempDir(), "layout")
	fill := func(text string) {
		t.Helper()
		if err := errors.Join(os.Mkdir(at, 0o755), os.WriteFile(filepath.Join(at, "a"), []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	fill("was")
	root, err := os.OpenRoot(at)
	if err != nil {
		t.Fatal(err)
	}
	d := NewOSDir(root)
	defer d.Close()
	f, err := d.Open("a")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := os.Rename(at, at+".old"); err != nil {
		t.Fatal(err)
	}
	if got, _, err := ReadFile(d, "a", 100); err != nil || string(got) != "was" {
		t.Errorf("moved away: %q, %v", got, err)
	}
	if err := os.WriteFile(at, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if got, _, err := ReadFile(d, "a", 100); err != nil || string(got) != "was" {
		t.Errorf("a file in its place: %q, %v", got, err)
	}
	if err := os.Remove(at); err != nil {
		t.Fatal(err)
	}
	fill("is now")
	if got, _, err := ReadFile(d, "a", 100); err != nil || string(got) != "is now" {
		t.Errorf("made anew: %q, %v", got, err)
	}
	p := make([]byte, 3)
	if _, err := f.ReadAt(p, 0); err != nil || string(p) != "was" {
		t.Errorf("what was open: %q, %v", p, err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(at); err != nil {
		t.Fatal(err)
	}
	fill("after the end")
	if _, err := d.Stat("a"); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}
