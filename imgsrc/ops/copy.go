package ops

import (
	"context"
	"os"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/copy"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/image/v5/signature"
	"go.podman.io/image/v5/types"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/proxy"
)

// copyImage does the work of a push.
func (o *Ops) copyImage(ctx context.Context, p pushJob) (err error) {
	if err := p.held.Desc().Damaged; err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	kind := p.line.dest.kind()
	if kind == registryKind && o.opt.Offline {
		return fail(syscall.EHOSTUNREACH, "the mount is offline")
	}
	watch := &watchdog{limit: o.opt.Timeout, bite: cancel, alive: kind.alive, who: kind.end, begun: time.Now()}
	if kind.remote {
		go watch.watch(ctx)
	}
	ctx = imgsrc.WithWaiting(ctx, watch.waits(p.task))
	defer func() {
		if err != nil && ctx.Err() != nil {
			err = context.Cause(ctx) // why, and not where it was noticed
		}
	}()

	from := func(held imgsrc.Held) *source {
		return &source{held: held, plain: kind.plain || p.line.plain, instance: p.instance, reading: watch.pause, several: p.line.all, judge: o.allowedMember, task: p.task}
	}
	if !p.line.all {
		if p.held, err = o.unnested(ctx, p, from); err != nil {
			return err
		}
	}
	src := from(p.held)
	src.recompressed, src.toOCI = p.line.compression != nil, kind == layoutKind || kind == ociFileKind || p.line.format == imgspecv1.MediaTypeImageManifest
	policy, err := o.policy()
	if err != nil {
		return err
	}
	defer func() { _ = policy.Destroy() }()
	if err := permitted(ctx, policy, src); err != nil {
		return err
	}
	if store, ok := p.line.dest.(*storeName); ok && p.line.format == "" {
		if done, err := store.addName(ctx, p.held.Desc(), o.openStore); done || err != nil {
			return err
		}
	}
	if p.line.all {
		if err := p.whole(ctx, src); err != nil {
			return err
		}
	}
	blobs, all, err := src.blobs(ctx)
	if err != nil {
		return err
	}
	if p.line.all { // one image announces itself
		if plan, err := (&planner{watch: watch, all: true}).look(ctx, src, nil); err == nil {
			p.task.plan(plan)
		}
	}
	sys := o.system(p.line)
	to, err := p.line.dest.stage(ctx, staging{
		sys: sys, blobs: blobs, verify: o.verify(p.line), insecure: o.opt.Insecure, openStore: o.openStore, guard: o.jobs.guard, openLayout: o.openLayout, log: o.log,
	})
	if to.discard != nil {
		defer func() { to.discard(err) }()
	}
	if err != nil {
		return err
	}
	c := &copying{policy: policy, from: src, to: to.ref, options: copy.Options{
		SourceCtx: o.platform(), DestinationCtx: sys, ForceManifestMIMEType: p.line.format,
	}}
	if p.line.all {
		c.options.ImageListSelection = copy.CopyAllImages
	}
	if old := p.held.Desc().MediaType; kind == registryKind && p.line.format == "" && p.line.compression == nil && (old == manifest.DockerV2Schema1MediaType || old == manifest.DockerV2Schema1SignedMediaType) {
		// Registries do not take it any more, and some say so in a way (500) that nobody understands. Its digest would not
		// stay either: it is signed anew.
		c.options.ForceManifestMIMEType = manifest.DockerV2Schema2MediaType
	}
	done, err := o.shape(ctx, c, p, watch, all)
	defer done()
	if err != nil {
		return err
	}
	run := func() error { return c.run(ctx, p.task, watch) }
	switch {
	case kind == registryKind:
		return o.attempt(ctx, p.task, watch, run)
	case to.left != nil:
		return copyWhole(func() error { return o.unlessLeft(ctx, run, to.left) }, func() error { return to.commit(ctx) })
	case to.commit != nil:
		return copyWhole(run, func() error { return to.commit(ctx) })
	}
	if err = run(); err != nil && kind == daemonKind && ctx.Err() == nil {
		err = engineFailed(ctx, err)
	}
	return err
}

// unlessLeft runs a copy until the destination is left behind, which then goes on waiting for a lock with it.
func (o *Ops) unlessLeft(ctx context.Context, run func() error, left <-chan error) error {
	ended := make(chan error, 1)
	go func() { ended <- o.jobs.guard(ctx, func(context.Context) error { return run() }) }()
	select {
	case err := <-ended:
		return err
	case err := <-left:
		return err
	}
}

// A copying is what the library is told of a push.
type copying struct {
	policy  *signature.PolicyContext
	from    *source
	to      types.ImageReference
	options copy.Options
}

// run copies once.
func (c *copying) run(ctx context.Context, t *task, watch *watchdog) error {
	options := c.options
	stop := drain(&options, t, watch)
	defer stop()
	_, err := copy.Image(ctx, c.policy, c.to, c.from, &options)
	return saidOnce(err)
}

// shape decides in which form layers are stored, which of them the destination need not be sent, and who signs. all says
// that all layers are offered as the blobs that the manifest names. done lets go of what was needed for that.
func (o *Ops) shape(ctx context.Context, c *copying, p pushJob, watch *watchdog, all bool) (done func(), err error) {
	kind := p.line.dest.kind()
	var desired *types.LayerCompression // nil: as the transport has it
	switch {
	case p.line.plain && kind.compresses:
		desired = new(types.Decompress)
	case p.line.compression != nil:
		c.options.DestinationCtx.CompressionFormat, c.options.ForceCompressionFormat = p.line.compression, true
		if kind.preserves {
			desired = new(types.Compress)
		}
	case all && kind.compresses && !kind.preserves && p.held.Unpacked == 0:
		// What is built in a store names the layers as they lie there, for want of others: they are compressed like those that
		// were pulled, as every tool does it.
		desired = new(types.PreserveOriginal) // uncompressed blobs too: their digests are the image's
	}
	if to, ok := c.to.(*layoutRef); ok {
		c.options.ForceCompressionFormat = false // it would have nothing reused; to sees to it
		to.required = p.line.compression
	}
	done = func() {}
	d, isRegistry := p.line.dest.(*registry)
	sigstore := p.line.signer != nil && p.line.signer.file != "" // which takes the library's own destination
	switch {
	case sigstore:
		c.options.PreserveDigests = desired != nil && p.line.format == ""
	case isRegistry:
		c.options.ForceCompressionFormat = false // it would have nothing reused; u sees to it
		host := reference.Domain(d.named)
		o.learn(ctx, p, host)
		u := &upload{
			ImageReference: c.to, host: host, repo: reference.Path(d.named), known: &o.known, from: repositories(p.entry, host),
			source: c.from, required: p.line.compression, desired: desired, reached: &watch.reached, log: o.log,
		}
		c.from.became = func(d digest.Digest) compressed { return o.known.compressed(d, u.algorithm().Name()) }
		if o.opt.Registry != nil {
			u.mounter = o.opt.Registry(host, p.line.authFile, verifyOf(p.line.tlsVerify))
			done = u.mounter.Close
		}
		c.to = u
	case desired != nil:
		c.to = &recompressed{c.to, *desired}
	}
	if p.line.signer != nil {
		err = p.line.signer.sign(ctx, c, p)
	}
	return done, err
}

// verifyOf is tls-verify= as a line has it, nil if it does not.
func verifyOf(asked types.OptionalBool) *bool {
	if asked == types.OptionalBoolUndefined {
		return nil
	}
	return new(asked == types.OptionalBoolTrue)
}

// platform says which image of an index is copied.
func (o *Ops) platform() *types.SystemContext {
	p := o.opt.Platform
	return &types.SystemContext{OSChoice: p.OS, ArchitectureChoice: p.Architecture, VariantChoice: p.Variant}
}

// system returns what the library needs to know of this mount and this line.
func (o *Ops) system(line pushLine) *types.SystemContext {
	sys := &types.SystemContext{
		AuthFilePath: o.opt.AuthFile,
		// The library's record of which registry has which blob is a database that takes cgo; without it the library would
		// make the directory all the same. No directory can be made here, and the record is kept in memory.
		BlobInfoCacheDir: os.DevNull,
		DockerProxy:      proxy.For,
	}
	if line.authFile != "" {
		sys.AuthFilePath = line.authFile
	}
	return sys
}

// verify returns whether certificates are to be checked, as far as somebody has said so.
func (o *Ops) verify(line pushLine) types.OptionalBool {
	if line.tlsVerify == types.OptionalBoolUndefined && o.opt.TLSVerify != nil {
		return types.NewOptionalBool(*o.opt.TLSVerify)
	}
	return line.tlsVerify
}

// drain makes the library report its progress, and passes on to the task and the watchdog what the destination gets, and
// has already. The library blocks until a report is taken; stop is to be called when it has returned.
func drain(options *copy.Options, t *task, watch *watchdog) (stop func()) {
	reports := make(chan types.ProgressProperties)
	options.Progress, options.ProgressInterval = reports, time.Second/4
	done := make(chan struct{})
	go func() {
		defer close(done)
		for report := range reports {
			if report.OffsetUpdate > 0 || report.Event == types.ProgressEventSkipped {
				watch.reached.Store(true)
			}
			t.sends(int64(report.OffsetUpdate)) // as they are stored there: of another size than what was read
			switch report.Event {
			case types.ProgressEventSkipped:
				t.blob(report.Artifact.Digest, report.Artifact.Size).skipped()
			case types.ProgressEventDone:
				t.blob(report.Artifact.Digest, report.Artifact.Size).finished()
			}
			watch.touch()
		}
	}()
	return func() {
		close(reports)
		<-done
	}
}

// recompressed is a destination that asks for another compression of layers than its transport would.
type recompressed struct {
	types.ImageReference
	desired types.LayerCompression
}

func (r *recompressed) NewImageDestination(ctx context.Context, sys *types.SystemContext) (types.ImageDestination, error) {
	dest, err := r.ImageReference.NewImageDestination(ctx, sys)
	if err != nil {
		return nil, err
	}
	return &recompressedDestination{dest, r.desired}, nil
}

type recompressedDestination struct {
	types.ImageDestination
	desired types.LayerCompression
}

func (d *recompressedDestination) DesiredLayerCompression() types.LayerCompression { return d.desired }
