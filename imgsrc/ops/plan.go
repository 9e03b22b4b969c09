package ops

import (
	"context"
	"slices"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/image"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/image/v5/pkg/blobinfocache/none"
	"go.podman.io/image/v5/types"

	"github.com/imgfs/imgfs/imgsrc"
)

// A planner tells a task what there is to read before the library begins to: the library names a blob when it begins with
// it. It stands where the library opens a source and a destination, and gives it both as they are, because the library asks
// them for more than their public methods.
//
// A registry's source has the manifest that it was opened for. What is asked for in addition is the image that is chosen of
// an index, once; or with all of them, each of them once.
type planner struct {
	task   *task
	watch  *watchdog
	only   *imgsrc.Platform           // an image that is not of an index must be for it; nil: for any
	all    bool                       // all images of an index are copied
	tars   bool                       // only images can be kept, with tars as their layers
	known  *blobPlan                  // of several images, of which this is one, as the task has been told; nil: this is all
	images map[digest.Digest]blobPlan // those of an index that have been looked at
	to     types.ImageDestination     // nil: it has not been opened
}

// A blobPlan is what a copy of one image or several is to read.
type blobPlan struct {
	configs, layers []types.BlobInfo
	there           []digest.Digest // of the layers: the destination has them
	whole           bool            // it is all that will be read
}

func (p *blobPlan) add(more blobPlan) {
	p.configs, p.layers, p.whole = append(p.configs, more.configs...), append(p.layers, more.layers...), p.whole && more.whole
}

// planOf returns what is to be read of the image with this manifest: nothing if it is none.
func planOf(text []byte, mediaType string) blobPlan {
	m, err := manifest.FromBlob(text, mediaType)
	if err != nil {
		return blobPlan{}
	}
	p := blobPlan{whole: true}
	if config := m.ConfigInfo(); config.Digest != "" {
		p.configs = append(p.configs, config)
	}
	for _, l := range m.LayerInfos() {
		p.layers = append(p.layers, l.BlobInfo)
	}
	return p
}

// look returns what is to be read of the image, or of those images of an index, that a copy takes. Its error is one that
// the copy would end with as well: what is wrong with a manifest is left for that to say.
func (p *planner) look(ctx context.Context, src types.ImageSource, sys *types.SystemContext) (blobPlan, error) {
	top := image.UnparsedInstance(src, nil)
	text, mediaType, err := top.Manifest(ctx)
	if err != nil {
		return blobPlan{}, nil //nolint:nilerr // the copy asks the source, which has it, for the same
	}
	if !manifest.MIMETypeIsMultiImage(mediaType) {
		if err := p.keeps(text, mediaType); err != nil {
			return blobPlan{}, err
		}
		return p.offered(ctx, src, nil, planOf(text, mediaType)), isFor(ctx, src, sys, p.only)
	}
	list, err := manifest.ListFromBlob(text, mediaType)
	if err != nil {
		return blobPlan{}, nil //nolint:nilerr // see above
	}
	instances := list.Instances()
	if !p.all {
		chosen, err := list.ChooseInstance(sys)
		if err != nil {
			return blobPlan{}, nil //nolint:nilerr // see above
		}
		instances = []digest.Digest{chosen}
	}
	plan := blobPlan{whole: true}
	for _, d := range instances {
		one, known := p.images[d]
		if !known {
			text, mediaType, err := image.UnparsedInstance(src, &d).Manifest(ctx)
			if err == nil && manifest.MIMETypeIsMultiImage(mediaType) {
				if err = (&nested{d}); p.all {
					err = &nested{}
				}
			}
			if err == nil {
				err = p.keeps(text, mediaType)
			}
			if err != nil {
				return blobPlan{}, err
			}
			one = p.offered(ctx, src, &d, planOf(text, mediaType))
			p.remember(d, one)
		}
		plan.add(one)
	}
	return plan, nil
}

// keeps fails if the image with this manifest cannot be kept, which is not left for unpacking to find out.
func (p *planner) keeps(text []byte, mediaType string) error {
	if !p.tars {
		return nil
	}
	return keepable(text, mediaType)
}

func (p *planner) remember(d digest.Digest, plan blobPlan) {
	if p.images == nil {
		p.images = map[digest.Digest]blobPlan{}
	}
	p.images[d] = plan
	p.watch.touch()
}

// offered returns a plan with the layers that a source offers in the place of those of the manifest.
func (p *planner) offered(ctx context.Context, src types.ImageSource, instance *digest.Digest, plan blobPlan) blobPlan {
	layers, err := src.LayerInfosForCopy(ctx, instance)
	if err != nil {
		return blobPlan{}
	}
	if layers != nil {
		plan.layers = layers
	}
	return plan
}

// tell tells the task. What the destination has, and what it leaves where its URLs say, is not to be read.
func (p *planner) tell(ctx context.Context, plan blobPlan) {
	plan.there = p.has(ctx, plan.layers)
	if p.to != nil && p.to.AcceptsForeignLayerURLs() {
		plan.layers = slices.DeleteFunc(slices.Clone(plan.layers), func(l types.BlobInfo) bool { return len(l.URLs) > 0 })
	}
	if p.known != nil {
		p.task.expect(plan)
	} else {
		p.task.plan(plan)
	}
}

// has returns those of the layers that the destination has. It may have to read them for that, while nothing comes from
// elsewhere.
func (p *planner) has(ctx context.Context, layers []types.BlobInfo) (there []digest.Digest) {
	defer p.watch.pause()()
	for _, l := range layers {
		if p.to == nil || ctx.Err() != nil {
			break
		}
		if ok, _, err := p.to.TryReusingBlob(ctx, l, none.NoCache, false); err == nil && ok {
			there = append(there, l.Digest)
		}
	}
	return there
}

// A plannedSource is a reference whose source is looked at when it is opened.
type plannedSource struct {
	types.ImageReference
	*planner
}

func (s *plannedSource) NewImageSource(ctx context.Context, sys *types.SystemContext) (types.ImageSource, error) {
	src, err := s.ImageReference.NewImageSource(ctx, sys)
	if err != nil {
		return nil, err
	}
	s.watch.reached.Store(true) // for the manifest
	plan, err := s.look(ctx, src, sys)
	if err != nil {
		_ = src.Close()
		return nil, err
	}
	s.tell(ctx, plan)
	return src, nil
}

// A plannedDestination is a reference whose destination is asked what it has. The library opens it before the source.
type plannedDestination struct {
	types.ImageReference
	*planner
}

func (d *plannedDestination) NewImageDestination(ctx context.Context, sys *types.SystemContext) (types.ImageDestination, error) {
	to, err := d.ImageReference.NewImageDestination(ctx, sys)
	if err != nil {
		return nil, err
	}
	d.to = to
	if d.known != nil { // the first of several is asked for the layers of all
		d.task.expect(blobPlan{there: d.has(ctx, d.known.layers)})
		d.known.layers = nil
	}
	return to, nil
}

// planLoad tells the task what there is to read of all images, but for those that are here. What cannot be read is left for
// loading to say.
func (o *Ops) planLoad(ctx context.Context, images []loadable, platform *imgsrc.Platform, to Receiver, t *task) *blobPlan {
	plan, sys := &blobPlan{whole: true}, new(types.SystemContext)
	o.choose(sys, platform)
	for _, img := range images {
		if o.hasAll(ctx, to, &img) {
			continue
		}
		for _, part := range img.parts() {
			plans := &planner{watch: new(watchdog), all: img.artifact}
			one, err := plans.look(ctx, part.source(nil), sys)
			if err != nil {
				return &blobPlan{}
			}
			plan.add(one)
		}
	}
	t.plan(*plan)
	return plan
}

// plan says which blobs the job will read, from here on. Those that it was to read, and has not, are no longer its blobs.
func (t *task) plan(p blobPlan) {
	if t == nil {
		return
	}
	wanted := map[digest.Digest]bool{}
	for _, b := range slices.Concat(p.configs, p.layers) {
		wanted[b.Digest] = true
	}
	t.mu.Lock()
	t.order = slices.DeleteFunc(t.order, func(b *blobTask) bool {
		drop := !wanted[b.digest] && !b.ever.Load()
		if drop {
			delete(t.blobs, b.digest)
		}
		return drop
	})
	t.complete = false
	t.mu.Unlock()
	t.expect(p)
	if p.whole {
		t.whole()
	}
}

// expect says that blobs will be read, from their beginning if they are not here.
func (t *task) expect(p blobPlan) {
	if t == nil {
		return
	}
	for _, info := range slices.Concat(p.configs, p.layers) {
		b := t.blob(info.Digest, info.Size)
		if b.state.CompareAndSwap(blobRunning, blobWaiting) { // in the middle of which an attempt ended
			b.done.Store(0)
		}
	}
	for _, d := range p.there {
		t.blob(d, -1).skipped()
	}
}

// unneeded says of the blobs that nobody has begun to read that they will not be. mu is held.
func (t *task) unneeded() {
	for _, b := range t.order {
		b.skipped()
	}
}
