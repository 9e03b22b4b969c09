package layer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
)

// keyed is a layer in memory with a key.
type keyed struct {
	entries
	key imgsrc.FilesKey
}

func (k keyed) Key() imgsrc.FilesKey { return k.key }

// layerOf is a layer that Index takes, under a digest made of its name.
func layerOf(name string, e entries) Layer {
	k := imgsrc.FilesKey{Form: TarForm, Digest: digest.FromString(name)}
	return Layer{Key: k, From: k.Digest, Open: func(context.Context) (imgsrc.Files, error) { return keyed{e, k}, nil }}
}

// A path that no system call takes is left out, and the rest is there.
func TestPathTooLong(t *testing.T) {
	long := strings.Repeat(strings.Repeat("d", 99)+"/", 40)
	c, log := logged(t, t.TempDir())
	x, err := c.Index(t.Context(), layerOf("x", entries{
		reg(long+strings.Repeat("f", maxPath-len(long)), "1"),
		reg(long+strings.Repeat("g", maxPath-len(long)+1), "2"),
		reg(strings.Repeat("a/", 32000), "3"),
		reg("b", "4"),
	}))
	if err != nil {
		t.Fatal(err)
	}
	if n := len(x.ents); n != 1+40+1+1 || x.Skipped() != 2 {
		t.Errorf("%d entries, %d left out", n, x.Skipped())
	}
	if !strings.Contains(log.String(), "files=2") {
		t.Errorf("the log: %s", log)
	}
}

// The directories that paths stand for are bounded by the number of entries.
func TestImplicitDirectories(t *testing.T) {
	deep := strings.Repeat("/a", maxPath/2-10)
	var e entries
	for i := range 1000 {
		e = append(e, dir(fmt.Sprintf("%04x%s", i, deep), 0o755))
	}
	if _, err := BuildIndex(t.Context(), e); !errors.Is(err, imgsrc.ErrDamaged) {
		t.Errorf("%v, want ErrDamaged", err)
	}
	e = e[:0]
	for i := range 50_000 { // more than any real layer
		e = append(e, reg(fmt.Sprintf("a/%d/b/c/d/file", i), "1"))
	}
	x, err := BuildIndex(t.Context(), e)
	if err != nil || len(x.ents) != 2+5*len(e) {
		t.Errorf("%d entries, %v", len(x.ents), err)
	}
}

// largeFiles is a layer of many files that says when it has been turned away, and waits where it has listed all.
type largeFiles struct {
	keyed
	listed, away chan struct{}
	gate         <-chan struct{}
}

func (l largeFiles) Entries(ctx context.Context, emit func(*imgsrc.File) error) error {
	for i := range 500_000 {
		if err := emit(&imgsrc.File{Name: fmt.Sprintf("d/%08d", i), Type: '0'}); err != nil {
			close(l.away)
			return err
		}
	}
	close(l.listed)
	<-l.gate
	return nil
}

// Indexes that take much memory are made one at a time, and the others do not wait for them.
func TestLargeIndexes(t *testing.T) {
	c := testCache(t, t.TempDir(), 0)
	gate := make(chan struct{})
	var opened atomic.Int32
	start := func(name string) (l largeFiles, done chan error) {
		l = largeFiles{listed: make(chan struct{}), away: make(chan struct{}), gate: gate}
		l.key = imgsrc.FilesKey{Form: TarForm, Digest: digest.FromString(name)}
		done = make(chan error, 1)
		again := l
		again.listed = make(chan struct{})
		go func() {
			_, err := c.Index(t.Context(), Layer{Key: l.key, From: l.key.Digest, Open: func(context.Context) (imgsrc.Files, error) {
				opened.Add(1)
				select {
				case <-l.away:
					return again, nil
				default:
					return l, nil
				}
			}})
			done <- err
		}()
		return l, done
	}
	first, firstDone := start("first")
	<-first.listed
	second, secondDone := start("second")
	select {
	case <-second.away:
	case <-second.listed:
		t.Error("two large indexes at a time")
	}
	if _, err := c.Index(t.Context(), layerOf("small", entries{reg("a", "1")})); err != nil {
		t.Errorf("a small one meanwhile: %v", err)
	}
	close(gate)
	if err := errors.Join(<-firstDone, <-secondDone); err != nil {
		t.Error(err)
	}
	if n := opened.Load(); n != 3 {
		t.Errorf("opened %d times", n)
	}
}

// The indexes of one tree are bounded together.
func TestIndexesTogether(t *testing.T) {
	c := testCache(t, "", 0)
	one, two := layerOf("one", entries{reg("a", "1")}), layerOf("two", entries{reg("b", "2")})
	x, err := c.Index(t.Context(), one)
	if err != nil {
		t.Fatal(err)
	}
	c.together = x.memory()
	if _, err := c.Indexes(t.Context(), []Layer{one}); err != nil {
		t.Error(err)
	}
	if _, err := c.Indexes(t.Context(), []Layer{one, two}); !errors.Is(err, imgsrc.ErrUnsupported) {
		t.Errorf("%v, want ErrUnsupported", err)
	}
}

// That the image of one who asks is gone says nothing to another who asks for the same layer.
func TestIndexOfAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := testCache(t, "", 0)
		sound := layerOf("x", entries{reg("a", "1")})
		gate := make(chan struct{})
		gone := sound
		gone.Open = func(context.Context) (imgsrc.Files, error) {
			<-gate
			return nil, imgsrc.ErrNotFound
		}
		errs := make(chan error)
		ask := func(l Layer) {
			_, err := c.Index(context.Background(), l)
			errs <- err
		}
		go ask(gone)
		synctest.Wait()
		go ask(sound)
		synctest.Wait()
		close(gate)
		if one, two := <-errs, <-errs; (one == nil) == (two == nil) || !errors.Is(errors.Join(one, two), imgsrc.ErrNotFound) {
			t.Errorf("%v and %v, want the index for one and ErrNotFound for the other", one, two)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if _, err := c.Index(t.Context(), layerOf("y", nil)); !errors.Is(err, fs.ErrClosed) {
			t.Errorf("%v, want ErrClosed", err)
		}
	})
}

// What is read under another key than the one that was asked for is not kept under that.
func TestIndexMoved(t *testing.T) {
	dir := t.TempDir()
	c := testCache(t, dir, 0)
	l := layerOf("x", entries{reg("a", "1")})
	moved := l
	l.Key.Place = "elsewhere"
	if _, err := c.Index(t.Context(), l); err == nil {
		t.Error("the files of another place")
	}
	if kept := files(t, dir, indexKind+"-"+TarForm); kept != nil {
		t.Errorf("kept: %v", kept)
	}
	if _, err := c.Index(t.Context(), moved); err != nil {
		t.Error(err)
	}
}

// One layer in two places has two indexes, each of which is kept.
func TestIndexPlaces(t *testing.T) {
	dir := t.TempDir()
	var opened int
	at := func(place string, e entries) Layer {
		k := imgsrc.FilesKey{Form: "split", Digest: digest.FromString("x"), Place: place}
		return Layer{Key: k, From: k.Digest, Open: func(context.Context) (imgsrc.Files, error) {
			opened++
			return keyed{e, k}, nil
		}}
	}
	for range 2 {
		c := testCache(t, dir, 0)
		for place, e := range map[string]entries{"": {reg("a", "1")}, "1": {reg("b", "2")}, "2": {reg("c", "3")}} {
			x, err := c.Index(t.Context(), at(place, e))
			if err != nil {
				t.Fatal(err)
			}
			if x.name(1) != e[0].Name || x.digest != digest.FromString("x") {
				t.Errorf("place %q has %q, of layer %s", place, x.name(1), x.digest)
			}
		}
	}
	if opened != 3 {
		t.Errorf("opened %d times, want once for each place", opened)
	}
}

// Close leaves the directory to those who are still about to use it.
func TestCloseUnderReaders(t *testing.T) {
	plain := payload(100)
	blob := &testBlob{bytes: gzipped(t, plain)}
	for range 200 {
		c := testCache(t, t.TempDir(), 0)
		d := c.Diff(blob.digest(), digest.FromBytes(plain), blob.open)
		ready, done := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(done)
			close(ready)
			for {
				if _, err := d.Size(context.Background()); errors.Is(err, fs.ErrClosed) {
					return
				}
				d.Close()
			}
		}()
		<-ready
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		<-done
		if c.dir == nil {
			t.Fatal("the directory is gone under its readers")
		}
	}
}

// What has gone from memory leaves nothing behind: a store may have had any number of layers.
func TestIndexForgotten(t *testing.T) {
	c := testCache(t, "", 0)
	ix := c.indexes
	const n = 20
	for i := range n {
		if _, err := c.Index(t.Context(), layerOf(fmt.Sprint(i), entries{reg("a", "1")})); err != nil {
			t.Fatal(err)
		}
	}
	ix.mu.Lock()
	if len(ix.known) != n || len(ix.inHeld) != n || ix.held.Len() != n {
		t.Errorf("%d known, %d held, %d of them found", len(ix.known), ix.held.Len(), len(ix.inHeld))
	}
	first := ix.held.Back().Value.(*heldIndex).key
	ix.get(first)
	if got := ix.held.Front().Value.(*heldIndex).key; got != first || ix.held.Len() != n {
		t.Errorf("%v was used last, and %v is in front of %d", first, got, ix.held.Len())
	}
	ix.size += heldIndexes // all of them are too much
	ix.hold(imgsrc.FilesKey{}, &Index{})
	if ix.held.Len() != 1 || len(ix.inHeld) != 1 {
		t.Errorf("%d held, %d of them found", ix.held.Len(), len(ix.inHeld))
	}
	ix.mu.Unlock()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		runtime.GC()
		ix.mu.Lock()
		left := len(ix.known)
		ix.mu.Unlock()
		if left == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d are still known", left)
		}
	}
}
