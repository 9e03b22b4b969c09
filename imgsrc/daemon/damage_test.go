package daemon

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/blobs"
	"github.com/imgfs/imgfs/imgsrc/sourcetest"
)

// A name of a MiB is nothing in what an engine sends, and must not be kept.
func TestLongNames(t *testing.T) {
	long := strings.Repeat("a", blobs.MaxPath+1)
	b := tarOf(t, tarFile{name: long, body: []byte("x")}, tarFile{name: "to", link: long}, tarFile{name: "a", body: []byte("kept")})
	a, err := readArchive(t.Context(), bytes.NewReader(b), int64(len(b)))
	if err != nil || a.members.Len() != 1 {
		t.Fatalf("more than one member is kept, or none: %v", err)
	}
	if got, err := a.read("a"); err != nil || string(got) != "kept" {
		t.Errorf("%q, %v", got, err)
	}
}

// What comes from the engine is not believed.
func TestDamagedSaves(t *testing.T) {
	p := partsOf(t, layerOf(t, "a"), layerOf(t, "b"))
	good := p.legacy(t)
	other := partsOf(t, layerOf(t, "x"), layerOf(t, "y"))
	_, otherModern := other.modern(t, true)
	manifest := func(v any) tarFile { return tarFile{name: "manifest.json", body: jsonOf(t, v)} }
	config := tarFile{name: "config.json", body: p.config}
	item := func(layers ...string) map[string]any {
		return map[string]any{"Config": "config.json", "Layers": layers}
	}
	for name, test := range map[string]struct {
		archive []byte
		want    error
		text    string
	}{
		"nothing":            {nil, imgsrc.ErrDamaged, "not a tar"},
		"no tar":             {[]byte(strings.Repeat("no tar", 1000)), imgsrc.ErrDamaged, "not a tar"},
		"cut short":          {good[:len(good)/2], imgsrc.ErrDamaged, ""},
		"an error behind it": {append(good[:10_000:10_000], `{"errorDetail":{"message":"the disk is full"},"error":"the disk is full"}`+"\r\n"...), nil, "could not finish: the disk is full"},
		"no manifest":        {tarOf(t, config), imgsrc.ErrDamaged, "no manifest.json"},
		"two images":         {tarOf(t, config, manifest([]any{item(), item()})), imgsrc.ErrDamaged, "2 images"},
		"another image":      {other.legacy(t), imgsrc.ErrDamaged, "which is not image"},
		"another, stored":    {otherModern, imgsrc.ErrDamaged, "which is not image"},
		"too few layers":     {tarOf(t, config, manifest([]any{item()})), imgsrc.ErrDamaged, "0 layers"},
		"a missing layer":    {tarOf(t, config, manifest([]any{item("l0", "l1")})), imgsrc.ErrDamaged, "no l0"},
		"a circle of links": {
			tarOf(t, config, tarFile{name: "l0", link: "l1"}, tarFile{name: "l1", link: "l0"}, manifest([]any{item("l0", "l1")})), imgsrc.ErrDamaged, "no l0",
		},
		"a huge manifest": {tarOf(t, tarFile{name: "manifest.json", body: make([]byte, imgsrc.MaxManifest+1)}), imgsrc.ErrDamaged, "more than"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t, p.image(test.archive, "p:1"))
			dir := t.TempDir()
			s := openSource(t, Options{Host: f.host, CacheDir: dir})
			img := find(t, s, "docker.io/library/p:1")
			for range 3 {
				_, err := img.Config(t.Context())
				if err == nil || test.want != nil && !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.text) || !strings.Contains(err.Error(), p.id()) {
					t.Errorf("%v, want %v with %q", err, test.want, test.text)
				}
			}
			if n := f.count("GET get"); n != 1 {
				t.Errorf("%d saves of an image that cannot be saved", n)
			}
			if open := spools(t, dir); len(open) > 0 {
				t.Errorf("files are still open: %v", open)
			}
		})
	}
}

// An engine does not save an image without layers. That is so however often it is asked, and no other image's trouble.
func TestNoLayers(t *testing.T) {
	f := newFake(t, partsOf(t).image(nil, "p:1"))
	f.save = func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusInternalServerError)
		_, _ = io.WriteString(w, `{"message":"empty export - not implemented"}`)
	}
	_, err := find(t, openSource(t, Options{Host: f.host}), "docker.io/library/p:1").Manifest(t.Context())
	if !errors.Is(err, imgsrc.ErrUnsupported) || !strings.Contains(err.Error(), "without layers") {
		t.Error(err)
	}
}

// A layer that is not its diff id is damaged; the others are read.
func TestDamagedLayer(t *testing.T) {
	p := partsOf(t, layerOf(t, "a"), layerOf(t, "b"))
	q := parts{p.config, [][]byte{p.layers[0], layerOf(t, "c")}}
	f := newFake(t, p.image(q.legacy(t), "p:1"))
	s := openSource(t, Options{Host: f.host})
	img := find(t, s, "docker.io/library/p:1")
	for n, want := range []error{nil, imgsrc.ErrDamaged} {
		c, err := img.Diff(t.Context(), n)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := sourcetest.ReadAll(t.Context(), c); !errors.Is(err, want) || want != nil && len(b) > 0 {
			t.Errorf("layer %d: %d bytes, %v", n, len(b), err)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestBrokenConnections(t *testing.T) {
	images := three(t)
	f := newFake(t, images...)
	var broken atomic.Bool
	broken.Store(true)
	f.save = func(w http.ResponseWriter, _ *http.Request) {
		if !broken.Load() {
			_, _ = w.Write(images[0].archive)
			return
		}
		_, _ = w.Write(images[0].archive[:20_000])
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
	s := openSource(t, Options{Host: f.host})
	img := find(t, s, "docker.io/library/a:1")
	if _, err := img.Config(t.Context()); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a save that breaks off: %v", err)
	}
	broken.Store(false)
	s.failed.Put(images[0].id, nil, time.Now()) // the time that a failure stands
	checkLayers(t, img)
}

func TestRecordsThatAreDamaged(t *testing.T) {
	f := newFake(t, three(t)...)
	o := Options{Host: f.host, CacheDir: t.TempDir()}
	o.Cache = testCache(t, o.CacheDir, 0)
	img := find(t, openSource(t, o), "docker.io/library/a:1")
	want, err := img.Manifest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(o.CacheDir, recordsDir)
	file := filepath.Join(dir, img.Desc().ID)
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for what, b := range map[string][]byte{
		"empty":     {},
		"cut short": good[:len(good)-1],
		"edited":    bytes.Replace(good, []byte(`"sizes":[`), []byte(`"sizes":[1`), 1),
		"another's": []byte(recordSum(strings.Repeat("0", 64), good[65:]) + "\n" + string(good[65:])),
	} {
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		img := find(t, openSource(t, o), "docker.io/library/a:1")
		if d := img.Desc(); d.Digest != "" {
			t.Errorf("%s: the digest is %s", what, d.Digest)
		}
		if got, err := img.Manifest(t.Context()); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %v, %s", what, err, got)
		}
	}
	// A directory that goes while it is used costs nothing but its files.
	if err := os.RemoveAll(o.CacheDir); err != nil {
		t.Fatal(err)
	}
	s := openSource(t, o)
	if err := os.RemoveAll(o.CacheDir); err != nil {
		t.Fatal(err)
	}
	checkLayers(t, find(t, s, "docker.io/library/b:1"))
}

func TestRecordsAreBounded(t *testing.T) {
	dir := t.TempDir()
	r := openRecords(dir, openSource(t, Options{Host: newFake(t).host}).log)
	defer r.close()
	p := partsOf(t, layerOf(t, "a"))
	doc, err := newDocument(p.config, p.diffIDs(), []int64{1})
	if err != nil {
		t.Fatal(err)
	}
	for n := range maxRecords + maxRecords/8 {
		r.store(fmt.Sprintf("%064x", n), doc)
	}
	files, err := os.ReadDir(filepath.Join(dir, recordsDir))
	if err != nil || len(files) > maxRecords+maxRecords/16 {
		t.Errorf("%d files, %v", len(files), err)
	}
}
