package ops

import (
	"context"
	"errors"
	"io"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/types"

	"github.com/imgfs/imgfs/imgsrc"
)

func TestWatchdog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		w := &watchdog{limit: time.Second, bite: cancel, begun: time.Now()}
		go w.watch(ctx)
		alive := func(what string) {
			t.Helper()
			synctest.Wait()
			if ctx.Err() != nil {
				t.Fatalf("%s: %v", what, context.Cause(ctx))
			}
		}
		for range 10 {
			time.Sleep(900 * time.Millisecond)
			w.touch()
		}
		alive("something moved")
		// The image's own source takes as long as it likes, and is not the registry's silence.
		img := smallImage(t)
		img.read = func(context.Context, int64) error { time.Sleep(10 * time.Second); return nil }
		src := &source{held: imgsrc.Held{Listed: imgsrc.Listed{Image: img}}, reading: w.pause, diffs: map[digest.Digest]diff{"d": {img, 0, types.BlobInfo{}}}}
		r, _, err := src.GetBlob(ctx, types.BlobInfo{Digest: "d"}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
		alive("the source was slow")
		time.Sleep(900 * time.Millisecond)
		alive("just below the limit")
		time.Sleep(200 * time.Millisecond)
		synctest.Wait()
		if !errors.Is(context.Cause(ctx), syscall.ETIMEDOUT) {
			t.Errorf("%v", context.Cause(ctx))
		}
	})
}
