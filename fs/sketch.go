package fs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/imgfs/imgfs/imgsrc"
)

// Of some images a source tells something before their bytes are here, and the bytes cost as much as the whole image
// (imgsrc.Sketcher). What a sketch tells is answered from it; for anything else the image is read. A row of which it is not known
// whether the image has it is not listed until then, and found by its name at any time, as is what takes a layer's bytes
// (remote.go). So a listing by a sketch is always the shorter one.

// sketchBytes is how much memory the renderings of sketches may take together.
const sketchBytes = 8 << 20

// isSketched says whether the image's own bytes are not at hand, and its source tells something without them.
func (img *image) isSketched() bool {
	e := img.entry.Load()
	return e != nil && sketchOf(img.firstOf(e).Image) != nil
}

func sketchOf(img imgsrc.Image) *imgsrc.Sketch {
	if s, ok := img.(imgsrc.Sketcher); ok {
		return s.Sketch()
	}
	return nil
}

// sketch returns the rendering of what the image's source tells of it; nil if its bytes are at hand, or nothing is told.
func (img *image) sketch() *rendered {
	e := img.entry.Load()
	if e == nil {
		return nil
	}
	first := img.firstOf(e)
	s := sketchOf(first.Image)
	if s == nil {
		return nil
	}
	if r := img.f.sketches.get(img.slot); r != nil {
		return r
	}
	img.told.Store(s)
	r := img.renderSketch(s, first.Desc())
	img.f.sketches.put(img.slot, r)
	return r
}

func (img *image) renderSketch(s *imgsrc.Sketch, d imgsrc.Desc) *rendered {
	r := img.renderFacts(s.Facts(d))
	r.created, r.sketched, r.damaged = s.Created, true, false
	return r
}

// noteRead is called with each rendering of an image. The bytes may have been read before, for something else than a rendering, and
// the source may have dropped its sketch then: what counts is whether the kernel was answered from one.
func (img *image) noteRead(r *rendered, e *imgsrc.Entry) {
	first := img.firstOf(e)
	if _, ok := first.Image.(imgsrc.Sketcher); !ok || r.damaged {
		return
	}
	told := img.told.Swap(nil)
	if img.read.Swap(true) && told == nil {
		return
	}
	sketch := img.f.sketches.get(img.slot)
	if sketch == nil && told != nil {
		sketch = img.renderSketch(told, first.Desc())
	}
	img.wasRead(sketch, r, e)
}

// tells says whether a rendering decides what a row is: a sketch's does not of all.
func (r *rendered) tells(row *row) bool {
	switch {
	case !r.sketched:
		return true
	case row.body != nil:
		return !errors.Is(r.errs[row.id], imgsrc.ErrUntold)
	case row.derived != nil:
		return row.sketched
	}
	switch row.view {
	case viewAnnotations:
		return r.tells(rowByName["annotations.json"])
	case viewLabels:
		return r.tells(rowByName["labels.json"])
	case viewLayers:
		return len(r.facts.Layers) > 0
	case viewRootfs:
		return false
	}
	return true
}

// lists says whether a sketch's listing has a row that the sketch does not tell: those that every image has, or this one for
// certain.
func (r *rendered) lists(row *row) bool {
	if row.body != nil {
		return r.shows(row)
	}
	return row.derived != nil
}

// shows says whether the image is known to have a file that is computed from it alone, be it damaged.
func (r *rendered) shows(row *row) bool {
	err := r.errs[row.id]
	switch {
	case err == nil:
		return true
	case errors.Is(err, imgsrc.ErrUntold):
		return row.sure || !errors.Is(err, imgsrc.ErrUnsure)
	}
	return row.sure && !errors.Is(err, imgsrc.ErrAbsent) && !errors.Is(err, errPerhapsIndex)
}

// shape is what a listing of the image's directory has, of what is computed from the image alone.
func (r *rendered) shape() string {
	shape := fmt.Sprint(len(r.facts.Layers), len(r.annotations), len(r.labels), r.facts.Kind, r.noManifest() != nil)
	for i := range table {
		if row := &table[i]; row.body != nil {
			shape += fmt.Sprint(r.shows(row))
		}
	}
	return shape
}

// listedEarly takes note of a listing that may become longer when an image has been read: this one, or one that may turn out to
// be its parent or child.
func (img *image) listedEarly(r *rendered, e *imgsrc.Entry) {
	kin := false
	if _, ok := img.firstOf(e).Image.(imgsrc.Sketcher); ok {
		img.eachKin(e, func(other *image) { kin = kin || other.isSketched() })
	}
	img.mu.Lock()
	img.kinSketched = img.kinSketched || kin
	img.sketchListed = img.sketchListed || r.sketched
	img.mu.Unlock()
	if r.sketched && !img.isSketched() { // it was read just now, perhaps without knowing of this listing
		img.longer(func() bool { return true })
	}
}

// eachKin calls do with the images that may be the image's parent or its children.
func (img *image) eachKin(e *imgsrc.Entry, do func(*image)) {
	s := img.f.state.Load()
	for _, kin := range [][]*imgsrc.Entry{s.snap.PerhapsParents(e), s.snap.PerhapsChildren(e)} {
		for _, k := range kin {
			if other := s.byID[k.ID]; other != nil {
				do(other)
			}
		}
	}
}

// wasRead is called when an image has been read of which there was a sketch, nil if nobody has seen it. Listings that are longer now
// get another time. Where the source has told something else than the image says, the kernel is told to ask again.
func (img *image) wasRead(sketch, r *rendered, e *imgsrc.Entry) {
	img.f.sketches.forget(img.slot)
	if sketch != nil {
		img.correct(sketch, r)
	}
	kin := false
	img.eachKin(e, func(other *image) {
		kin = kin || !other.isSketched()
		other.longer(func() bool { return other.kinSketched })
	})
	img.longer(func() bool {
		was := img.sketchListed
		img.sketchListed = false
		return was || kin && img.kinSketched
	})
}

// correct has the kernel ask again for what a sketch has told otherwise.
func (img *image) correct(sketch, r *rendered) {
	var wrong []string
	for i := range table {
		row := &table[i]
		if row.body == nil || !sketch.tells(row) || sketch.shows(row) == r.shows(row) && bytes.Equal(sketch.files[row.id], r.files[row.id]) {
			continue
		}
		wrong = append(wrong, row.name)
		img.f.forget(goneEntry{dir: img.node(viewImage, 0), name: row.name})
		img.f.forget(goneEntry{spoilt: img.node(viewImage, row.id)})
	}
	if len(wrong) > 0 {
		img.f.log.Warn("the source has told something else of an image than its config says, which holds", "image", img.id, "files", wrong)
	}
}

// longer moves the time of the listing if it may have become longer, which is asked with img.mu held.
func (img *image) longer(is func() bool) {
	img.mu.Lock()
	defer img.mu.Unlock()
	if is() {
		img.kinSketched = false
		img.listing = later(img.listing, time.Now())
	}
}

// isAtHand says whether renderFor has nothing to do.
func (img *image) isAtHand(row *row) bool {
	if r := img.sketch(); r != nil {
		return r.tells(row)
	}
	return img.isRendered()
}

// known returns the image's sketch, if it has not been read, or its rendering.
func (img *image) known(ctx context.Context) (*rendered, error) {
	if r := img.sketch(); r != nil {
		return r, nil
	}
	return img.render(ctx)
}

// knownBare is likewise, for what the manifest alone says.
func (img *image) knownBare(ctx context.Context) (*rendered, error) {
	if r := img.sketch(); r != nil {
		return r, nil
	}
	return img.renderBare(ctx)
}

// knownLayers is knownBare for what the layers' diff ids alone say.
func (img *image) knownLayers(ctx context.Context) (*rendered, error) {
	if r := img.sketch(); r != nil && r.tells(rowByView[viewLayers]) {
		return r, nil
	}
	return img.renderBare(ctx)
}
