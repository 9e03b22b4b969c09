package fs

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/imgfs/imgfs/imgsrc"
)

// parent, children and inspect.json say which image was made from which. Thousands of images may have the same layers, so none is
// compared with all: those of one layer are entered into a table when somebody first asks about one of them, once for each
// state of the catalog, and are then looked up there.

// kinship is the tables of one state of the catalog.
type kinship struct {
	mu    sync.Mutex
	kin   map[kinKey]*kin
	asked int // how many images were entered, or looked up: what a test counts
}

// kinKey names a table: of the images whose topmost layer has a key, and with it of those that have one more.
type kinKey struct {
	layer    string
	children bool
}

// kin is one table. It is immutable.
type kin struct {
	imgsrc.Kin
	until time.Time // when to make it again, because some image cannot be read; zero: never
}

func newKinship() *kinship { return &kinship{kin: map[kinKey]*kin{}} }

func (k *kinship) get(key kinKey) *kin {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.asked++
	if is := k.kin[key]; is != nil && (is.until.IsZero() || time.Now().Before(is.until)) {
		return is
	}
	return nil
}

func (k *kinship) put(key kinKey, is *kin, entered int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.asked += entered
	k.kin[key] = is
}

// kin returns a table; nil if there is no image in it but e. It is made once for all who ask at the same time.
func (s *standing) kin(ctx context.Context, key kinKey) (*kin, error) {
	if is := s.state.kinship.get(key); is != nil {
		s.passing = s.passing || !is.until.IsZero()
		return is, nil
	}
	members := s.snap.WithTopLayer(key.layer)
	if key.children {
		members = s.snap.OnLayer(key.layer)
	}
	if len(members) == 0 || len(members) == 1 && members[0] == s.e {
		return nil, nil
	}
	name := fmt.Sprintf("kin %d %t %s", s.snap.Generation, key.children, key.layer)
	res, err := s.img.f.shared(ctx, name, func(ctx context.Context) (any, error) {
		is := &kin{}
		for _, e := range members {
			l, whole, err := s.state.lineage(ctx, e)
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			if err != nil || !whole { // it is nobody's kin, as long as it cannot be read
				is.until = time.Now().Add(damagedKept)
				continue
			}
			is.Add(e, l)
		}
		s.state.kinship.put(key, is, len(members))
		return is, nil
	})
	if err != nil {
		return nil, err
	}
	is := res.(*kin)
	s.passing = s.passing || !is.until.IsZero()
	return is, nil
}

// parent returns the id of the image that this one was made from in one step; empty if that is not here.
func (s *standing) parent(ctx context.Context) (string, error) {
	if s.facts.Kind != imgsrc.KindImage || s.r.sketched {
		return "", nil
	}
	for _, layer := range s.snap.ParentLayers(s.e) {
		is, err := s.kin(ctx, kinKey{layer: layer})
		if err != nil {
			return "", err
		}
		if is == nil {
			continue
		}
		mine, _, err := s.state.lineage(ctx, s.e)
		if err != nil {
			return "", err
		}
		if e := is.Parent(mine); e != nil {
			return e.ID, nil
		}
	}
	return "", nil
}

// children returns the images that were made from this one in one step, sorted by id.
func (s *standing) children(ctx context.Context) ([]*imgsrc.Entry, error) {
	if s.r.sketched {
		return nil, nil
	}
	is, err := s.kin(ctx, kinKey{layer: s.snap.TopLayer(s.e), children: true})
	if err != nil || is == nil {
		return nil, err
	}
	mine, _, err := s.state.lineage(ctx, s.e)
	if err != nil {
		return nil, err
	}
	return is.Children(mine), nil
}

// lineage returns what an image of the catalog was made of; not whole if some of the image could not be read.
func (s *state) lineage(ctx context.Context, e *imgsrc.Entry) (l imgsrc.Lineage, whole bool, err error) {
	img := s.byID[e.ID]
	if img == nil {
		return imgsrc.Lineage{}, false, imgsrc.ErrNotFound
	}
	return img.lineageOf(ctx)
}

// lineageOf returns what the image was made of. It reads the image once, unless that costs as much as all of it: as long as
// nobody has read such a one, it is nobody's kin.
func (img *image) lineageOf(ctx context.Context) (l imgsrc.Lineage, whole bool, err error) {
	img.mu.Lock()
	known := img.lineage
	img.mu.Unlock()
	switch {
	case known != nil:
		return *known, true, nil
	case img.isSketched():
		return imgsrc.Lineage{}, false, nil
	}
	facts, err := img.facts(ctx)
	if err != nil {
		return imgsrc.Lineage{}, false, err
	}
	known = new(imgsrc.Lineage)
	*known = facts.Lineage()
	if whole = !isDamaged(facts); whole {
		img.mu.Lock()
		img.lineage = known
		img.mu.Unlock()
	}
	return *known, whole, nil
}

// facts returns what the image's own bytes say. For this none of its files is made: who looks for an image's children reads
// the facts of thousands that he never looks at.
func (img *image) facts(ctx context.Context) (*imgsrc.Facts, error) {
	if r := img.f.rendered.get(img.slot); r != nil {
		return r.facts, nil
	}
	e, err := img.current()
	if err != nil {
		return nil, err
	}
	return loadFacts(ctx, img.firstOf(e))
}
