package storage

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/sourcetest"
)

// damaged is a store with one image whose layer holds first, victim and last.
func damaged(t *testing.T, victim []byte) (r real, s *Source, img imgsrc.Listed, layerDir, tarSplit string) {
	t.Helper()
	r = newReal(t, "overlay")
	src := t.TempDir()
	write(t, noise(1, 1000), src, "a")
	write(t, victim, src, "victim")
	write(t, noise(2, 1000), src, "z")
	r.commit(t, "localhost/x", "oci", src)
	s = r.source(t)
	img = find(t, s, "localhost/x:latest")
	chain, err := s.chain(img.Image.(*image).at.layer)
	if err != nil || len(chain) != 1 {
		t.Fatal(chain, err)
	}
	tarSplit, layerDir, err = s.locate(chain[0])
	if err != nil {
		t.Fatal(err)
	}
	return r, s, img, layerDir, tarSplit
}

// bodyAt returns where the body of a file begins in a layer.
func bodyAt(t *testing.T, s *Source, c imgsrc.Content, name string) int64 {
	t.Helper()
	x, err := s.index(t.Context(), c.(*diff).l)
	if err != nil {
		t.Fatal(err)
	}
	for i := range x.blocks {
		pieces, err := x.unpack(s.blocks.dec, i)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range pieces {
			if p.body.name == name {
				return p.off
			}
		}
	}
	t.Fatalf("the layer has no %s", name)
	return 0
}

func TestBodyIsNotTheLayers(t *testing.T) {
	for _, size := range []int{1, 5000, smallBody + 100_000} {
		good := noise(7, size)
		_, s, img, dir, _ := damaged(t, good)
		diff, err := img.Diff(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		all, err := sourcetest.ReadAll(t.Context(), diff)
		if err != nil {
			t.Fatal(err)
		}
		at := bodyAt(t, s, diff, "victim")
		victim, aside := filepath.Join(dir, "victim"), filepath.Join(t.TempDir(), "aside")
		bad := bytes.Clone(good)
		bad[len(bad)-1] ^= 1
		outside := write(t, good, t.TempDir(), "outside")
		later := time.Now().Add(time.Second) // than it was written, however coarse the file system's clock is
		for name, damage := range map[string]func() error{
			"changed in place": func() error { return errors.Join(os.WriteFile(victim, bad, 0o644), os.Chtimes(victim, later, later)) },
			"replaced":         func() error { return errors.Join(os.Remove(victim), os.WriteFile(victim, bad, 0o644)) },
			"shorter":          func() error { return os.Truncate(victim, int64(size-1)) },
			"longer":           func() error { return os.Truncate(victim, int64(size+1)) },
			"missing":          func() error { return os.Remove(victim) },
			"a link out":       func() error { return errors.Join(os.Remove(victim), os.Symlink(outside, victim)) },
			"a link up":        func() error { return errors.Join(os.Remove(victim), os.Symlink("../../../"+outside, victim)) },
			"a link to itself": func() error { return errors.Join(os.Remove(victim), os.Symlink("victim", victim)) },
			"a directory":      func() error { return errors.Join(os.Remove(victim), os.Mkdir(victim, 0o755)) },
			"a pipe":           func() error { return errors.Join(os.Remove(victim), unix.Mkfifo(victim, 0o644)) },
		} {
			if err := os.WriteFile(aside, good, 0o644); err != nil {
				t.Fatal(err)
			}
			if err := damage(); err != nil {
				t.Fatal(name, err)
			}
			s.bodies.drop() // as a listing does
			buf := make([]byte, len(all))
			n, err := diff.ReadAt(t.Context(), buf, 0)
			if !errors.Is(err, imgsrc.ErrDamaged) || int64(n) != at || !bytes.Equal(buf[:n], all[:at]) {
				t.Errorf("%d bytes, %s: read %d of the %d bytes before it, %v", size, name, n, at, err)
			}
			// Around it the layer is whole.
			rest := all[at+int64(size):]
			if n, err := diff.ReadAt(t.Context(), buf[:len(rest)], at+int64(size)); err != nil || !bytes.Equal(buf[:n], rest) {
				t.Errorf("%d bytes, %s: reading behind it: %d, %v", size, name, n, err)
			}
			if err := errors.Join(os.RemoveAll(victim), os.Rename(aside, victim)); err != nil {
				t.Fatal(err)
			}
			s.bodies.drop()
			if again, err := sourcetest.ReadAll(t.Context(), diff); err != nil || !bytes.Equal(again, all) {
				t.Errorf("%d bytes, %s, repaired: %v", size, name, err)
			}
		}
	}
}

func TestBodyChangedWhileItIsOpen(t *testing.T) {
	for _, size := range []int{5000, smallBody + 100_000} {
		good := noise(7, size)
		_, s, img, dir, _ := damaged(t, good)
		diff, err := img.Diff(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := sourcetest.ReadAll(t.Context(), diff); err != nil {
			t.Fatal(err)
		}
		// The file stays open: the same inode, other bytes.
		f, err := os.OpenFile(filepath.Join(dir, "victim"), os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteAt([]byte{^good[0]}, 0); err != nil {
			t.Fatal(err)
		}
		p := make([]byte, 10)
		if n, err := diff.ReadAt(t.Context(), p, bodyAt(t, s, diff, "victim")+100); n != 0 || !errors.Is(err, imgsrc.ErrDamaged) {
			t.Errorf("%d bytes, %v", n, err)
		}
	}
}

func TestTarSplitIsDamaged(t *testing.T) {
	_, _, img, dir, file := damaged(t, []byte("victim"))
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		damage func() error
		want   error
	}{
		"empty":       {func() error { return os.Truncate(file, 0) }, imgsrc.ErrDamaged},
		"truncated":   {func() error { return os.Truncate(file, int64(len(good)/2)) }, imgsrc.ErrDamaged},
		"without end": {func() error { return os.Truncate(file, int64(len(good)-4)) }, imgsrc.ErrDamaged},
		"garbage":     {func() error { return os.WriteFile(file, noise(1, 1000), 0o600) }, imgsrc.ErrDamaged},
		"garbage in it": {func() error {
			return os.WriteFile(file, append(bytes.Clone(good[:len(good)/2]), noise(1, 99)...), 0o600)
		}, imgsrc.ErrDamaged},
		"two of them": {func() error { return os.WriteFile(file, append(bytes.Clone(good), good...), 0o600) }, imgsrc.ErrDamaged},
		"a directory": {func() error { return errors.Join(os.Remove(file), os.Mkdir(file, 0o700)) }, imgsrc.ErrDamaged},
		"missing":     {func() error { return os.Remove(file) }, imgsrc.ErrAbsent},
		"composefs":   {func() error { return os.Mkdir(filepath.Join(dir, "..", "composefs-data"), 0o700) }, imgsrc.ErrAbsent},
		"layer gone":  {func() error { return os.Rename(filepath.Dir(dir), filepath.Dir(dir)+"-gone") }, imgsrc.ErrDamaged}, // the image is there
	} {
		if err := tt.damage(); err != nil {
			t.Fatal(name, err)
		}
		// A source that has not indexed the layer yet.
		s, err := open(Options{GraphRoot: filepath.Join(filepath.Dir(file), "..")}, confNone)
		if err != nil {
			t.Fatal(err)
		}
		fresh := find(t, s, "localhost/x:latest")
		diff, err := fresh.Diff(t.Context(), 0)
		if err == nil {
			_, err = sourcetest.ReadAll(t.Context(), diff)
		}
		if !errors.Is(err, tt.want) {
			t.Errorf("%s: %v", name, err)
		}
		s.Close()
		if name == "layer gone" {
			if err := os.Rename(filepath.Dir(dir)+"-gone", filepath.Dir(dir)); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(os.RemoveAll(file), os.WriteFile(file, good, 0o600), os.RemoveAll(filepath.Join(dir, "..", "composefs-data"))); err != nil {
			t.Fatal(err)
		}
	}
	diff, err := img.Diff(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sourcetest.ReadAll(t.Context(), diff); err != nil {
		t.Errorf("repaired: %v", err)
	}
}

func TestNoPermissionForABody(t *testing.T) {
	_, s, img, dir, tarSplit := damaged(t, []byte("victim"))
	if err := os.Chmod(filepath.Join(dir, "victim"), 0); err != nil {
		t.Fatal(err)
	}
	for d := dir; d != filepath.Dir(s.stores[0]); d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	diff, err := img.Diff(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := diff.ReadAt(t.Context(), make([]byte, 1), 0); err != nil { // indexed as root
		t.Fatal(tarSplit, err)
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		for d := filepath.Dir(s.stores[0]); d != "/"; d = filepath.Dir(d) {
			if err := os.Chmod(d, 0o755); err != nil {
				done <- err
				return
			}
			if filepath.Dir(d) == os.TempDir() {
				break
			}
		}
		if err := unix.Setfsuid(65534); err != nil {
			done <- err
			return
		}
		_, err := sourcetest.ReadAll(t.Context(), diff)
		done <- err
	}()
	if err := <-done; !errors.Is(err, fs.ErrPermission) || errors.Is(err, imgsrc.ErrDamaged) {
		t.Errorf("reading a body without permission: %v", err)
	}
}

func TestReaderLeavesAndTheWorkGoesOn(t *testing.T) {
	good := noise(1, 40<<20)
	_, s, img, _, _ := damaged(t, good)
	diff, err := img.Diff(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := diff.ReadAt(gone, make([]byte, 1), 0); !errors.Is(err, context.Canceled) {
		t.Errorf("indexing for a reader that has left: %v", err)
	}
	for s.work.Busy() {
		time.Sleep(time.Millisecond)
	}
	s.indexMu.Lock()
	built := len(s.indexes.items)
	s.indexMu.Unlock()
	if built != 1 {
		t.Errorf("%d layers are indexed after the reader has left", built)
	}
	// The body is some 40 MiB of one read each: a reader that is interrupted over and over gets there.
	p := make([]byte, 1)
	for tries := 0; ; tries++ {
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		n, err := diff.ReadAt(ctx, p, 20<<20)
		cancel()
		if n == 1 && err == nil {
			break
		}
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("try %d: %v", tries, err)
		}
	}
}

func TestClosedSource(t *testing.T) {
	_, s, img, _, _ := damaged(t, []byte("victim"))
	diff, err := img.Diff(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sourcetest.ReadAll(t.Context(), diff); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if _, err := sourcetest.ReadAll(t.Context(), diff); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("reading from a closed source: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("closing twice: %v", err)
	}
}

func TestErrorsNameTheLayer(t *testing.T) {
	_, s, img, dir, _ := damaged(t, []byte("victim"))
	diff, err := img.Diff(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "victim"), []byte("viktim"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err = sourcetest.ReadAll(t.Context(), diff)
	chain, _ := s.chain(img.Image.(*image).at.layer)
	if err == nil || !strings.Contains(err.Error(), chain[0].DiffID.String()) || !strings.Contains(err.Error(), `"victim"`) {
		t.Errorf("the error is %q", err)
	}
}

// Of a layer that the store has lost altogether it knows not even what was below: what is above can be read.
func TestLayerIsLost(t *testing.T) {
	r, s, _, _, _ := damaged(t, []byte("victim"))
	below, above := t.TempDir(), t.TempDir()
	write(t, []byte("below"), below, "below")
	write(t, []byte("above"), above, "above")
	r.commit(t, "localhost/above", "oci", below, above)
	img := find(t, s, "localhost/above:latest")
	chain, err := s.chain(img.Image.(*image).at.layer)
	if err != nil || len(chain) != 2 {
		t.Fatal(chain, err)
	}
	file := filepath.Join(s.layersDir(0), "layers.json")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var layers []map[string]any
	if err := json.Unmarshal(text, &layers); err != nil {
		t.Fatal(err)
	}
	layers = slices.DeleteFunc(layers, func(l map[string]any) bool { return l["id"] == chain[0].ID })
	if text, err = json.Marshal(layers); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	img = find(t, s, "localhost/above:latest")
	if _, err := img.Diff(t.Context(), 0); !errors.Is(err, imgsrc.ErrDamaged) {
		t.Errorf("the one that is lost: %v", err)
	}
	if _, err := img.Files(t.Context(), 0); !errors.Is(err, imgsrc.ErrDamaged) {
		t.Errorf("its files: %v", err)
	}
	diff, err := img.Diff(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := sourcetest.ReadAll(t.Context(), diff); err != nil || !bytes.Contains(b, []byte("above")) {
		t.Errorf("the one above: %v", err)
	}
	if _, err := img.Diff(t.Context(), 2); !errors.Is(err, imgsrc.ErrAbsent) {
		t.Errorf("one more than there are: %v", err)
	}
}
