package registry

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/types"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/layer"
	"github.com/imgfs/imgfs/imgsrc/sourcetest"
)

// quick are limits that a test can wait for.
var quick = limits{
	document: 2 * time.Second, stall: time.Second, wait: 2 * time.Second, backoff: 5 * time.Millisecond, attempts: 5,
	down: time.Minute,
}

// A setup is what a source of a test is opened with.
type setup struct {
	Options
	registries string // registries.conf
	logged     *logBuffer
}

func newSetup(t testing.TB, ref string) *setup {
	t.Helper()
	dir := t.TempDir()
	o := &setup{logged: &logBuffer{}}
	o.Ref, o.CacheDir, o.AuthFile = ref, dir, filepath.Join(t.TempDir(), "auth.json")
	o.Platform = imgsrc.Platform{OS: "linux", Architecture: "amd64"}
	o.Log = slog.New(slog.NewTextHandler(o.logged, &slog.HandlerOptions{Level: slog.LevelDebug}))
	o.test = &testOptions{limits: quick, every: time.Hour, certDirs: []string{t.TempDir()}}
	write(t, o.AuthFile, "{}")
	o.newCache(t)
	return o
}

// newCache opens the layer cache in the directory, also again.
func (o *setup) newCache(t testing.TB) {
	t.Helper()
	c, err := layer.OpenCache(o.CacheDir, 0, o.Log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	o.Cache = c
}

// open opens the source.
func (o *setup) open(t testing.TB) (*Source, error) {
	t.Helper()
	o.configure(t)
	return Open(t.Context(), o.Options)
}

// configure makes registries.conf the test's.
func (o *setup) configure(t testing.TB) {
	t.Helper()
	conf := filepath.Join(t.TempDir(), "registries.conf")
	write(t, conf, o.registries)
	o.test.sys = &types.SystemContext{SystemRegistriesConfPath: conf, SystemRegistriesConfDirPath: filepath.Join(t.TempDir(), "none")}
}

func (o *setup) mustOpen(t testing.TB) *Source {
	t.Helper()
	s, err := o.open(t)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("closing: %v", err)
		}
	})
	return s
}

func (o *setup) login(t testing.TB, host, user string) {
	t.Helper()
	write(t, o.AuthFile, fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, host, base64.StdEncoding.EncodeToString([]byte(user))))
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// logBuffer is a log that several goroutines write to.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func list(t testing.TB, s *Source) *imgsrc.Listing {
	t.Helper()
	l, err := s.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// named returns the image of a name.
func named(t testing.TB, s *Source, name string) *image {
	t.Helper()
	for _, l := range list(t, s).Images {
		for _, n := range l.RemoteNames {
			if n == name {
				return l.Image.(*image)
			}
		}
	}
	t.Fatalf("no image has the name %s", name)
	return nil
}

// readAll reads a content from its beginning to its end, and closes it.
func readAll(ctx context.Context, c imgsrc.Content) ([]byte, error) {
	defer c.Close()
	return sourcetest.ReadAll(ctx, c)
}

func readBlob(t testing.TB, m *image, d digest.Digest) ([]byte, error) {
	t.Helper()
	c, err := m.Blob(t.Context(), d)
	if err != nil {
		return nil, err
	}
	return readAll(t.Context(), c)
}

func readDiff(t testing.TB, m *image, n int) ([]byte, error) {
	t.Helper()
	c, err := m.Diff(t.Context(), n)
	if err != nil {
		return nil, err
	}
	return readAll(t.Context(), c)
}

// What the tests leave behind is looked at when all have run.
func TestMain(m *testing.M) {
	before := openFiles()
	code := m.Run()
	http.DefaultClient.CloseIdleConnections()
	for range 100 {
		if len(openFiles()) <= len(before) {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if after := openFiles(); code == 0 && len(after) > len(before)+2 { // the poller's own
		fmt.Fprintf(os.Stderr, "files that are still open: %q, before: %q\n", after, before)
		code = 1
	}
	left, _ := filepath.Glob(filepath.Join(os.TempDir(), "imgfs-blob-*"))
	if len(left) > 0 {
		fmt.Fprintf(os.Stderr, "files that are left: %q\n", left)
		code = 1
	}
	os.Exit(code)
}

func openFiles() []string {
	fds, _ := os.ReadDir("/proc/self/fd")
	var names []string
	for _, fd := range fds {
		if name, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && !strings.HasPrefix(name, "anon_inode:") {
			names = append(names, name)
		}
	}
	return names
}
