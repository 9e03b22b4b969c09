package registry

import (
	"context"
	"slices"
	"time"
)

// Whoever reads a good part of a blob gets what is missing faster in large ranges, one behind the other (see rest).

// streamAhead is how far behind what has arrived of a blob something may lie for a reader to wait for it. He waits for more
// if that comes about as soon as what he would ask for.
const streamAhead = 8 << 20

// A request costs as much as the bytes that could have come in a round trip: a MiB where that takes 20 ms and a second brings
// 50 MiB. Of small blobs that is less, or a few files would be the whole.
const requestBytes, requestShare = 1 << 20, 64

// readsOnLocked says whether a reader is going through the blob: an eighth of it from its beginning on, which the whole then
// goes on from, or a third of it in any order; or in so many steps that the whole would have cost no more than they have.
func (r *ranges) readsOnLocked() bool {
	spent := r.got.total() + r.asked*min(requestBytes, r.size/requestShare)
	return r.got.first() > r.size/8 || r.got.total() > r.size/3 || spent > r.size
}

// A trail is a reader who takes one file after the other, in the order of their names.
type trail struct {
	turn  int // of the last file that had to be asked for
	steps int // how often that was the next one or one soon after it, and lay elsewhere in the blob
}

const (
	// fewSteps are no walk yet: a program reads as many files that happen to lie beside one another.
	fewSteps = 3
	// stepBytes is how much of a blob is fetched for each further step. It is more than comes in a round trip: that it is a
	// walk through all of it is the likelier the longer it is one.
	stepBytes = 64 << 20
	// A step passes over no more than nextFiles files, or that part of a layer with few. What is there already is passed over.
	nextFiles, nextShare = 64, 16
)

// walksLocked takes note of a file that has to be asked for, and says whether it was asked for by who goes through the blob
// in the order of names, which is not that of the blob. A round trip for each file would be many times what the whole costs.
func (r *ranges) walksLocked(from int64, near *vicinity) bool {
	now := trail{turn: near.turn}
	for i, last := range slices.Backward(r.trails) {
		if near.turn < last.turn || near.turn > last.turn+max(1, min(nextFiles, near.files/nextShare)) {
			continue
		}
		switch goesOn := r.runLocked(from) >= 0; {
		case near.turn == last.turn: // a large file's next part
			now.steps = last.steps
		case goesOn:
			now.steps = max(0, last.steps-1)
		default:
			now.steps = last.steps + 1
		}
		r.trails = slices.Delete(r.trails, i, i+1)
		break
	}
	if r.trails = append(r.trails, now); len(r.trails) > maxRuns {
		r.trails = r.trails[1:]
	}
	return now.steps >= fewSteps && r.size-r.got.total() <= int64(now.steps-fewSteps+1)*stepBytes
}

// blob returns the whole blob, which is fetched when somebody waits for it.
func (r *ranges) blob() (*blob, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.blobLocked()
}

func (r *ranges) blobLocked() (*blob, error) {
	if r.x != nil {
		return r.x, nil
	}
	x, err := r.source.blobs.use(r.repo, r.digest, r.size)
	if err != nil {
		return nil, err
	}
	x.addRepos(r.repos...)
	r.x = x
	return x, nil
}

// fetchRest begins to fetch what is missing of the blob, if it is time for that when a part is asked for.
func (r *ranges) fetchRest(from int64, near *vicinity) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.coming || r.failed || r.broken || r.source.offline {
		return
	}
	walks := near != nil && r.walksLocked(from, near)
	if !walks && !r.readsOnLocked() || r.source.isSpoilt(r.digest) != nil {
		return
	}
	x, err := r.blobLocked()
	if err != nil {
		return // there is nothing to wait for: parts are asked for, as before
	}
	r.begun = time.Now()
	r.coming = r.source.flights.Start(new(int), func(ctx context.Context) (any, error) {
		s := r.source
		s.lazyMu.Lock()
		r.use() // until the whole is here, whoever has left meanwhile
		s.lazyMu.Unlock()
		defer s.releaseRanges(r)
		h, err := x.bring(ctx, true, func() bool { return x.whole })
		if err == nil {
			x.done(h)
		} else if ctx.Err() == nil {
			r.source.log.Warn("fetching a blob as a whole, of which parts were read", "source", r.source.Name(), "blob", r.digest, "error", err)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.coming, r.failed = false, err != nil
		if err == nil {
			r.unnameLocked()
			r.source.told.complete(r.digest)
		}
		return nil, nil
	})
}

// fromBlob returns a part of the whole blob, if that is here or will soon have come so far. Not ok if it is better asked
// for. With all set it waits until all of the blob has come, and was verified.
func (r *ranges) fromBlob(ctx context.Context, from, to int64, all bool) (b []byte, ok bool, err error) {
	r.mu.Lock()
	comes := r.comesLocked(from, to) || r.isSoonLocked(to, 2*r.took)
	r.mu.Unlock()
	if !all && !comes && !r.source.blobs.hasBlob(r.digest) {
		return nil, false, nil
	}
	x, err := r.blob()
	if err != nil {
		return nil, false, err
	}
	last := to - 1
	if all {
		last = -1
	}
	h, err := x.waitFor(ctx, last, all) // a part is asked for if the whole has failed meanwhile
	if err != nil {
		return nil, false, err
	}
	defer x.done(h)
	b = make([]byte, to-from)
	if n, err := h.ReadAt(b, from); n < len(b) {
		return nil, false, err
	}
	return b, true, nil
}

// fromWhole returns a part of the whole blob, verified.
func (r *ranges) fromWhole(ctx context.Context, from, to int64) ([]byte, error) {
	if err := r.source.isSpoilt(r.digest); err != nil {
		return nil, err
	}
	b, _, err := r.fromBlob(ctx, from, to, true)
	return b, err
}

// comesLocked says whether a part has come with the whole blob, has been asked for, or lies so little behind what has come that
// it is better waited for.
func (r *ranges) comesLocked(from, to int64) bool {
	if r.rest.brings(from, to) {
		return true
	}
	if r.x == nil && r.rest != nil {
		_, _ = r.blobLocked()
	}
	x := r.x
	if x == nil {
		return false
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.whole || r.coming && !x.busy || x.busy && x.arrived > 0 && to <= x.arrived+streamAhead
}
