package fs

import (
	"context"
	"errors"
	"testing"
)

// A fakeVerdict is known when its channel is closed.
type fakeVerdict struct {
	done chan struct{}
	err  error
}

func (v *fakeVerdict) Wait(ctx context.Context) error {
	select {
	case <-v.done:
		return v.err
	default:
	}
	select {
	case <-v.done:
		return v.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func newVerdict(err error) *fakeVerdict { return &fakeVerdict{make(chan struct{}), err} }

// Whoever is in the middle of what was found wrong hears of it, and nobody else.
func TestEarlyReads(t *testing.T) {
	wrong := errors.New("wrong")
	const n = node(7)
	var r earlyReads
	check := func(what string, off int64, want error) {
		t.Helper()
		if err := r.check(n, off); err != want {
			t.Errorf("%s: at %d: %v, want %v", what, off, err, want)
		}
	}
	right, bad := newVerdict(nil), newVerdict(wrong)
	if !r.add(n, right, 100) || r.add(n, right, 200) || !r.add(n, bad, 300) || !r.add(n+1, bad, 100) {
		t.Error("each verdict is to be awaited once for each file")
	}
	check("nothing known", 100, nil)
	close(right.done)
	check("one is right", 100, nil)
	r.settle(n, right, nil)
	close(bad.done)
	check("one is wrong", 300, wrong)
	check("behind it", 301, nil)
	check("at the beginning, while the kernel has it", 0, wrong)
	r.settle(n, bad, wrong)
	check("when the kernel has forgotten it", 300, wrong)
	check("from the beginning again", 0, nil)
	check("and on", 300, nil)

	again := newVerdict(wrong)
	r.add(n, again, 100)
	close(again.done)
	r.settle(n, again, wrong)
	other := newVerdict(nil)
	r.add(n, other, 100)
	check("begun again early", 0, nil)
	check("and on, not known yet", 100, nil)
	close(other.done)
	r.settle(n, other, nil)
	r.settle(n+1, bad, wrong)
	check("right in the end", 100, nil)
	if err := r.check(n+1, 0); err != nil {
		t.Error(err)
	}
	if len(r.files) != 0 {
		t.Errorf("%d files are remembered", len(r.files))
	}
}
