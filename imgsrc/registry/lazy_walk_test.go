package registry

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc/layer"
	"github.com/imgfs/imgfs/test/images"
)

// Whoever goes on reading gets more at a time, and the rest of the layer when much of it is read.
func TestLazySequential(t *testing.T) {
	srv := newServer(t)
	for _, m := range lazyImages(t, lazyEntries()) {
		t.Run(m.form, func(t *testing.T) {
			l, c := srv.countLazy(t, m.form, m)
			o := newSetup(t, srv.host+"/"+m.form+":1")
			s := o.mustOpen(t)
			img := named(t, s, srv.host+"/"+m.form+":1")
			r := lookInto(t, img)
			before := c.asked.Load()
			for n := 200; n < 250; n++ {
				r.check(fmt.Sprintf("d/%03d", n), lazyFile(n))
			}
			if n := c.asked.Load() - before; n > 6 {
				t.Errorf("%d requests for 50 files", n)
			}
			if n := c.bytes.Load(); n > l.Size/4 {
				t.Errorf("%d bytes of %d for a tenth of the files", n, l.Size)
			}
			key := r.files.Key()
			r.checkAll()
			if n := c.bytes.Load(); n > l.Size*101/100 {
				t.Errorf("%d bytes of %d for all files", n, l.Size)
			}
			eventually(t, "the layer to be local", func() bool { return img.Local(0) })
			eventually(t, "its parts to be removed", func() bool { return !exists(o, rangesPath(l.Digest)) })
			before = c.asked.Load()
			r.checkAll()
			if b, err := readDiff(t, img, 0); err != nil || digest.FromBytes(b) != m.diffID {
				t.Errorf("diff: %v", err)
			}
			if b, err := readBlob(t, img, l.Digest); err != nil || !bytes.Equal(b, m.blob) {
				t.Errorf("blob: %v", err)
			}
			if n := c.asked.Load() - before; n != 0 {
				t.Errorf("%d requests for what is local", n)
			}
			// What is shown stays what it is; who looks later sees the tar.
			if again := lookInto(t, img); again.files.Key() != key || key.Form != layer.TOCForm {
				t.Errorf("%+v, and before %+v", again.files.Key(), key)
			}
			o.newCache(t)
			r = lookInto(t, named(t, o.mustOpen(t), srv.host+"/"+m.form+":1"))
			if r.files.Key().Form != layer.TarForm {
				t.Errorf("%+v", r.files.Key())
			}
			r.checkAll()
		})
	}
}

// Whoever reads the files of a layer in the order of their names, in which they do not lie, gets all that is missing after a few
// of them. Who leaves most of them out does not.
func TestLazyScattered(t *testing.T) {
	srv := newServer(t)
	entries := lazyEntries()
	rand.New(rand.NewPCG(1, 2)).Shuffle(len(entries), func(i, j int) { entries[i], entries[j] = entries[j], entries[i] })
	for _, m := range lazyImages(t, entries) {
		t.Run(m.form, func(t *testing.T) {
			l, c := srv.countLazy(t, m.form, m)
			o := newSetup(t, srv.host+"/"+m.form+":1")
			img := named(t, o.mustOpen(t), srv.host+"/"+m.form+":1")
			r := lookInto(t, img)
			for n := 0; n < lazyCount; n += 40 {
				r.check(fmt.Sprintf("d/%03d", n), lazyFile(n))
			}
			if n := c.bytes.Load(); n*100 > l.Size*30 || img.Local(0) {
				t.Errorf("%d bytes of %d for a few files", n, l.Size)
			}
			asked := c.asked.Load()
			r.checkAll()
			if n := c.bytes.Load(); n > l.Size*101/100 {
				t.Errorf("%d bytes of %d for all files", n, l.Size)
			}
			if n := c.asked.Load() - asked; n > 20 { // one for each gap
				t.Errorf("%d requests", n)
			}
			eventually(t, "the layer to be local", func() bool { return img.Local(0) })
		})
	}
}

// Whoever begins at the beginning gets the rest in few ranges, which begin where the parts end.
func TestLazyInOrder(t *testing.T) {
	srv := newServer(t)
	m := lazyImages(t, lazyEntries())[0]
	l, c := srv.countLazy(t, "a", m)
	s := newSetup(t, srv.host+"/a:1").mustOpen(t)
	img := named(t, s, srv.host+"/a:1")
	r := lookInto(t, img)
	r.checkAll()
	eventually(t, "the layer to be local", func() bool { return img.Local(0) })
	if n := c.bytes.Load(); n > l.Size*101/100 {
		t.Errorf("%d bytes of %d", n, l.Size)
	}
	if n := c.asked.Load(); n > 12 {
		t.Errorf("%d requests", n)
	}
}

// The whole that is on its way takes the place of the parts, although nobody has the layer open any more.
func TestLazyLeft(t *testing.T) {
	srv := newServer(t)
	m := lazyImages(t, lazyEntries())[0]
	l := srv.pushLazy("a", "1", m)
	half := make(chan struct{})
	gate := sync.OnceFunc(func() { close(half) })
	defer gate()
	o := newSetup(t, srv.host+"/a:1")
	s := o.mustOpen(t)
	img := named(t, s, srv.host+"/a:1")
	r := lookInto(t, img)
	s.lazyMu.Lock()
	parts := s.parts[l.Digest]
	s.lazyMu.Unlock()
	srv.front(func(w http.ResponseWriter, req *http.Request, next http.Handler) {
		var from, to int64
		if n, _ := fmt.Sscanf(req.Header.Get("Range"), "bytes=%d-%d", &from, &to); n != 2 || from >= l.Size/2 || to < l.Size/2 {
			next.ServeHTTP(w, req)
			return
		}
		next.ServeHTTP(&haltingWriter{w, l.Size/2 - from, half}, req)
	})
	isComing := func() bool {
		parts.mu.Lock()
		defer parts.mu.Unlock()
		return parts.coming
	}
	for n := 0; !isComing(); n++ {
		r.check(fmt.Sprintf("d/%03d", n), lazyFile(n))
	}
	if err := r.files.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the parts to be held by the whole alone", func() bool {
		s.lazyMu.Lock()
		defer s.lazyMu.Unlock()
		return parts.users == 2 // both for the whole: who began it, and what it is made from
	})
	gate()
	eventually(t, "the layer to be local", func() bool { return img.Local(0) })
	eventually(t, "its parts to be removed", func() bool { return !exists(o, rangesPath(l.Digest)) })
}

// A haltingWriter sends left bytes, and the others when it may.
type haltingWriter struct {
	http.ResponseWriter
	left int64
	may  <-chan struct{}
}

func (w *haltingWriter) Write(p []byte) (int, error) {
	if w.left -= int64(len(p)); w.left < 0 {
		<-w.may
	}
	return w.ResponseWriter.Write(p)
}

// Who reads a large file on and on finds that what comes next is on its way.
func TestLazyAhead(t *testing.T) {
	srv := newServer(t)
	m := lazyImages(t, []images.Entry{images.File("a", noise(8<<20)), images.File("b", noise(24<<20))})[1]
	_, c := srv.countLazy(t, "a", m)
	r := lookInto(t, named(t, newSetup(t, srv.host+"/a:1").mustOpen(t), srv.host+"/a:1"))
	p, b := r.place("b"), make([]byte, 128<<10)
	asked := c.asked.Load()
	for off := int64(1 << 20); c.asked.Load() < asked+3; off += int64(len(b)) { // windows of 64, 256 and 1024 KiB
		if _, err := r.files.ReadBody(t.Context(), p.Body, b, off); err != nil {
			t.Fatal(err)
		}
		if off > 4<<20 {
			t.Fatalf("%d requests", c.asked.Load()-asked)
		}
		if c.asked.Load() == asked+3 {
			if _, err := r.files.ReadBody(t.Context(), p.Body, b, off+600<<10); err != nil {
				t.Fatal(err)
			}
		}
	}
	eventually(t, "more to be asked for", func() bool { return c.asked.Load() == asked+4 })
}

// Of a layer that is mostly here, by parts that others have read before, only what is missing comes.
func TestLazyMostlyHere(t *testing.T) {
	srv := newServer(t)
	for _, m := range lazyImages(t, lazyEntries()) {
		t.Run(m.form, func(t *testing.T) {
			l, c := srv.countLazy(t, m.form, m)
			o := newSetup(t, srv.host+"/"+m.form+":1")
			again := func(first, last int) *reader {
				o.newCache(t)
				r := lookInto(t, named(t, o.mustOpen(t), srv.host+"/"+m.form+":1"))
				for n := first; n < last; n++ {
					r.check(fmt.Sprintf("d/%03d", n), lazyFile(n))
				}
				return r
			}
			again(100, 220)
			again(250, 370)
			again(0, 0).check("large", noise(1<<20))
			if whole, n := c.whole.Load(), c.bytes.Load(); whole > 0 || n < l.Size/2 {
				t.Fatalf("%d bytes of %d by parts, and the whole %d times", n, l.Size, whole)
			}
			asked := c.asked.Load()
			again(0, 0).checkAll()
			if n, whole := c.bytes.Load(), c.whole.Load(); n > l.Size*101/100 || whole > 0 {
				t.Errorf("%d bytes of %d for all files, and the whole %d times", n, l.Size, whole)
			}
			if n := c.asked.Load() - asked; n > 20 {
				t.Errorf("%d requests for the rest", n)
			}
		})
	}
}

// Who reads what is here by parts, while the whole blob has come, has nothing asked for ahead of him.
func TestLazyNotAhead(t *testing.T) {
	srv := newServer(t)
	m := lazyImages(t, []images.Entry{images.File("a", noise(8<<20)), images.File("b", noise(24<<20))})[1]
	l := srv.pushLazy("a", "1", m)
	s := newSetup(t, srv.host+"/a:1").mustOpen(t)
	img := named(t, s, srv.host+"/a:1")
	r := lookInto(t, img)
	s.lazyMu.Lock()
	parts := s.parts[l.Digest]
	s.lazyMu.Unlock()
	asked := func() int64 {
		parts.mu.Lock()
		defer parts.mu.Unlock()
		return parts.asked
	}
	p, b, off := r.place("b"), make([]byte, 128<<10), int64(1<<20)
	read := func(off int64) {
		t.Helper()
		if _, err := r.files.ReadBody(t.Context(), p.Body, b, off); err != nil {
			t.Fatal(err)
		}
	}
	for before := asked(); asked() < before+3; off += int64(len(b)) { // windows of 64, 256 and 1024 KiB
		read(off)
	}
	if got, err := readBlob(t, img, l.Digest); err != nil || !bytes.Equal(got, m.blob) {
		t.Fatalf("blob: %v", err)
	}
	for before := asked(); off < 4<<20; off += int64(len(b)) {
		if read(off); asked() != before {
			t.Fatal("more was asked for")
		}
	}
}
