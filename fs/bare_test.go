package fs

import (
	"context"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
)

// lateImage is an image whose config takes its time.
type lateImage struct {
	*fakeImage
	late    *atomic.Int64 // a time.Duration
	reading func()        // called when the manifest is read; may be nil
}

func (i lateImage) Manifest(ctx context.Context) ([]byte, error) {
	if i.reading != nil {
		i.reading()
	}
	return i.fakeImage.Manifest(ctx)
}

func (i lateImage) Config(ctx context.Context) ([]byte, error) {
	select {
	case <-time.After(time.Duration(i.late.Load())):
		return i.config, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func newLate(img *fakeImage, late time.Duration) lateImage {
	i := lateImage{fakeImage: img, late: new(atomic.Int64)}
	i.late.Store(int64(late))
	return i
}

// A file that is open stays what it is when another manifest stands for the image, also while the config does not come.
func TestBareOfReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		img := makeImage(t, "a", "one")
		store, far := &fakeSource{}, &fakeSource{}
		far.set(named(newLate(img, 5*time.Second)))
		f := treeOf(t, store, far)
		manifest := find(t, f, idsNode, img.desc.ID, "manifest.json")
		other := *img
		other.manifest = append(slices.Clone(img.manifest), '\n')
		other.desc.Digest = digest.FromBytes(other.manifest)
		store.set(named(newLate(&other, 5*time.Second)))
		f.refresh(t.Context())
		time.Sleep(10 * time.Second)
		f.rendered.forget(manifest.image()) // as if it had made room
		if got := readAll(t, f, manifest, int64(len(img.manifest))); got != string(img.manifest) {
			t.Errorf("it is %q", got)
		}
		time.Sleep(10 * time.Second)
	})
}

// An answer without the config ends with the rendering that it stood in for, also if that was faster in the end: the next has its
// own second.
func TestBareThatComesLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		late := newLate(makeImage(t, "a", "one"), configPatience+time.Millisecond)
		var reads atomic.Int32
		late.reading = func() {
			if reads.Add(1) == 2 { // without the config: the other rendering ends meanwhile
				time.Sleep(time.Second)
			}
		}
		f, _, _ := newTree(t, named(late))
		img := f.image(1)
		if r, err := img.renderBare(t.Context()); err != nil || !r.damaged || reads.Load() != 2 {
			t.Fatalf("the config came: %v, %d reads", err, reads.Load())
		}
		f.rendered.forget(img.slot)
		late.late.Store(int64(configPatience / 2))
		go img.render(t.Context())
		synctest.Wait()
		if r, err := img.renderBare(t.Context()); err != nil || !r.created.Equal(createdAt) {
			t.Errorf("it is of %s, %v", r.created, err)
		}
	})
}
