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
