package ops

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/types"

	"github.com/imgfs/imgfs/imgsrc"
)

// manifestOf is the manifest of an image.
func manifestOf(t *testing.T, img *fakeImage) (m imgspecv1.Manifest) {
	t.Helper()
	if err := json.Unmarshal(img.manifest, &m); err != nil {
		t.Fatal(err)
	}
	return m
}

// bytesOf is how many bytes the manifests of images name, each blob once, but for some.
func bytesOf(t *testing.T, images []*fakeImage, without ...digest.Digest) (n int64) {
	t.Helper()
	for _, img := range images {
		m := manifestOf(t, img)
		for _, d := range append(m.Layers, m.Config) {
			if !slices.Contains(without, d.Digest) {
				n += d.Size
				without = append(without, d.Digest)
			}
		}
	}
	return n
}

// A pull says how much there is to fetch while its first layer comes, and asks for one manifest more than it would without
// that, where it is an index.
func TestPullTotal(t *testing.T) {
	shared := tarOf("shared", noise(100_000))
	one := newImage(t, imgspecv1.MediaTypeImageManifest, true, "one", shared, tarOf("a", noise(200_000)), tarOf("b", noise(300_000)))
	two := newImage(t, imgspecv1.MediaTypeImageManifest, true, "two", shared, tarOf("c", noise(50_000)))
	foreign := newImage(t, imgspecv1.MediaTypeImageManifest, true, "foreign", shared, tarOf("d", noise(70_000)))
	m := manifestOf(t, foreign)
	m.Layers[1].URLs = []string{"http://127.0.0.1:1/none"}
	foreign.manifest = mustJSON(t, m)
	foreign.desc.Digest, foreign.desc.Size = digest.FromBytes(foreign.manifest), int64(len(foreign.manifest))
	index := newIndex(t, one, two)
	last, other := manifestOf(t, one).Layers[2].Digest, manifestOf(t, two).Layers[1].Digest
	for _, test := range []struct {
		name      string
		pushed    []*fakeImage
		words     []string
		has       []digest.Digest
		foreign   bool
		apart     bool // indexes are
		total     int64
		manifests int32
	}{
		{"one", []*fakeImage{one}, nil, nil, false, false, bytesOf(t, []*fakeImage{one}), 1},
		{"its last layer is there", []*fakeImage{one}, nil, []digest.Digest{last}, false, false, bytesOf(t, []*fakeImage{one}, last), 1},
		{"index", []*fakeImage{index, one, two}, nil, nil, false, false, bytesOf(t, []*fakeImage{one}), 3},
		{"another platform", []*fakeImage{index, one, two}, []string{"platform=linux/arm64"}, nil, false, false, bytesOf(t, []*fakeImage{two}), 3},
		{"all", []*fakeImage{index, one, two}, []string{"all=true"}, nil, false, false, bytesOf(t, []*fakeImage{one, two}), 5},
		{"all, apart", []*fakeImage{index, one, two}, []string{"all=true"}, []digest.Digest{other}, false, true, bytesOf(t, []*fakeImage{one, two}, other), 5},
		{"all of one", []*fakeImage{one}, []string{"all=true"}, nil, false, true, bytesOf(t, []*fakeImage{one}), 2},
		{"foreign", []*fakeImage{foreign}, nil, nil, true, false, bytesOf(t, []*fakeImage{foreign}, m.Layers[1].Digest), 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newHeldRegistry(t)
			from, _ := newOps(t, Options{}, test.pushed...)
			if err := from.Do(t.Context(), pushTo(test.pushed[0], h.host+"/web:1", "all=true")); err != nil {
				t.Fatal(err)
			}
			h.manifests.Store(0)
			knowing := &knowingReceiver{receiving: newReceiving(t), has: test.has, foreign: test.foreign}
			var to imgsrc.Source = knowing
			if test.apart {
				to = &indexReceiving{knowing}
			}
			o, _ := newOpsOn(t, Options{Platform: imgsrc.Platform{OS: "linux", Architecture: "amd64"}}, to)
			err := make(chan error)
			go func() {
				err <- o.Do(t.Context(), request("pull", append([]string{h.host + "/web:1"}, test.words...)...))
			}()
			<-h.held
			j := jobOf(t, o, 1)
			if j.State != taskRunning || j.Total == nil || *j.Total != test.total || j.Bytes >= test.total {
				t.Errorf("%+v", j)
			}
			for _, b := range j.Blobs {
				if skipped := slices.Contains(test.has, b.Digest); (b.State == "skipped") != skipped {
					t.Errorf("blob %+v", b)
				}
			}
			close(h.gate)
			if err := <-err; err != nil {
				t.Fatal(err)
			}
			j = jobOf(t, o, 1)
			if j.State != taskDone || *j.Total != test.total || j.Bytes != test.total {
				t.Errorf("%+v", j)
			}
			if n := h.manifests.Load(); n != test.manifests {
				t.Errorf("asked for manifests %d times, not %d", n, test.manifests)
			}
		})
	}
}

// A pull that is begun again has as much to fetch as before, and does not look at the image of the index once more.
func TestPullTotalAgain(t *testing.T) {
	img := newImage(t, imgspecv1.MediaTypeImageManifest, true, "", tarOf("a", noise(100_000)), tarOf("b", noise(101_000)))
	index := newIndex(t, img)
	h := newHeldRegistry(t)
	from, _ := newOps(t, Options{}, index, img)
	if err := from.Do(t.Context(), pushTo(index, h.host+"/web:1", "all=true")); err != nil {
		t.Fatal(err)
	}
	h.manifests.Store(0)
	h.busy.Store(2)
	to := &knowingReceiver{receiving: newReceiving(t)}
	o, _ := newOpsOn(t, Options{Platform: imgsrc.Platform{OS: "linux", Architecture: "amd64"}}, to)
	err := make(chan error)
	go func() { err <- o.Do(t.Context(), request("pull", h.host+"/web:1")) }()
	<-h.held
	total := bytesOf(t, []*fakeImage{img})
	if j := jobOf(t, o, 1); j.Retries != 1 || j.Total == nil || *j.Total != total || len(j.Blobs) != 3 {
		t.Errorf("%+v", j)
	}
	close(h.gate)
	if err := <-err; err != nil {
		t.Fatal(err)
	}
	if j := jobOf(t, o, 1); *j.Total != total || j.Bytes != total {
		t.Errorf("%+v", j)
	}
	if n := h.manifests.Load(); n != 3+2 {
		t.Errorf("asked for manifests %d times", n)
	}
}

// What an index's image cannot be had for is said once, and asked for once; who cancels the job does not wait for it.
func TestPullTotalWithoutImage(t *testing.T) {
	img := testImages(t)["oci with blobs"]
	index := newIndex(t, img)
	for name, test := range map[string]struct {
		answer http.HandlerFunc
		cancel bool
		want   error
		text   string
	}{
		"denied": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }, false, imgsrc.ErrDenied, "podman login"},
		"hangs":  {func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, true, syscall.ECANCELED, "cancelled by user 7"},
	} {
		t.Run(name, func(t *testing.T) {
			var begun atomic.Bool
			asked := make(chan struct{}, 10)
			host := startEmbedded(t, func(next http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if begun.Load() && strings.HasSuffix(r.URL.Path, string(img.desc.Digest)) {
						asked <- struct{}{}
						test.answer(w, r)
						return
					}
					next.ServeHTTP(w, r)
				})
			})
			from, _ := newOps(t, Options{}, index, img)
			if err := from.Do(t.Context(), pushTo(index, host+"/web:1", "all=true")); err != nil {
				t.Fatal(err)
			}
			begun.Store(true)
			o, _ := newOpsOn(t, Options{Platform: imgsrc.Platform{OS: "linux", Architecture: "amd64"}}, newReceiving(t))
			done := make(chan error)
			go func() { done <- o.Do(t.Context(), request("pull", host+"/web:1")) }()
			<-asked
			if test.cancel {
				if err := o.WriteJob(1, Request{UID: 7, Lines: [][]string{{"cancel"}}}); err != nil {
					t.Error(err)
				}
			}
			err := <-done
			if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.text) || strings.Count(err.Error(), string(img.desc.Digest)) > 1 {
				t.Errorf("%v", err)
			}
			if n := len(asked); n > 0 {
				t.Errorf("asked %d times more", n)
			}
		})
	}
}

// A load of several images says how much there is to read of all of them before it begins with the first.
func TestLoadTotal(t *testing.T) {
	shared := tarOf("shared", noise(100_000))
	var images []*fakeImage
	for _, name := range []string{"a", "b", "c"} {
		images = append(images, newImage(t, imgspecv1.MediaTypeImageManifest, true, name, shared, tarOf(name, noise(200_000))))
	}
	there := manifestOf(t, images[2]).Layers[1].Digest
	var listed []imgsrc.Listed
	for _, img := range images {
		listed = append(listed, imgsrc.Listed{Image: img, Names: []string{"localhost/" + img.desc.ID[:12] + ":1"}})
	}
	dir := t.TempDir()
	to := &knowingReceiver{receiving: newReceiving(t), has: []digest.Digest{there}}
	to.images = listed[:1]
	o, _ := newOpsOn(t, Options{Open: opens(dir, &fakeSource{name: "oci:" + dir, images: listed})}, to)
	var checked, first, second jobJSON
	images[2].read = func(context.Context, int64) error {
		if checked.Number == 0 {
			checked = jobOf(t, o, 1)
		}
		return nil
	}
	to.asked = func() {
		if first, second = second, jobOf(t, o, 1); first.Number == 0 {
			time.Sleep(shownEvery) // until a job's text is made anew
		}
	}
	if err := o.Do(t.Context(), request("load", dir)); err != nil {
		t.Fatal(err)
	}
	all := bytesOf(t, images[1:])
	if total := checked.Total; total == nil || *total != all {
		t.Errorf("while the layers are checked: %+v", checked)
	}
	if total := first.Total; total == nil || *total != all || first.Bytes != 0 {
		t.Errorf("before the first image: %+v", first)
	}
	all = bytesOf(t, images[1:], there)
	if total := second.Total; total == nil || *total != all {
		t.Errorf("before the second image: %+v", second)
	}
	if j := jobOf(t, o, 1); j.State != taskDone || *j.Total != all || j.Bytes != all {
		t.Errorf("%+v", j)
	}
}

func TestTaskPlan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, _ := newOps(t, Options{})
		_, task := o.begin(t.Context(), operation{kind: "pull"})
		task.run()
		blob := func(name string, size int64) types.BlobInfo {
			return types.BlobInfo{Digest: digest.FromString(name), Size: size}
		}
		is := func(when string, total, bytes int64, states ...string) {
			t.Helper()
			time.Sleep(shownEvery)
			j := jobOf(t, o, 1)
			var got []string
			for _, b := range j.Blobs {
				got = append(got, b.State)
			}
			if (j.Total == nil) != (total < 0) || j.Total != nil && *j.Total != total || j.Bytes != bytes || !slices.Equal(got, states) {
				t.Errorf("%s: %+v", when, j)
			}
		}
		first := blobPlan{configs: []types.BlobInfo{blob("config", 10)}, layers: []types.BlobInfo{blob("done", 100), blob("cut", 200), blob("old", 400)}, whole: true}
		task.plan(first)
		is("planned", 710, 0, "waiting", "waiting", "waiting", "waiting")
		done := task.blob(first.layers[0].Digest, -1)
		done.begun()
		done.add(100)
		done.finished()
		for _, l := range first.layers[1:] {
			b := task.blob(l.Digest, -1)
			b.begun()
			b.add(50)
		}
		is("begun", 710, 200, "waiting", "done", "running", "running")
		second := first
		second.layers = []types.BlobInfo{first.layers[0], first.layers[1], blob("there", 800)}
		second.there = []digest.Digest{second.layers[2].Digest}
		task.plan(second)
		is("the tag has moved", 310, 100, "waiting", "done", "waiting", "skipped")
		parts := task.blob(second.layers[1].Digest, -1)
		parts.begun()
		parts.add(30)
		parts.finished()
		is("by parts", 140, 130, "waiting", "done", "done", "skipped")
		task.plan(blobPlan{})
		is("another registry", -1, 130, "done", "done")
		task.plan(blobPlan{layers: []types.BlobInfo{blob("huge", 1<<63-1)}, whole: true})
		is("more than there can be", -1, 130, "done", "done", "waiting")
		task.plan(blobPlan{layers: []types.BlobInfo{blob("unknown", -1)}, whole: true})
		is("of unknown size", -1, 130, "done", "done", "waiting")
		task.plan(first)
		_ = task.end(nil)
		is("at the end", 130, 130, "done", "done", "skipped", "skipped")
	})
}
