package flight

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestDo(t *testing.T) {
	g := New("test", slog.New(slog.DiscardHandler))
	gate := make(chan struct{})
	var runs atomic.Int32
	work := func(context.Context) (int, error) {
		runs.Add(1)
		<-gate
		return 7, nil
	}
	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan error)
	go func() {
		_, err := Do(ctx, g, "key", work)
		left <- err
	}()
	for runs.Load() == 0 {
	}
	cancel()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("who leaves: %v", err)
	}
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			if n, err := Do(t.Context(), g, "key", work); n != 7 || err != nil {
				t.Errorf("%d, %v", n, err)
			}
		})
	}
	close(gate)
	wg.Wait()
	if n, err := Do(t.Context(), g, "panics", func(context.Context) (int, error) { panic("here") }); n != 0 || err == nil || !strings.Contains(err.Error(), "here") {
		t.Errorf("a panic: %d, %v", n, err)
	}
	if n, err := Do(t.Context(), g, "panics", func(context.Context) (int, error) { return 1, nil }); n != 1 || err != nil {
		t.Errorf("after a panic: %d, %v", n, err)
	}
	ended := make(chan error, 1)
	started := make(chan struct{})
	go func() {
		_, err := Do(context.Background(), g, "long", func(ctx context.Context) (int, error) {
			close(started)
			<-ctx.Done()
			return 0, ctx.Err()
		})
		ended <- err
	}()
	<-started
	g.Close()
	if err := <-ended; !errors.Is(err, fs.ErrClosed) {
		t.Errorf("closed meanwhile: %v", err)
	}
	if _, err := Do(t.Context(), g, "key", work); !errors.Is(err, fs.ErrClosed) || g.Start("key", func(context.Context) (any, error) { return nil, nil }) {
		t.Errorf("closed before: %v", err)
	}
}

// Work that ignores its context is named when Close has waited for it for long.
func TestCloseNamesWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var text bytes.Buffer
		g := New("test", slog.New(slog.NewTextHandler(&text, nil)))
		for _, key := range []string{"short", "long"} {
			took := map[string]time.Duration{"short": lateTime / 2, "long": 2 * lateTime}[key]
			g.Start(key, func(context.Context) (any, error) {
				time.Sleep(took)
				return nil, nil
			})
		}
		g.Close()
		synctest.Wait()
		if got := text.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "[long]") {
			t.Errorf("the log says %q", got)
		}
	})
}
