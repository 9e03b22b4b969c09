package storage

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/imgfs/imgfs/imgsrc"
)

// What two stores have recorded of one image is one image.
func TestRecordedTwice(t *testing.T) {
	for _, tt := range []struct {
		what   string
		change func(first map[string]any) // the record of the first store, which is the other's at the beginning
		files  bool                       // the first store has the image's files
		want   []string
	}{
		{"podman 4", func(r map[string]any) {
			for _, key := range []string{"names-history", "big-data-names", "big-data-digests", "big-data-sizes"} {
				delete(r, key)
			}
			r["names"] = []string{"localhost/new:1"}
		}, false, []string{"localhost/new:1", "localhost/old:1"}},
		{"podman 4, again", func(r map[string]any) {
			delete(r, "big-data-names")
			delete(r, "big-data-digests")
			r["names"], r["names-history"] = []string{"localhost/old:1"}, []string{"localhost/new:1", "localhost/old:1"}
		}, false, []string{"localhost/old:1"}},
		{"a copy", func(r map[string]any) { r["names"] = []string{"localhost/new:1", "localhost/old:1"} }, true,
			[]string{"localhost/new:1", "localhost/old:1"}},
		{"a name that was taken away", func(r map[string]any) {
			r["names"], r["names-history"] = []string{"localhost/new:1"}, []string{"localhost/new:1", "localhost/old:1"}
		}, true, []string{"localhost/new:1"}},
		{"no name left", func(r map[string]any) { r["names"], r["names-history"] = nil, []string{"localhost/old:1"} }, false, nil},
	} {
		t.Run(tt.what, func(t *testing.T) {
			mine, other := newMade(t), newMade(t)
			id, d := other.add("localhost/old:1")
			other.save()
			record := maps.Clone(other.records[0].(map[string]any))
			tt.change(record)
			mine.records = []any{record}
			mine.save()
			files := filepath.Join(other.images(), id)
			if tt.files {
				if err := os.CopyFS(filepath.Join(mine.images(), id), os.DirFS(files)); err != nil {
					t.Fatal(err)
				}
			}
			s := mine.source
			s.stores = append(s.stores, other.dir)

			list, err := s.List(t.Context())
			if err != nil || len(list.Images) != 1 || len(list.Problems) > 0 {
				t.Fatalf("%+v, %v", list, err)
			}
			img := list.Images[0]
			if desc := img.Desc(); desc.ID != id || desc.Digest != d || desc.Damaged != nil || !slices.Equal(img.Names, tt.want) {
				t.Errorf("%+v with the names %q", desc, img.Names)
			}
			read := func() error {
				_, err1 := img.Manifest(t.Context())
				_, err2 := img.Config(t.Context())
				return errors.Join(err1, err2)
			}
			if err := read(); err != nil {
				t.Error(err)
			}
			if err := os.RemoveAll(files); err != nil {
				t.Fatal(err)
			}
			switch err := read(); {
			case tt.files && err != nil:
				t.Errorf("the first store has it, and: %v", err)
			case !tt.files && (!errors.Is(err, imgsrc.ErrDamaged) || errors.Is(err, imgsrc.ErrNotFound)):
				t.Errorf("no store has its files: %v", err)
			}
		})
	}
}
