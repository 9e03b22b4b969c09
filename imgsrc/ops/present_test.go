package ops

import (
	"context"
	"io/fs"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/types"

	"github.com/imgfs/imgfs/imgsrc"
)

// A readingDestination reads a blob for a while before it says that it has it.
type readingDestination struct {
	types.ImageDestination
	takes time.Duration
}

func (d *readingDestination) TryReusingBlob(_ context.Context, info types.BlobInfo, _ types.BlobInfoCache, _ bool) (bool, types.BlobInfo, error) {
	time.Sleep(d.takes)
	return true, info, nil
}

// While a destination reads what it has, the other end is not waited for.
func TestLookingForBlobsIsNoSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		watch := &watchdog{limit: time.Minute, bite: cancel, begun: time.Now()}
		go watch.watch(ctx)
		p := &planner{watch: watch, to: &readingDestination{takes: time.Hour}}
		layers := []types.BlobInfo{{Digest: digest.FromString("a")}, {Digest: digest.FromString("b")}}
		if there := p.has(ctx, layers); len(there) != 2 || ctx.Err() != nil {
			t.Errorf("%q, %v", there, context.Cause(ctx))
		}
		cancel(nil)
	})
}

// A distantLayout is a layout whose directory would not answer any more.
type distantLayout struct {
	*tagging
	t    *testing.T
	info fs.FileInfo
}

func (d *distantLayout) IsIn(dir fs.FileInfo) bool { return os.SameFile(d.info, dir) }

func (d *distantLayout) LayoutDir() string {
	d.t.Error("its directory is looked for")
	return d.t.TempDir()
}

func (d *distantLayout) VerifyBlob(context.Context, digest.Digest, int64) (int64, error) {
	return 1, nil
}

// A push to a layout does not wait for the mount's other layouts, and knows its own by what it was when it was opened.
func TestOpenLayoutAsksNoOther(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	var sources []imgsrc.Source
	for _, at := range []string{other, dir} {
		info, err := os.Stat(at)
		if err != nil {
			t.Fatal(err)
		}
		sources = append(sources, &distantLayout{&tagging{fakeSource: &fakeSource{name: "oci:" + at}}, t, info})
	}
	o, _ := newOpsOn(t, Options{}, sources...)
	if p := o.openLayout(t.Context(), dir, []digest.Digest{digest.FromString("a")}); p == nil || p.layout != sources[1] {
		t.Errorf("%+v", p)
	}
}
