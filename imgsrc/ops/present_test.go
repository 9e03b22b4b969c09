package ops

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/types"
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
