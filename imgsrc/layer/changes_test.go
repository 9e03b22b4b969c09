package layer

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/imgfs/imgfs/imgsrc"
)

func TestChanges(t *testing.T) {
	below := []entries{{
		dir("same", 0o755), reg("same/x", "1"), dir("op", 0o755), reg("op/old", "1"), reg("op/keep", "1"), reg("f2d", "1"), dir("d2f", 0o755),
		reg("d2f/q", "1"), dir("gone", 0o755), reg("gone/a", "1"), dir("chg", 0o755), dir("w", 0o755), reg("w/a", "1"),
		dir("deep", 0o755), dir("deep/er", 0o755), dir("deep/er/still", 0o755),
	}}
	top := entries{
		dir("same", 0o755), reg("same/x", "1"), dir("op", 0o755), reg("op/.wh..wh..opq", ""), reg("op/new", "1"), reg("op/keep", "1"),
		dir("newop", 0o755), reg("newop/.wh..wh..opq", ""), reg("newop/n", "1"), reg(".wh.nothere", ""), reg(".wh.gone", ""),
		dir("f2d", 0o755), reg("f2d/k", "1"), reg("d2f", "1"), dir("chg", 0o700), dir("w", 0o755), reg("w/.wh.a", ""),
		reg("zz/y/x", "1"), reg("new\nline\\", "1"), dir("deep", 0o755), dir("deep/er", 0o700), dir("deep/er/still", 0o755), reg("deep/er/still/a", "1"),
	}
	want := `C /chg
C /d2f
C /deep
C /deep/er
C /deep/er/still
A /deep/er/still/a
C /f2d
A /f2d/k
D /gone
A /new\012line\134
A /newop
A /newop/n
D /nothere
D /op
C /op/keep
A /op/new
C /same/x
C /w
D /w/a
A /zz
A /zz/y
A /zz/y/x
`
	var indexes []*Index
	for _, l := range below {
		indexes = append(indexes, index(t, l))
	}
	got, err := Changes(t.Context(), indexes, index(t, top))
	if err != nil || string(got) != want {
		t.Errorf("%v, got:\n%s\nwant:\n%s", err, got, want)
	}
	if got, err := Changes(t.Context(), nil, index(t, below[0][:2])); err != nil || string(got) != "A /same\nA /same/x\n" {
		t.Errorf("the base: %q, %v", got, err)
	}
}

// longPaths is a layer whose paths take many times what it takes itself.
type longPaths struct{ entries }

func (longPaths) Entries(_ context.Context, emit func(*imgsrc.File) error) error {
	at := strings.Repeat(strings.Repeat("d", 254)+"/", 15)
	for i := range maxChanges/len(at) + 1 {
		if err := emit(&imgsrc.File{Name: fmt.Sprint(at, i), Type: '0'}); err != nil {
			return err
		}
	}
	return nil
}

func (longPaths) Key() imgsrc.FilesKey { return imgsrc.FilesKey{Digest: "sha256:1234"} }

// A list of changes is bounded, and who asks is told which layer it is.
func TestChangesTooLong(t *testing.T) {
	x, err := BuildIndex(t.Context(), longPaths{})
	if err != nil {
		t.Fatal(err)
	}
	if list, err := Changes(t.Context(), nil, x); !errors.Is(err, imgsrc.ErrDamaged) || !strings.Contains(err.Error(), "sha256:1234") {
		t.Errorf("%d bytes, %v, want ErrDamaged naming the layer", len(list), err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Changes(ctx, nil, x); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want context.Canceled", err)
	}
}
