package flight

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestFailures(t *testing.T) {
	for _, test := range []struct{ took, kept time.Duration }{{0, minKept}, {5 * time.Second, 5 * time.Second}, {time.Minute, maxKept}} {
		synctest.Test(t, func(t *testing.T) {
			var f Failures[string]
			away := errors.New("away")
			begun := time.Now()
			time.Sleep(test.took)
			f.Put("a", away, begun)
			time.Sleep(test.kept)
			if f.Of("a") != away || f.Of("b") != nil {
				t.Errorf("after %s: %v", test.kept, f.Of("a"))
			}
			time.Sleep(time.Nanosecond)
			if err := f.Of("a"); err != nil {
				t.Errorf("too late: %v", err)
			}
			f.Put("a", away, time.Now())
			f.Put("a", nil, time.Now())
			if err := f.Of("a"); err != nil {
				t.Errorf("it succeeded: %v", err)
			}
		})
	}
}

func TestFailuresAreBounded(t *testing.T) {
	var f Failures[int]
	for n := range 2*maxFailures + 1 {
		f.Put(n, errors.New("away"), time.Now())
	}
	if len(f.all) > maxFailures || f.Of(2*maxFailures) == nil {
		t.Errorf("%d failures", len(f.all))
	}
}
