package ops

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"time"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/copy"
	"go.podman.io/image/v5/image"
	"go.podman.io/image/v5/signature"
	"go.podman.io/image/v5/types"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/proxy"
)

// A pushJob is one push of one image.
type pushJob struct {
	line     pushLine
	snapshot *imgsrc.Snapshot
	held     imgsrc.Held
	task     *task // nil: nobody wants to know
}

// push carries out a write to an image's push.
func (o *Ops) push(ctx context.Context, r Request) error {
	op := operation{kind: "push", doing: "pushing", request: r, start: time.Now()}
	if err := o.refuse(r); err != nil {
		return o.done(op, err)
	}
	lines, err := parsePushes(r.Lines, o.resolver(r))
	if err != nil {
		return o.done(op, err)
	}
	snapshot, entry, err := o.image(ctx, r.Image)
	if err != nil {
		return o.done(op, err)
	}
	for _, line := range lines {
		to := line.dest.String()
		op := operation{kind: "push", doing: "pushing", to: to, reference: to, hint: line.dest.hint, request: r, start: time.Now()}
		run := func(ctx context.Context, t *task) error {
			return t.work(ctx, func() error { return o.copy(ctx, pushJob{line, snapshot, entry.First(), t}) })
		}
		if !line.wait {
			o.background(op, run)
		} else if err := run(o.begin(ctx, op)); err != nil {
			return err
		}
	}
	return nil
}

// copyImage does the work of a push.
func (o *Ops) copyImage(ctx context.Context, p pushJob) (err error) {
	if err := p.held.Desc().Damaged; err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	kind := p.line.dest.kind()
	watch := &watchdog{limit: o.opt.Timeout, bite: cancel, begun: time.Now()}
	if kind.remote {
		go watch.watch(ctx)
	}
	defer func() {
		if err != nil && ctx.Err() != nil {
			err = context.Cause(ctx) // why, and not where it was noticed
		}
	}()

	src := &source{held: p.held, plain: kind.plain || p.line.plain, instance: p.instance, reading: watch.pause, several: p.line.all, task: p.task}
	src.recompressed = p.line.compression != nil
	policy, err := o.policy()
	if err != nil {
		return err
	}
	defer func() { _ = policy.Destroy() }()
	if store, ok := p.line.dest.(*storeName); ok && p.line.format == "" {
		if _, err := policy.IsRunningImageAllowed(ctx, image.UnparsedInstance(src, nil)); err != nil {
			return err
		}
		if done, err := store.addName(p.held.Desc()); done || err != nil {
			return err
		}
	}
	blobs, all, err := src.blobs(ctx)
	if err != nil {
		return err
	}
	sys := o.system(p.line)
	to, err := p.line.dest.stage(staging{sys: sys, blobs: blobs, verify: o.verify(p.line), insecure: o.opt.Insecure})
	if to.discard != nil {
		defer to.discard()
	}
	if err != nil {
		return err
	}

	options := &copy.Options{SourceCtx: &types.SystemContext{}, DestinationCtx: sys, ForceManifestMIMEType: p.line.format}
	if p.line.all {
		options.ImageListSelection = copy.CopyAllImages
	}
	ref := to.ref
	switch {
	case p.line.plain && kind.compresses:
		ref = &recompressed{ref, types.Decompress}
	case p.line.compression != nil:
		sys.CompressionFormat, options.ForceCompressionFormat = p.line.compression, true
		if kind.preserves {
			ref = &recompressed{ref, types.Compress}
		}
	case all && kind.compresses && !kind.preserves:
		ref = &recompressed{ref, types.PreserveOriginal} // uncompressed blobs too: their digests are the image's
	}
	stop := drain(options, p.task, watch)
	_, err = copy.Image(ctx, policy, ref, src, options)
	stop()
	if err != nil || to.commit == nil {
		return err
	}
	return to.commit(ctx)
}

// instance returns the image with this manifest in the same source, for an index.
func (p *pushJob) instance(d digest.Digest) imgsrc.Image {
	for _, entry := range p.snapshot.Entries {
		for _, held := range entry.Held {
			if held.Source == p.held.Source && held.Desc().Digest == d {
				return held
			}
		}
	}
	return nil
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

// policy returns the signature policy. A machine that has none accepts everything, as it does everywhere else where
// nobody has said otherwise; that is said once in the log.
func (o *Ops) policy() (*signature.PolicyContext, error) {
	policy, err := signature.DefaultPolicy(&types.SystemContext{SignaturePolicyPath: o.opt.SignaturePolicy})
	if errors.Is(err, fs.ErrNotExist) && o.opt.SignaturePolicy == "" {
		o.noPolicy.Do(func() {
			o.log.Info("this machine has no signature policy (policy.json): every image may be pushed")
		})
		policy, err = &signature.Policy{Default: signature.PolicyRequirements{signature.NewPRInsecureAcceptAnything()}}, nil
	}
	if err != nil {
		return nil, fail(imgsrc.ErrDenied, "reading the signature policy: %s", err)
	}
	return signature.NewPolicyContext(policy)
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
