package registry

import "testing"

// Who goes through a blob gets it as a whole, in whatever order he goes: a registry is some 40 ms away, and what is read in
// steps of 64 KiB would take twenty times as long.
func TestReadsOn(t *testing.T) {
	const step, mib = 64 << 10, 1 << 20
	for _, c := range []struct {
		size, most int64 // of the blob; requests until it is fetched
	}{{8 * mib, 45}, {64 * mib, 64}, {1 << 30, 1000}} {
		r := &ranges{size: c.size}
		for !r.readsOnLocked() {
			from := (r.asked*7919 + 1) % (c.size / step) * step
			r.got = r.got.add(from, from+step)
			if r.asked++; r.asked > c.most {
				t.Errorf("a blob of %d MiB is still read in parts after %d requests, %d bytes", c.size/mib, r.asked, r.got.total())
				break
			}
		}
		if r.asked < 40 {
			t.Errorf("a blob of %d MiB is fetched after %d requests", c.size/mib, r.asked)
		}
	}
}

// Who takes one scattered file after the other gets the whole blob soon, and a large one not at once; who takes some here and
// there does not.
func TestWalks(t *testing.T) {
	const mib, files = 1 << 20, 10_000
	asks := func(size int64, turn func(n int) int) int {
		r := &ranges{size: size}
		for n := range files {
			from := int64(n*7919%files) * (size / files)
			if r.walksLocked(from, &vicinity{turn: turn(n), files: files}) {
				return n + 1
			}
			r.runs = append(r.runs, run{span{from, from + 1}, 1})
			r.runs = r.runs[max(0, len(r.runs)-maxRuns):]
		}
		return 0
	}
	next := func(n int) int { return n }
	for _, c := range []struct {
		size  int64
		least int
		most  int
	}{{1 * mib, 4, 4}, {64 * mib, 4, 4}, {1 << 30, 19, 20}, {50 << 30, 800, 810}} {
		if n := asks(c.size, next); n < c.least || n > c.most {
			t.Errorf("a blob of %d MiB is fetched when the walk has come to file %d", c.size/mib, n)
		}
	}
	for what, turn := range map[string]func(n int) int{
		"backwards":           func(n int) int { return files - n },
		"every hundredth":     func(n int) int { return n * 100 },
		"one again and again": func(int) int { return 5 },
		"all over the place":  func(n int) int { return n * 7907 % files },
	} {
		if n := asks(64*mib, turn); n > 0 {
			t.Errorf("%s: it is fetched at file %d", what, n)
		}
	}
	several := func(n int) int { return n/4 + n%4*1000 }
	if n := asks(64*mib, several); n == 0 || n > 16 {
		t.Errorf("four walks at once: it is fetched at file %d", n)
	}
}
