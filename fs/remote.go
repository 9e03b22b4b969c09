package fs

import (
	"context"
	"time"

	"github.com/imgfs/imgfs/imgsrc"
)

// Of an image in a registry or in an engine, what takes a layer's bytes is not listed until they are here: find, ls -R and
// rsync over it fetch nothing. By its name it is found at any time, and is then fetched.

// fetcher returns the image as one whose layers may be elsewhere. Not ok if they are not.
func (img *image) fetcher() (imgsrc.Fetcher, bool) {
	e := img.entry.Load()
	if e == nil {
		return nil, false
	}
	f, ok := img.nearest(e).Image.(imgsrc.Fetcher)
	return f, ok
}

// isRemote says whether they are in a registry.
func (img *image) isRemote() bool {
	f, ok := img.fetcher()
	return ok && isRemote(f)
}

// isLocal says whether layer n can be read without fetching anything.
func (img *image) isLocal(n int) bool {
	f, ok := img.fetcher()
	return !ok || f.Local(n)
}

// isLocal says whether the bytes can be read without fetching anything.
func (b layerBytes) isLocal() bool {
	from, err := b.from()
	if err != nil {
		return false
	}
	far, ok := from.Image.(imgsrc.Fetcher)
	return !ok || far.Local(b.n)
}

// allLocal says the same of all layers.
func (img *image) allLocal(r *rendered) bool {
	for n := range r.facts.Layers {
		if !img.isLocal(n) {
			return false
		}
	}
	return true
}

// cameAndWent is when the listing of a layer's directory last changed while mounted; created, if it has not.
func (img *image) cameAndWent(created time.Time) time.Time {
	img.mu.Lock()
	defer img.mu.Unlock()
	return unlessZero(latest(img.arrivedAt, img.mendedAt), created)
}

// arrived moves the listings' times when layers have come, or have been thrown out again, since somebody last looked.
func (img *image) arrived(ctx context.Context, r *rendered) {
	if _, ok := img.fetcher(); !ok || ctx.Err() != nil {
		return
	}
	here := make([]byte, len(r.facts.Layers))
	for n := range here {
		switch {
		case r.sketched:
			here[n] = 3
		case img.isLocal(n):
			here[n] = 1
		case bytesOf(img, r, n, contentDiff).isLocal():
			here[n] = 2
		}
	}
	img.mu.Lock()
	defer img.mu.Unlock()
	if img.here != string(here) && img.looked {
		img.listing = later(img.listing, time.Now())
		img.arrivedAt = img.listing
	}
	img.here, img.looked = string(here), true
}
