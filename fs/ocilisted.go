package fs

import (
	"sync"
	"time"

	"github.com/imgfs/imgfs/imgsrc"
)

// topListing is what the mountpoint lists, when somebody last looked.
type topListing struct {
	mu     sync.Mutex
	looked bool
	oci    bool
	at     time.Time // when that last changed; zero if it has not
}

// lookTop returns whether oci/ is listed, and when the listing last changed.
func (f *FS) lookTop() (oci bool, at time.Time) {
	oci = f.oci.isListed()
	l := &f.top
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.looked && l.oci != oci {
		l.at = later(l.at, time.Now())
	}
	l.looked, l.oci = true, oci
	return oci, unlessZero(l.at, f.started)
}

// isListed says whether no image has to be read for oci/ of which there is only a sketch.
func (t *ociTree) isListed() bool {
	s := t.state.Load()
	for _, img := range t.f.state.Load().sketchers {
		if img.Sketch() != nil && (s == nil || s.known[img] == nil) {
			return false
		}
	}
	return true
}

// sketchersOf are the images that have, or had, a sketch.
func sketchersOf(snap *imgsrc.Snapshot) []imgsrc.Sketcher {
	var all []imgsrc.Sketcher
	for _, e := range snap.Entries {
		for _, h := range e.Held {
			if img, ok := h.Image.(imgsrc.Sketcher); ok {
				all = append(all, img)
			}
		}
	}
	return all
}
