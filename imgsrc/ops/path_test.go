package ops

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/imgfs/imgfs/imgsrc"
)

func TestFollow(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	mount := filepath.Join(dir, "mount")
	inside := func(path string) bool { return path == mount || strings.HasPrefix(path, mount+"/") }
	for _, link := range [][2]string{
		{"/", "root"}, {"mount", "into"}, {mount + "/x", "deep"}, {"a", "loop"}, {"loop", "a"}, {"real/../into", "zigzag"}, {"real", "good"},
	} {
		if err := os.Symlink(link[0], filepath.Join(dir, link[1])); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "real"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		path string
		want string // empty: inside; "!": a loop
	}{
		{"x", "x"}, {"good/x", "real/x"}, {"none/x", "none/x"}, {"root" + dir + "/real", "real"}, {"mounted", "mounted"},
		{"mount", ""}, {"mount/x/y", ""}, {"into", ""}, {"into/x", ""}, {"deep/y", ""}, {"zigzag/z", ""}, {"root" + mount, ""}, {"./real/../mount", ""},
		{"loop", "!"}, {"loop/x", "!"},
	} {
		got, err := follow(filepath.Join(dir, test.path), inside)
		switch {
		case (test.want == "" || test.want == "!") && !errors.Is(err, imgsrc.ErrInvalid):
			t.Errorf("%s: %s, %v", test.path, got, err)
		case test.want == "" && !strings.Contains(err.Error(), "lies in this mount"), test.want == "!" && !strings.Contains(err.Error(), "too many levels"):
			t.Errorf("%s: %s, %v", test.path, got, err)
		case test.want != "" && test.want != "!" && (err != nil || got != filepath.Join(dir, test.want)):
			t.Errorf("%s: %s, %v", test.path, got, err)
		}
	}
	// And through the front door, for everything that has a path in it.
	img := smallImage(t)
	o, _ := newOps(t, Options{PathInside: inside}, img)
	for _, words := range [][]string{
		{"oci:" + mount + "/x"}, {"oci-archive:" + dir + "/into/x:y"}, {"docker-archive:" + mount + "/x"}, {"dir:" + mount},
		{"containers-storage:[overlay@" + mount + "/g+/r]x"}, {"containers-storage:[overlay@/g+" + mount + "/r]x"},
		{"localhost:1/x", "authfile=" + mount + "/auth.json"},
	} {
		if err := o.Do(t.Context(), pushTo(img, words...)); !errors.Is(err, imgsrc.ErrInvalid) || !strings.Contains(err.Error(), "in this mount") {
			t.Errorf("%v: %v", words, err)
		}
	}
}

func TestRelativePaths(t *testing.T) {
	dir := t.TempDir()
	img := smallImage(t)
	o, _ := newOps(t, Options{}, img)
	writer := exec.Command("sleep", "1000")
	writer.Dir = dir
	if err := writer.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = writer.Process.Kill()
		_ = writer.Wait()
	})
	r := pushTo(img, "docker-archive:web.tar")
	r.PID = uint32(writer.Process.Pid)
	if err := o.Do(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "web.tar")); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(r *Request){
		"unseen":       func(r *Request) { r.PID = 0 },
		"another user": func(r *Request) { r.UID++ },
		"gone":         func(r *Request) { r.PID = 1 << 30 },
	} {
		r := r
		change(&r)
		r.Key = name
		if err := o.Do(t.Context(), r); !errors.Is(err, imgsrc.ErrInvalid) || !strings.Contains(err.Error(), "absolute path") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What would be read without an end is refused before anybody opens it.
func TestFilesThatAreNone(t *testing.T) {
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	img := smallImage(t)
	o, _ := newOps(t, Options{}, img)
	for _, path := range []string{pipe, "/dev/zero", dir} {
		for _, key := range []string{"authfile=", "sign-by=" + sigstorePrefix} {
			err := o.Do(t.Context(), pushTo(img, "localhost:1/x", key+path))
			if !errors.Is(err, imgsrc.ErrInvalid) || !strings.Contains(err.Error(), "is not a file") {
				t.Errorf("%s%s: %v", key, path, err)
			}
		}
	}
	if _, err := o.parsePulls([][]string{{"localhost:1/x", "authfile=" + pipe}}, o.resolver(Request{})); !errors.Is(err, imgsrc.ErrInvalid) {
		t.Errorf("pull: %v", err)
	}
}
