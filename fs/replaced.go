package fs

import (
	"slices"

	"github.com/imgfs/imgfs/imgsrc"
)

// When the layers of an image are read from another manifest than before, their files may have other numbers, and when another
// stands for it, all of its files may be others: the image gets other nodes. Somebody may be in the middle of a file or a
// directory of the old ones. Those go on to show what the manifests say that they are of, as long as sources have them.

// maxReplaced is how many times an image may be replaced before those who have something of the first open find it gone.
const maxReplaced = 4

// leave is called with the images of a state that have no place in the next. The kernel asks anew what their ids mean. The
// caller holds f.mu.
func (f *FS) leave(gone []*image, old, s *state) {
	for _, img := range gone {
		f.forget(goneEntry{dir: idsNode, name: img.id})
	}
	count := map[string]int{}
	for _, img := range slices.Backward(slices.Concat(old.replaced, gone)) {
		e := s.snap.ByID(img.id)
		if e == nil || !img.isReadable(e) || count[img.id] == maxReplaced {
			f.retire(img)
			continue
		}
		count[img.id]++
		img.take(e, old, s)
		s.replaced = append(s.replaced, img)
	}
	slices.Reverse(s.replaced)
}

// isReadable says whether an image can be read as it was although its entry may have other manifests now.
func (img *image) isReadable(e *imgsrc.Entry) bool {
	_, held := e.HeldBy(img.near.source, img.near.digest)
	return held && img.first == img.firstOf(e).Desc().Digest
}

// retire makes the nodes of an image lead nowhere.
func (f *FS) retire(img *image) {
	img.entry.Store(nil)
	f.slots.drop(img.slot)
	f.closeLayers(img.slot)
}
