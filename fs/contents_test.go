package fs

import (
	"testing"

	"github.com/imgfs/imgfs/imgsrc"
)

// countedContent counts how often it is closed.
type countedContent struct {
	imgsrc.Content
	closed *int
}

func (c countedContent) Close() error {
	*c.closed++
	return nil
}

func TestContentCache(t *testing.T) {
	closed, opens := map[int]*int{}, 0
	c := newOpenCache[imgsrc.Content](2)
	get := func(layer int) *opened[imgsrc.Content] {
		t.Helper()
		o, err := c.get(contentKey{slot: 1, layer: layer, kind: contentDiff}, func() (imgsrc.Content, error) {
			opens++
			if closed[layer] == nil {
				closed[layer] = new(int)
			}
			return countedContent{closed: closed[layer]}, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	expect := func(what string, want ...int) {
		t.Helper()
		for layer, n := range want {
			if closed[layer] != nil && *closed[layer] != n || closed[layer] == nil && n != 0 {
				t.Errorf("%s: layer %d was closed %v times, want %d", what, layer, closed[layer], n)
			}
		}
	}
	used := get(0)
	get(0).release()
	if opens != 1 {
		t.Errorf("opened %d times", opens)
	}
	get(1).release()
	get(2).release() // throws out 0, which is in use
	expect("in use", 0, 0, 0)
	used.release()
	expect("thrown out and released", 1, 0, 0)
	get(0).release() // opened again; throws out 1
	expect("the least recently used", 1, 1, 0)
	used = get(2)
	c.forget(1)
	expect("the image is gone", 2, 1, 0)
	used.release()
	expect("and its last reader", 2, 1, 1)
	c.forget(7)
	c.close()
	if c.order.Len() != 0 || len(c.byKey) != 0 {
		t.Errorf("%d and %d are left", c.order.Len(), len(c.byKey))
	}
}

// Where few files may be open, most of them are for what is being read.
func TestOpenLimit(t *testing.T) {
	for files, want := range map[uint64]int{1 << 20: openContents, 1024: openContents, 256: 16, 64: 4, 3: 1} {
		if got := openLimit(files); got != want {
			t.Errorf("of %d files %d, want %d", files, got, want)
		}
	}
	if openFiles() < 3 {
		t.Errorf("%d files", openFiles())
	}
}
