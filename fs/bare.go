package fs

import (
	"context"
	"fmt"
	"sync"
	"syscall"
	"time"

	"github.com/imgfs/imgfs/imgsrc"
)

// configPatience is how long what needs no config waits for it: its time is the image's time of creation, which is in there. A
// registry that is well sends a config in less, so that nobody sees another time; one that has lost its blobs holds up nobody who
// wants the manifest for longer.
const configPatience = time.Second

var errLate = fmt.Errorf("the config has not come yet: %w", syscall.ETIMEDOUT)

// renderBare is render for what the manifest alone says: if the config does not come, what that says is missing.
func (img *image) renderBare(ctx context.Context) (*rendered, error) {
	if r := img.f.rendered.get(img.slot); r != nil {
		return r, nil
	}
	r, turn := img.bare.get()
	if r != nil {
		return r, nil
	}
	if img.isSketched() { // its config comes with its manifest
		return img.render(ctx)
	}
	waiting, cancel := context.WithTimeout(ctx, configPatience)
	defer cancel()
	r, err := img.render(waiting)
	if err == nil || ctx.Err() != nil || waiting.Err() == nil {
		return r, err
	}
	if r, err = img.renderWithoutConfig(ctx); err == nil {
		img.bare.put(r, turn)
	}
	return r, err
}

func (img *image) renderWithoutConfig(ctx context.Context) (*rendered, error) {
	e, err := img.current()
	if err != nil {
		return nil, err
	}
	facts, err := imgsrc.Load(ctx, bareImage{img.firstOf(e).Image})
	if err != nil {
		return nil, err
	}
	return img.renderFacts(facts), nil
}

// A bareRendering is the answer while a rendering is being made, for which somebody has waited long enough. It ends with that one:
// the next may come in time.
type bareRendering struct {
	mu     sync.Mutex
	making int // renderings
	turn   int // how many have been made
	r      *rendered
}

func (b *bareRendering) begin() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.making++
}

func (b *bareRendering) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.making--
	b.turn++
	b.r = nil
}

// get returns the answer, nil if there is none, and the turn to put one for.
func (b *bareRendering) get() (r *rendered, turn int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.r, b.turn
}

// put makes r the answer, unless the rendering that was waited for has ended meanwhile.
func (b *bareRendering) put(r *rendered, turn int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.making > 0 && b.turn == turn {
		b.r = r
	}
}

// A bareImage is an image whose config is not waited for.
type bareImage struct{ imgsrc.Image }

func (bareImage) Config(context.Context) ([]byte, error) { return nil, errLate }

// renderFor returns what decides what the row is: the sketch of an image that has not been read, if that tells, or its
// rendering; nil if neither does.
func (img *image) renderFor(ctx context.Context, row *row) (*rendered, error) {
	if row.control || row.lastError || row.live != nil {
		return nil, nil
	}
	r := img.sketch()
	switch {
	case r != nil && r.tells(row):
		return r, nil
	case row.bare:
		return img.renderBare(ctx)
	}
	return img.render(ctx)
}
