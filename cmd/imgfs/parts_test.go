package main

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"reflect"
	"runtime/debug"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/mount"
)

func TestParseSource(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	for _, name := range []string{"layout/oci-layout", "a:b/oci-layout", "vfs/vfs-images/x", "overlay/overlay-images/x", "both/oci-layout", "both/overlay-images/x", "file", "none/x", "skopeo/version", "skopeo/manifest.json"} {
		write(t, name, "")
	}
	tests := []struct {
		arg  string
		name string   // of the source; paths below the directory have a leading %
		dirs []string // the same
		err  error
	}{
		{arg: "layout", name: "oci:%/layout", dirs: []string{"%/layout"}},
		{arg: "./layout/", name: "oci:%/layout", dirs: []string{"%/layout"}},
		{arg: dir + "/layout", name: "oci:%/layout", dirs: []string{"%/layout"}},
		{arg: "oci:layout", name: "oci:%/layout", dirs: []string{"%/layout"}},
		{arg: "oci:layout:web", name: "oci:%/layout:web", dirs: []string{"%/layout"}},
		{arg: "oci:layout:host/web:1", name: "oci:%/layout:host/web:1", dirs: []string{"%/layout"}},
		{arg: "oci:a:b", name: "oci:%/a:b", dirs: []string{"%/a:b"}},
		{arg: "a:b", name: "oci:%/a:b", dirs: []string{"%/a:b"}},
		{arg: "oci:later", name: "oci:%/later", dirs: []string{"%/later"}},
		{arg: "vfs", name: "containers-storage:%/vfs", dirs: []string{"%/vfs"}},
		{arg: "overlay", name: "containers-storage:%/overlay", dirs: []string{"%/overlay"}},
		{arg: "both", name: "containers-storage:%/both", dirs: []string{"%/both"}},
		{arg: "containers-storage:", name: "containers-storage:"},
		{arg: "containers-storage:[]", name: "containers-storage:"},
		{arg: "containers-storage:/s", name: "containers-storage:/s", dirs: []string{"/s"}},
		{arg: "containers-storage:vfs@/s", name: "containers-storage:vfs@/s", dirs: []string{"/s"}},
		{arg: "containers-storage:[vfs@/s+/run/s]", name: "containers-storage:vfs@/s+/run/s", dirs: []string{"/s", "/run/s"}},
		{arg: "containers-storage:/a+b/c@d", name: "containers-storage:/a+b/c@d", dirs: []string{"/a+b/c@d"}},
		{arg: "containers-storage:alpine", err: imgsrc.ErrInvalid},
		{arg: "containers-storage:[/s", err: imgsrc.ErrInvalid},
		{arg: "containers-storage:[/s]alpine", err: imgsrc.ErrUnsupported},
		{arg: "oci:", err: imgsrc.ErrInvalid},
		{arg: "oci::web", err: imgsrc.ErrInvalid},
		{arg: "none", err: imgsrc.ErrNoSource},
		{arg: "missing", err: imgsrc.ErrNoSource},
		{arg: "", err: imgsrc.ErrInvalid},
		{arg: "file/below", err: unix.ENOTDIR},
		{arg: "file", name: "file", dirs: []string{"%/file"}},
		{arg: "oci-archive:file:web:1", name: "oci-archive:file:web:1", dirs: []string{"%/file"}},
		{arg: "docker-archive:file:@1", name: "docker-archive:file:@1", dirs: []string{"%/file"}},
		{arg: "docker-archive:later", name: "docker-archive:later", dirs: []string{"%/later"}},
		{arg: "oci-archive:", err: imgsrc.ErrInvalid},
		{arg: "dir:none", name: "dir:%/none", dirs: []string{"%/none"}},
		{arg: "skopeo", name: "dir:%/skopeo", dirs: []string{"%/skopeo"}},
		{arg: "dir:", err: imgsrc.ErrInvalid},
		{arg: "docker://example.org/a", name: "docker://example.org/a"},
		{arg: "docker://", err: imgsrc.ErrInvalid},
		{arg: "docker-daemon:", name: "docker-daemon:"},
		{arg: "ostree:x", err: imgsrc.ErrUnsupported},
		{arg: "nonsense:x", err: imgsrc.ErrNoSource},
		{arg: ":", err: imgsrc.ErrNoSource},
	}
	below := func(path string) string { return strings.ReplaceAll(path, "%", dir) }
	for _, test := range tests {
		specs, err := parseSources([]string{test.arg})
		if test.err != nil {
			code := exitSource
			if errors.Is(test.err, imgsrc.ErrInvalid) {
				code = exitUsage
			}
			if !errors.Is(err, test.err) || exitCode(err) != code || strings.Contains(err.Error(), "\n") {
				t.Errorf("%q: error %v with code %d, want %v", test.arg, err, exitCode(err), test.err)
			}
			continue
		}
		if err != nil || len(specs) != 1 {
			t.Errorf("%q: %d sources, error %v", test.arg, len(specs), err)
			continue
		}
		var dirs []string
		for _, d := range test.dirs {
			dirs = append(dirs, below(d))
		}
		if s := specs[0]; s.name != below(test.name) || !slices.Equal(s.dirs, dirs) {
			t.Errorf("%q: %s in %q", test.arg, s.name, s.dirs)
		}
	}
	if specs, err := parseSources(nil); err != nil || len(specs) != 1 || specs[0].name != "containers-storage:" {
		t.Errorf("no source: %v, error %v", specs, err)
	}
}

func FuzzParseSource(f *testing.F) {
	for _, arg := range []string{"oci:a:b", "containers-storage:[overlay@/a+/b]c", "docker://x", "::", "containers-storage:@+/", "\x00"} {
		f.Add(arg)
	}
	f.Fuzz(func(t *testing.T, arg string) {
		s, err := parseSource(arg)
		if (s == nil) == (err == nil) {
			t.Fatalf("%q: %v, error %v", arg, s, err)
		}
		if err != nil {
			return
		}
		for _, dir := range s.dirs {
			if !filepath.IsAbs(dir) {
				t.Errorf("%q: the directory %q", arg, dir)
			}
		}
	})
}

func TestPlatformOfOptions(t *testing.T) {
	for _, test := range []struct {
		flag  string
		words []string
		want  imgsrc.Platform
	}{
		{want: imgsrc.HostPlatform()},
		{words: []string{"ro"}, want: imgsrc.HostPlatform()},
		{words: []string{"ro,platform=linux/arm/v7", "noxattr"}, want: imgsrc.Platform{OS: "linux", Architecture: "arm", Variant: "v7"}},
		{words: []string{"platform=linux/arm64", "platform=linux/s390x"}, want: imgsrc.Platform{OS: "linux", Architecture: "s390x"}},
		{flag: "linux/arm64", want: imgsrc.Platform{OS: "linux", Architecture: "arm64"}},
		{flag: "linux/arm64", words: []string{"platform=linux/s390x"}, want: imgsrc.Platform{OS: "linux", Architecture: "arm64"}},
	} {
		o := &mountOptions{platformText: test.flag, words: test.words, log: logOptions{level: "warn"}}
		if err := o.parse(); err != nil || !reflect.DeepEqual(o.platform, test.want) {
			t.Errorf("--platform %q -o %q: %+v, error %v", test.flag, test.words, o.platform, err)
		}
	}
}

func TestByteSize(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "4096": 4096, "1k": 1 << 10, "512M": 512 << 20, "10G": 10 << 30, "10gib": 10 << 30, " 3 GB ": 3 << 30,
		"2T": 2 << 40, "7B": 7, "8388607T": 8388607 << 40,
	} {
		var s byteSize
		if err := s.Set(text); err != nil || int64(s) != want {
			t.Errorf("%q: %d, error %v", text, int64(s), err)
		}
		var again byteSize
		if err := again.Set(s.String()); err != nil || again != s {
			t.Errorf("%q is shown as %q", text, s.String())
		}
	}
	for _, text := range []string{"", "G", "-1", "1.5G", "10X", "8388608T", "99999999999999999999", "1GG", "iB"} {
		var s byteSize
		if err := s.Set(text); err == nil {
			t.Errorf("%q: %d", text, int64(s))
		}
	}
}

func TestExitCode(t *testing.T) {
	for _, test := range []struct {
		err  error
		code int
	}{
		{nil, 0},
		{errors.New("x"), 1},
		{mount.ErrBusy, 1},
		{mount.ErrServing, 1},
		{&usageError{err: mount.ErrDenied}, 2},
		{imgsrc.ErrNoSource, 3},
		{&sourceError{errors.New("x")}, 3},
		{&sourceError{fs.ErrPermission}, 6},
		{mount.ErrNotEmpty, 4},
		{mount.ErrInside, 4},
		{fmt.Errorf("%w: %w", mount.ErrNoAccess, unix.EACCES), 4},
		{fmt.Errorf("%w (%w)", mount.ErrNoFUSE, unix.EPERM), 5},
		{mount.ErrDenied, 6},
		{unix.EACCES, 6},
		{errors.Join(&mount.ChildError{Text: "x", Code: 5}, unix.EACCES), 5},
	} {
		if got := exitCode(test.err); got != test.code {
			t.Errorf("%v: code %d, want %d", test.err, got, test.code)
		}
	}
}

func TestVersionText(t *testing.T) {
	info := &debug.BuildInfo{Settings: []debug.BuildSetting{
		{Key: "vcs.revision", Value: "0123456789abcdef0123"}, {Key: "vcs.modified", Value: "true"},
	}}
	for _, test := range []struct {
		version string
		info    *debug.BuildInfo
		want    string
	}{
		{"", nil, "imgfs (devel) (go"},
		{"v1.2.3", nil, "imgfs v1.2.3 (go"},
		{"v1.2.3", info, "imgfs v1.2.3 (commit 0123456789ab with changes, go"},
		{"", &debug.BuildInfo{Main: debug.Module{Version: "v1.0.0"}}, "imgfs v1.0.0 (go"},
	} {
		if got := versionText(test.version, test.info); !strings.HasPrefix(got, test.want) {
			t.Errorf("%q, want %q", got, test.want)
		}
	}
}

func TestPanicSite(t *testing.T) {
	func() {
		defer func() {
			if recover() == nil {
				t.Error("there was no panic")
			}
			if site := panicSite(debug.Stack()); !strings.Contains(site, "parts_test.go:") {
				t.Errorf("%q", site)
			}
		}()
		panic("a test")
	}()
	if site := panicSite([]byte("x")); site != "unknown place" {
		t.Errorf("%q", site)
	}
}

func TestOneLine(t *testing.T) {
	if got := oneLine("unknown command\n\nDid you mean this?\n\tlist\n"); got != "unknown command; Did you mean this? list" {
		t.Errorf("%q", got)
	}
	if got := oneLine("a\nb\r\n\nc\n"); got != "a; b; c" {
		t.Errorf("%q", got)
	}
}
