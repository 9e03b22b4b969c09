package blobs

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
)

// storeOf is a store of these contents in a directory, each under its digest's digits.
func storeOf(t *testing.T, contents ...string) (s *Store, dir string) {
	t.Helper()
	dir = t.TempDir()
	for _, c := range contents {
		if err := os.WriteFile(filepath.Join(dir, digest.FromString(c).Encoded()), []byte(c), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	s = New(Options{Dir: NewOSDir(root), Path: digest.Digest.Encoded, Name: "test:" + dir})
	t.Cleanup(func() { s.Close() })
	return s, dir
}

// factsOf are those of an image with one layer.
func factsOf(d digest.Digest) *imgsrc.Facts {
	return &imgsrc.Facts{Layers: []imgsrc.LayerFacts{{Digest: d, Size: -1}}}
}

func openBlob(t *testing.T, s *Store, d digest.Digest) imgsrc.Content {
	t.Helper()
	c, err := s.Blob(factsOf(d), d)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func contentOf(t *testing.T, c imgsrc.Content) (string, error) {
	t.Helper()
	size, err := c.Size(t.Context())
	if err != nil {
		return "", err
	}
	b := make([]byte, size)
	n, err := c.ReadAt(t.Context(), b, 0)
	if err == io.EOF {
		err = nil
	}
	return string(b[:n]), err
}

// Hashing goes on without the reader who asked for it, and is done once for all.
func TestVerifyOnce(t *testing.T) {
	text := strings.Repeat("x", 1<<20)
	d := digest.FromString(text)
	s, _ := storeOf(t, text)
	letGo := stopHashing(s)
	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan error)
	c := openBlob(t, s, d)
	go func() {
		_, err := c.ReadAt(ctx, make([]byte, 1), 0)
		left <- err
	}()
	cancel()
	if err := <-left; err != context.Canceled {
		t.Errorf("%v, want context.Canceled", err)
	}
	var wg sync.WaitGroup
	for range 8 {
		c := openBlob(t, s, d)
		wg.Go(func() {
			if got, err := contentOf(t, c); err != nil || got != text {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
	letGo()
	wg.Wait()
	first := s.checks[d]
	if _, err := contentOf(t, openBlob(t, s, d)); err != nil {
		t.Fatal(err)
	}
	if s.checks[d] != first {
		t.Error("a verified file was hashed again")
	}
}

// stopHashing has nothing hashed until it is let go.
func stopHashing(s *Store) (letGo func()) {
	for range cap(s.slots) {
		s.slots <- struct{}{}
		s.urgent <- struct{}{}
	}
	return func() {
		for range cap(s.slots) {
			<-s.slots
			<-s.urgent
		}
	}
}

func TestCloseWhileHashing(t *testing.T) {
	s, _ := storeOf(t, "x")
	d := digest.FromString("x")
	stopHashing(s)
	c := openBlob(t, s, d)
	waiting := make(chan error)
	go func() {
		_, err := c.ReadAt(context.Background(), make([]byte, 1), 0)
		waiting <- err
	}()
	for started := false; !started; {
		s.mu.Lock()
		started = s.checks[d] != nil
		s.mu.Unlock()
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-waiting; !errors.Is(err, fs.ErrClosed) {
		t.Errorf("%v, want ErrClosed", err)
	}
	if _, _, err := s.Read(d, -1); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("%v, want ErrClosed", err)
	}
}

func TestRead(t *testing.T) {
	s, dir := storeOf(t, "{}")
	d := digest.FromString("{}")
	wrong := digest.FromString("something else")
	if err := os.WriteFile(filepath.Join(dir, wrong.Encoded()), []byte("{}"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		d    digest.Digest
		size int64
		want []error
	}{
		{"as it is", d, 2, nil},
		{"of no known size", d, -1, nil},
		{"of another size", d, 3, []error{imgsrc.ErrDamaged}},
		{"with other bytes", wrong, 2, []error{imgsrc.ErrDamaged}},
		{"missing", digest.FromString("missing"), 2, []error{imgsrc.ErrDamaged, fs.ErrNotExist}},
	} {
		b, id, err := s.Read(tt.d, tt.size)
		if tt.want == nil && (err != nil || !bytes.Equal(b, []byte("{}")) || id.Size() != 2) {
			t.Errorf("%s: %q, %v", tt.name, b, err)
		}
		for _, want := range tt.want {
			if b != nil || !errors.Is(err, want) {
				t.Errorf("%s: %q, %v, want %v", tt.name, b, err, want)
			}
		}
	}
}

// Files that are gone are not remembered for ever.
func TestSweep(t *testing.T) {
	s, dir := storeOf(t)
	const count = 3 * spareChecks
	for i := range count {
		text := strconv.Itoa(i)
		d := digest.FromString(text)
		file := filepath.Join(dir, d.Encoded())
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		c := openBlob(t, s, d)
		if got, err := contentOf(t, c); err != nil || got != text {
			t.Fatalf("%q, %v", got, err)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		s.jobs.Wait()
		if i%100 != 0 {
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
		}
	}
	for i := 0; i < count; i += 100 {
		if s.checks[digest.FromString(strconv.Itoa(i))] == nil {
			t.Errorf("file %d is there, and was forgotten", i)
		}
	}
	if n := len(s.checks); n > spareChecks+3*count/100 {
		t.Errorf("%d files are remembered, of %d that are there", n, count/100+1)
	}
}

// Verify reads a file once, and again when another one is there or it was written to.
func TestVerify(t *testing.T) {
	text := strings.Repeat("x", 1<<20)
	d, none := digest.FromString(text), digest.FromString("none")
	s, dir := storeOf(t, text)
	path := filepath.Join(dir, d.Encoded())
	write := func(text string) func() error { return func() error { return os.WriteFile(path, []byte(text), 0o644) } }
	for i, step := range []struct {
		name string
		do   func() error // before; may be nil
		d    digest.Digest
		size int64
		want []error
	}{
		{"right", nil, d, 1 << 20, nil},
		{"of any size", nil, d, -1, nil},
		{"of another size", nil, d, 1, []error{imgsrc.ErrDamaged}},
		{"missing", nil, none, -1, []error{imgsrc.ErrDamaged, fs.ErrNotExist}},
		{"no digest", nil, "sha256:../x", -1, []error{imgsrc.ErrUnsupported}},
		{"written to", write("y" + text[1:]), d, 1 << 20, []error{imgsrc.ErrDamaged}},
		{"cut short", write(text[1:]), d, -1, []error{imgsrc.ErrDamaged}},
		{"mended", write(text), d, 1 << 20, nil},
		{"a directory", func() error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o700)) }, d, -1, []error{imgsrc.ErrDamaged}},
	} {
		if step.do != nil {
			if err := step.do(); err != nil {
				t.Fatal(err)
			}
			setAge(t, path, time.Hour-time.Duration(i)*time.Minute)
		}
		n, err := s.Verify(t.Context(), step.d, step.size)
		if (err != nil) != (step.want != nil) || err == nil && n != 1<<20 {
			t.Errorf("%s: %d bytes, %v", step.name, n, err)
		}
		for _, want := range step.want {
			if !errors.Is(err, want) {
				t.Errorf("%s: %v, want %v", step.name, err, want)
			}
		}
	}
}
