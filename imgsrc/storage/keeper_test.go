package storage

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/types"
	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/userns"
	"github.com/imgfs/imgfs/test/needs"
)

// kept opens the store as that of an ordinary user is opened.
func (r real) kept(t *testing.T) *Source {
	t.Helper()
	s := r.source(t)
	s.opener, s.writer = newOpener(s.real, s.log), newWriter(s.real, s.log)
	if err := s.opener.check(); errors.Is(err, userns.ErrUnavailable) {
		needs.Unmet(t, "user namespaces: "+err.Error())
	}
	return s
}

func TestKeeperReceives(t *testing.T) {
	dir := sample(t)
	r := newReal(t, "overlay")
	t.Setenv("TMPDIR", t.TempDir())
	r.do(t, "podman", "images", "-q")
	s := r.kept(t)
	receive := func(ctx context.Context, name string, before func() error) error {
		return s.Receive(ctx, name, "", copyFrom(ctx, t, dir, "localhost/app:1.0", before))
	}
	nothing := func(when string) {
		t.Helper()
		left, err := os.ReadDir(os.Getenv("TMPDIR"))
		if layers := r.layersIn(t); err != nil || len(left) > 0 || len(layers) > 0 {
			t.Errorf("%s: there are left %v, layers %q, %v", when, left, layers, err)
		}
	}
	broken := errors.New("broken")
	if err := receive(t.Context(), "localhost/web:1", func() error { return broken }); !errors.Is(err, broken) {
		t.Errorf("%v, want the copy's own error", err)
	}
	nothing("a layer that did not come")
	ctx, cancel := context.WithCancel(t.Context())
	if err := receive(ctx, "localhost/web:1", func() error { cancel(); return ctx.Err() }); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	nothing("cancelled")
	err := receive(t.Context(), "localhost/web:1", func() error {
		s.writer.mu.Lock()
		defer s.writer.mu.Unlock()
		return unix.Kill(s.writer.child.PID(), unix.SIGKILL)
	})
	if !errors.Is(err, errKeeperEnded) {
		t.Errorf("the writer is killed: %v", err)
	}
	if err := receive(t.Context(), "UPPER", nil); !errors.Is(err, imgsrc.ErrInvalid) {
		t.Errorf("a bad name: %v", err)
	}
	var id string
	err = s.Receive(t.Context(), "localhost/web:1", "", func(to types.ImageReference) error {
		err := copyFrom(t.Context(), t, dir, "localhost/app:1.0", nil)(to)
		id = to.(interface{ Received() string }).Received()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	said := r.inspect(t, "localhost/web:1")
	if layers := r.layersIn(t); id != said.ID || len(layers) != len(said.RootFS.Layers) {
		t.Errorf("image %s with the layers %q, podman says %s with %q", id, layers, said.ID, said.RootFS.Layers)
	}
	if left, err := os.ReadDir(os.Getenv("TMPDIR")); err != nil || slices.ContainsFunc(left, func(e os.DirEntry) bool { return strings.Contains(e.Name(), "receive") }) {
		t.Errorf("temporary files are left: %v, %v", left, err)
	}

	img := find(t, s, "localhost/web:1").Desc()
	if err := s.Tag(t.Context(), img, []string{"localhost/web:2"}, []string{"localhost/web:1"}); err != nil {
		t.Error(err)
	}
	if err := s.Tag(t.Context(), img, nil, []string{"localhost/web:1"}); !errors.Is(err, imgsrc.ErrNotFound) {
		t.Errorf("a name that is gone: %v", err)
	}
	absent := digest.FromString("absent")
	index := []byte(`{"schemaVersion":2,"manifests":[{"digest":"` + absent.String() + `","size":1,"platform":{"os":"linux","architecture":"arm64"}}]}`)
	if _, err := s.AddIndex(t.Context(), "localhost/all:1", index, nil, "docker://quay.io/a/b"); err != nil {
		t.Error(err)
	}
	if text := r.do(t, "podman", "manifest", "inspect", "localhost/all:1"); !strings.Contains(text, absent.String()) {
		t.Error(text)
	}
	r.do(t, "podman", "create", "--name", "c", "localhost/web:2")
	if err := s.Remove(t.Context(), []imgsrc.Desc{img}, []string{"localhost/web:2"}); !errors.Is(err, imgsrc.ErrInUse) {
		t.Errorf("an image with a container: %v", err)
	}
	r.do(t, "podman", "rm", "c")
	if err := s.Remove(t.Context(), []imgsrc.Desc{img}, []string{"localhost/web:2"}); err != nil {
		t.Error(err)
	}
	s.Close()
	nothing("at the end")
}

func TestKeeperReads(t *testing.T) {
	r := newReal(t, "overlay")
	src := t.TempDir()
	curious(t, src)
	r.commit(t, "localhost/web:1", "oci", src)
	s := r.kept(t)
	s.opener.rests = time.Millisecond // ends after each call
	chain, err := s.chain(find(t, s, "localhost/web:1").Image.(*image).at.layer)
	if err != nil {
		t.Fatal(err)
	}
	l := chain[len(chain)-1]
	_, dir, err := s.locate(l)
	if err != nil {
		t.Fatal(err)
	}
	names, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range names {
		if !e.Type().IsRegular() {
			continue
		}
		want, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		fd, err := s.opener.open(dir, e.Name())
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(want)+1)
		if n, err := unix.Pread(fd, got, 0); err != nil || string(got[:n]) != string(want) {
			t.Errorf("%s: %d bytes, want %d, %v", e.Name(), n, len(want), err)
		}
		unix.Close(fd)
	}
	s.opener.rests = time.Minute
	at := slices.IndexFunc(names, func(e os.DirEntry) bool { return e.Type().IsRegular() })
	killedWhileOpening(t, s.opener, dir, names[at].Name())
	if _, err := s.opener.open(dir, "none"); !errors.Is(err, imgsrc.ErrDamaged) || !errors.Is(err, syscall.ENOENT) {
		t.Errorf("a file that is not there: %v", err)
	}
	if _, err := s.opener.open(filepath.Join(filepath.Dir(dir), "none"), "x"); !errors.Is(err, imgsrc.ErrNotFound) {
		t.Errorf("a layer that is not there: %v", err)
	}

	list := func(entries func(context.Context, func(*imgsrc.File) error) error) (files []imgsrc.File) {
		t.Helper()
		if err := entries(t.Context(), func(f *imgsrc.File) error { files = append(files, *f); return nil }); err != nil {
			t.Error(err)
		}
		return files
	}
	w := s.walk(l, dir).(*walkedFiles)
	defer w.Close()
	if want, got := list(w.entries), list(w.kept); len(want) == 0 || !reflect.DeepEqual(got, want) {
		t.Errorf("listed %+v, want %+v", got, want)
	}
	stopped := errors.New("stopped")
	if err := w.kept(t.Context(), func(*imgsrc.File) error { return stopped }); !errors.Is(err, stopped) {
		t.Errorf("stopped: %v", err)
	}
	gone := s.walk(l, filepath.Join(filepath.Dir(dir), "none")).(*walkedFiles)
	if err := gone.kept(t.Context(), func(*imgsrc.File) error { return nil }); !errors.Is(err, imgsrc.ErrNotFound) {
		t.Errorf("a layer that is not there: %v", err)
	}
	s.Close()
	if _, err := s.opener.open(dir, "x"); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

// killedWhileOpening kills a keeper that has been asked to open a file, and has not done it.
func killedWhileOpening(t *testing.T, k *keeper, dir, name string) {
	t.Helper()
	if err := k.check(); err != nil {
		t.Fatal(err)
	}
	k.mu.Lock()
	pid := k.child.PID()
	k.mu.Unlock()
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	var opening sync.WaitGroup
	opening.Go(func() {
		fd, err := k.open(dir, name)
		if err != nil {
			t.Errorf("the keeper was killed: %v", err)
			return
		}
		unix.Close(fd)
	})
	asked := func() bool {
		k.mu.Lock()
		defer k.mu.Unlock()
		return len(k.pending) > 0
	}
	for end := time.Now().Add(5 * time.Second); !asked() && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Error(err)
	}
	opening.Wait()
}
