package registry

import "slices"

// A run is a place where a reader goes on.
type run struct {
	span
	window int64 // bytes to ask for there the next time
}

const (
	// firstWindow is how many bytes are asked for at a place where nobody has read before, at most: as many as half a
	// round trip brings. Of small blobs it is less, so that one file is not most of them.
	firstWindow, firstShare = 64 << 10, 128
	leastWindow             = 4 << 10
	// lastWindow is how far that grows while a reader goes on, also in parts of the blob: by then most of it is wanted.
	windowGrows           = 4
	lastWindow, lastShare = 4 << 20, 8
	// aheadWindow is how far that must have grown for the next to be asked for while this one is read.
	aheadWindow = 1 << 20
	// maxRuns is how many readers are told from one another.
	maxRuns = 8
)

// A vicinity is what is known of where a part lies.
type vicinity struct {
	snap        func(int64) int64 // moves an end to where nothing is cut in two
	turn, files int               // see layer.Chunks
}

// planLocked decides what to ask for when a part is wanted; with alone nothing beside it is.
func (r *ranges) planLocked(from, to int64, near *vicinity, alone bool) span {
	if r.file == nil || r.full { // what is asked for beyond it would be lost
		return span{from, to}
	}
	want := span{}
	want.from, want.to = r.have.missing(from, to)
	if near == nil || alone {
		return r.roundLocked(want, from, to)
	}
	now, most := run{window: max(leastWindow, min(firstWindow, r.size/firstShare))}, min(lastWindow, r.size/lastShare)
	if i := r.runLocked(from); i >= 0 {
		now.window = max(now.window, min(windowGrows*r.runs[i].window, most))
		r.runs = append(r.runs[:i:i], r.runs[i+1:]...)
	}
	before, behind := r.have.around(want.from, r.size)
	if want.from-before <= now.window { // whoever skips a little will come back, and the parts join
		want.from = before
	}
	want.to = max(want.to, min(near.snap(from+now.window), behind))
	want = r.roundLocked(want, from, to)
	now.span = want
	r.runs = append(r.runs, now)
	if len(r.runs) > maxRuns {
		r.runs = r.runs[1:]
	}
	return want
}

// roundLocked rounds what is to be asked for because a part is wanted to blocks. What others bring is not asked for twice.
func (r *ranges) roundLocked(want span, from, to int64) span {
	before, _ := r.have.around(want.from, r.size)
	want.from = max(want.from&^(rangesBlock-1), before)
	want.to = min((want.to+rangesBlock-1)&^(rangesBlock-1), r.size)
	others := r.rest.spans()
	for _, g := range r.flying {
		others = append(others, g.span)
	}
	for _, other := range others {
		if other.from >= to {
			want.to = min(want.to, other.from)
		}
		if other.to <= from {
			want.from = max(want.from, other.to)
		}
	}
	return want
}

// readAheadLocked asks for what comes next where a reader has gone on for long, so that he need not wait for it.
func (r *ranges) readAheadLocked(at int64, near *vicinity) {
	if near == nil || r.coming || r.rest != nil || r.full || r.source.offline {
		return
	}
	for _, x := range r.runs {
		if x.window < aheadWindow || at < (x.from+x.to)/2 || at >= x.to || x.to >= r.size {
			continue
		}
		switch {
		case r.flyingLocked(x.to, x.to+1) != nil, r.have.has(x.to, x.to+1):
		case r.comesLocked(x.to, x.to+1), r.source.blobs.hasBlob(r.digest): // and is read from the blob
		default:
			r.startLocked(x.to, x.to+1, near, false)
		}
		return
	}
}

// runLocked returns which of the runs goes on at an offset, -1 if none does.
func (r *ranges) runLocked(at int64) int {
	for i, last := range slices.Backward(r.runs) {
		if at >= last.from-last.window && at <= last.to+last.window {
			return i
		}
	}
	return -1
}
