package layout

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/imgfs/imgfs/imgsrc"
)

// A blob that changes under its reader is verified again: before and after the change nothing else is read.
func TestBlobChanges(t *testing.T) {
	l := newLayout(t)
	plain := tarOf(t, strings.Repeat("x", 3<<20))
	d := l.blob(v1.MediaTypeImageLayer, plain)
	l.name(l.manifest([]v1.Descriptor{d}, []digest.Digest{d.Digest}), "a")
	img := only(t, l.open())
	c, err := img.Blob(t.Context(), d.Digest)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	read := func(what string, want error) {
		t.Helper()
		p := make([]byte, 1000)
		n, err := c.ReadAt(t.Context(), p, 2<<20)
		if want != nil {
			if n != 0 || !errors.Is(err, want) || !bytes.Equal(p, make([]byte, 1000)) {
				t.Errorf("%s: %d bytes, %v, want %v", what, n, err, want)
			}
		} else if err != nil || !bytes.Equal(p, plain[2<<20:2<<20+1000]) {
			t.Errorf("%s: %d bytes, %v", what, n, err)
		}
	}
	path := l.path(d.Digest)
	read("as it was", nil)
	edit(t, path, 100)
	read("edited", imgsrc.ErrDamaged)
	edit(t, path, 100)
	read("edited back", nil)
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	read("gone", imgsrc.ErrDamaged)
	l.blob(v1.MediaTypeImageLayer, plain)
	read("a new file", nil)
	if err := os.Truncate(path, 100); err != nil {
		t.Fatal(err)
	}
	read("cut short", imgsrc.ErrDamaged)
	if err := errors.Join(os.Remove(path), os.Rename(path+".old", path)); err != nil {
		t.Fatal(err)
	}
	read("the old file", nil)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	read("closed and opened again", nil)
}

// Hashing goes on without the reader who asked for it, and is done once for all.
func TestVerifyOnce(t *testing.T) {
	l := newLayout(t)
	plain := tarOf(t, strings.Repeat("x", 1<<20))
	d := l.blob(v1.MediaTypeImageLayer, plain)
	l.name(l.manifest([]v1.Descriptor{d}, []digest.Digest{d.Digest}), "a")
	s := l.open()
	img := only(t, s)
	for range cap(s.slots) { // nothing can be hashed
		s.slots <- struct{}{}
	}
	open := func() imgsrc.Content {
		c, err := img.Blob(t.Context(), d.Digest)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan error)
	c := open()
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
		c := open()
		wg.Go(func() {
			if b, err := content(t.Context(), c); err != nil || !bytes.Equal(b, plain) {
				t.Errorf("%d bytes, %v", len(b), err)
			}
		})
	}
	for range cap(s.slots) {
		<-s.slots
	}
	wg.Wait()
	first := s.checks[d.Digest]
	if _, err := content(t.Context(), open()); err != nil {
		t.Fatal(err)
	}
	if s.checks[d.Digest] != first {
		t.Error("a verified file was hashed again")
	}
}

func TestCloseSource(t *testing.T) {
	l := newLayout(t)
	plain := tarOf(t, "x")
	d := l.blob(v1.MediaTypeImageLayer, plain)
	l.name(l.manifest([]v1.Descriptor{d}, []digest.Digest{d.Digest}), "a")
	s := l.open()
	img := only(t, s)
	for range cap(s.slots) {
		s.slots <- struct{}{}
	}
	c, err := img.Blob(t.Context(), d.Digest)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	waiting := make(chan error)
	go func() {
		_, err := c.ReadAt(context.Background(), make([]byte, 1), 0)
		waiting <- err
	}()
	for started := false; !started; {
		s.mu.Lock()
		started = s.checks[d.Digest] != nil
		s.mu.Unlock()
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-waiting; !errors.Is(err, fs.ErrClosed) {
		t.Errorf("%v, want ErrClosed", err)
	}
	if _, err := img.Manifest(t.Context()); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("%v, want ErrClosed", err)
	}
}
