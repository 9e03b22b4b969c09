package sourcetest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/sourcetest"
	"github.com/imgfs/imgfs/imgsrc/storage"
	"github.com/imgfs/imgfs/test/images"
	"github.com/imgfs/imgfs/test/servers"
)

// TestDamaged puts images with damaged layers into every form, and one with a sparse file: what is not damaged is the same
// everywhere, and what is damaged fails everywhere in the same way.
func TestDamaged(t *testing.T) {
	s := sampleOf(t, images.Damaged, func(l *images.Layout) error {
		_, err := l.Add(images.Image{Layers: []images.Layer{{Entries: []images.Entry{
			images.File("before", "before\n"), images.Sparse("sparse", 1<<20, "headtail", images.Extent{Offset: 0, Length: 4}, images.Extent{Offset: 1<<20 - 4, Length: 4}),
			images.File("behind", "behind\n"),
		}}}}, "localhost/sparse:1")
		return err
	})
	for _, f := range forms {
		if f.toc {
			continue // no image here has one
		}
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			for _, p := range f.make(t, s, f.of(s.images)) {
				sourcetest.RunSame(t, p.open, f.expect(p))
			}
		})
	}
}

// TestSpoilt changes a byte of a layer where it lies, or takes the layer away, in all forms that are files and in a registry:
// the layer is damaged then, and the rest of the image is not.
func TestSpoilt(t *testing.T) {
	files := []string{
		"oci", "oci-archive", "oci-archive, compressed", "docker-archive with a layout", "dir", "docker-archive", "docker-archive with compressed layers",
	}
	for _, test := range []struct {
		name string
		how  func([]byte) []byte
	}{
		{"rotten", rot},
		{"missing", func([]byte) []byte { return nil }},
	} {
		for _, f := range forms {
			if !slices.Contains(files, f.name) {
				continue
			}
			t.Run(test.name+"/"+f.name, func(t *testing.T) {
				s, want := spoilt(t, test.how)
				for _, p := range f.make(t, s, s.images) {
					p.images = same(p.images, want)
					sourcetest.RunSame(t, p.open, f.expect(p))
				}
			})
		}
		if test.name == "missing" { // what is rotten there are single files: see package storage
			for _, driver := range []string{"overlay", "vfs"} {
				t.Run("missing/containers-storage, "+driver, func(t *testing.T) { lostInStore(t, driver) })
			}
		}
		t.Run(test.name+"/docker", func(t *testing.T) {
			s, want := spoilt(t, test.how)
			sound := newApp(t) // what is pushed is compared with its digest
			f := form{make: inRegistry(func(t *testing.T) string {
				return servers.Serve(t, spoiling(servers.NewRegistry(), want[0].Layers[2].Digest, test.how))
			}, false, true)}
			for _, p := range f.make(t, s, sound.images) {
				p.images = same(p.images, want)
				sourcetest.RunSame(t, p.open, f.expect(p))
			}
		})
	}
}

// lostInStore takes a layer's files away from a store.
func lostInStore(t *testing.T, driver string) {
	s, want := spoilt(t, func([]byte) []byte { return nil })
	sound, r := newApp(t), newStore(t, driver)
	for _, img := range sound.images {
		if err := r.take(t, img); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(filepath.Join(r.root, driver+"-layers", "layers.json"))
	if err != nil {
		t.Fatal(err)
	}
	var layers []struct {
		ID     string
		DiffID digest.Digest `json:"diff-digest"`
	}
	if err := json.Unmarshal(text, &layers); err != nil {
		t.Fatal(err)
	}
	at := map[string]string{"overlay": filepath.Join(r.root, "overlay"), "vfs": filepath.Join(r.root, "vfs", "dir")}[driver]
	lost := 0
	for _, l := range layers {
		if l.DiffID == want[0].Layers[2].DiffID {
			lost++
			if err := os.RemoveAll(filepath.Join(at, l.ID)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if lost != 1 {
		t.Fatalf("%d layers with the diff id", lost)
	}
	o := storage.Options{GraphRoot: r.root, RunRoot: r.run, Driver: driver, Log: discard}
	for _, p := range one(same(s.images, want), func(ctx context.Context) (*storage.Source, error) { return storage.Open(ctx, o) }) {
		f := form{names: fullNames, unpacked: true, noSparse: true}
		sourcetest.RunSame(t, p.open, f.expect(p))
	}
}

// newApp is a sample of two images that share no layer.
func newApp(t *testing.T) *sample {
	t.Helper()
	return sampleOf(t, func(l *images.Layout) error {
		_, err := l.Add(images.App(), "localhost/app:1.0")
		return err
	}, func(l *images.Layout) error {
		_, err := l.Add(images.Files(3), "localhost/files:1")
		return err
	})
}

// spoilt is newApp with the last layer of app as how makes it (nil: it is not there), and what the images are then.
func spoilt(t *testing.T, how func([]byte) []byte) (s *sample, want []*sourcetest.Image) {
	t.Helper()
	s = newApp(t)
	for _, img := range s.images {
		own := *img
		own.Layers = slices.Clone(img.Layers)
		want = append(want, &own)
	}
	err := fmt.Errorf("%w: it was spoilt", imgsrc.ErrDamaged)
	l := &want[0].Layers[2]
	l.BlobErr, l.DiffErr, l.TarErr = err, err, err
	bad := &s.images[0].Layers[2]
	bad.Blob, bad.Diff = how(bad.Blob), how(bad.Diff)
	file := filepath.Join(s.dir, "blobs", "sha256", bad.Digest.Encoded())
	err = os.Remove(file)
	if bad.Blob != nil {
		err = os.WriteFile(file, bad.Blob, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	return s, want
}

// rot changes a byte in the middle.
func rot(b []byte) []byte {
	b = bytes.Clone(b)
	b[len(b)/2] ^= 1
	return b
}

// spoiling is a registry whose disk has a blob as how makes it.
func spoiling(next http.Handler, d digest.Digest, how func([]byte) []byte) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, "/blobs/"+d.String()) {
			next.ServeHTTP(w, r)
			return
		}
		r.Header.Del("Range")
		answer := httptest.NewRecorder()
		next.ServeHTTP(answer, r)
		b := how(answer.Body.Bytes())
		if b == nil {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(b)))
		w.WriteHeader(answer.Code)
		_, _ = w.Write(b)
	})
}

// same are what the images of a place should be.
func same(all, want []*sourcetest.Image) []*sourcetest.Image {
	var list []*sourcetest.Image
	for _, img := range all {
		i := slices.IndexFunc(want, func(w *sourcetest.Image) bool { return w.Digest == img.Digest })
		list = append(list, want[i])
	}
	return list
}
