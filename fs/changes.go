package fs

import (
	"context"
	"strconv"

	"github.com/imgfs/imgfs/imgsrc/layer"
)

func (img *image) changesKey(n int) treeKey { return treeKey{img.slot, diffView(n)} }

func (img *image) knowsChanges(n int) bool {
	_, ok := img.f.lists.get(img.changesKey(n))
	return ok
}

// changes returns what layer n does to the ones below it.
func (img *image) changes(ctx context.Context, n int) ([]byte, error) {
	if list, ok := img.f.lists.get(img.changesKey(n)); ok {
		return list, nil
	}
	res, err := img.shared(ctx, "changes "+strconv.Itoa(int(img.slot))+" "+strconv.Itoa(n), func(ctx context.Context) (any, error) {
		indexes, _, err := img.indexes(ctx, 0, n+1)
		if err != nil {
			return nil, err
		}
		list, err := layer.Changes(ctx, indexes[:n], indexes[n])
		if err != nil {
			return nil, err
		}
		img.f.lists.put(img.changesKey(n), list, int64(len(list)))
		return list, nil
	})
	if err != nil {
		return nil, err
	}
	return res.([]byte), nil
}
