package ops

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/docker"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/image"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/image/v5/signature"
	"go.podman.io/image/v5/types"

	"github.com/imgfs/imgfs/imgsrc"
)

// pull carries out a write to pull.
func (o *Ops) pull(ctx context.Context, r Request) error {
	op := operation{kind: "pull", doing: "pulling", request: r, start: time.Now()}
	resolve := o.resolver(r)
	lines, err := o.parsePulls(r.Lines, resolve)
	return o.arrivals(ctx, op, lines, err, func(ctx context.Context, p pullLine, to Receiver, t *task) error {
		if p.place != "" {
			return o.loadPlace(ctx, p, to, t)
		}
		return o.pullFirst(ctx, p, to, t)
	})
}

// arrivals has one line of a write to pull or load carried out after the other; what was wrong with parsing them is err.
func (o *Ops) arrivals(ctx context.Context, op operation, lines []pullLine, err error, work func(context.Context, pullLine, Receiver, *task) error) error {
	if refused := o.refuse(op.request); refused != nil {
		err = refused
	}
	var to Receiver
	if err == nil {
		to, err = o.receiver()
	}
	if err != nil {
		return o.done(op, err)
	}
	for i, line := range lines {
		op := op
		op.reference = line.text
		if line.dryRun {
			op.kind = "pull-dry-run"
		}
		if len(line.candidates) > 0 && !o.opt.Offline {
			op.hint = func(err error) string { return pullHint(err, line.candidates) }
		} else {
			op.hint = arrivalLocalHint
		}
		var names []string // none: it may bring any
		for _, named := range line.candidates {
			names = append(names, named.String())
		}
		run := func(ctx context.Context, t *task) error {
			defer o.others.hold(names...)()
			return t.work(ctx, func() error { return work(ctx, line, to, t) })
		}
		carryOut := o.waitFor
		if !line.wait {
			carryOut = o.background
		}
		err := carryOut(ctx, op, sameLine(op, cmp.Or(line.place, line.text), op.request.Lines[i]), run)
		if err != nil {
			return err
		}
	}
	return nil
}

// pullFirst pulls the first of the candidates that can be had.
func (o *Ops) pullFirst(ctx context.Context, p pullLine, to Receiver, t *task) error {
	var errs []error
	for _, named := range p.candidates {
		err := o.pullOne(ctx, p, named, to, t)
		if err == nil || ctx.Err() != nil {
			return err
		}
		if len(p.candidates) == 1 {
			return err
		}
		if len(errs)+1 < len(p.candidates) {
			t.retry(err)
			t.plan(blobPlan{}) // nothing of this one is to be read
		}
		text := fmt.Sprintf("%s: %s", named, err)
		if hint := arrivalHint(err, reference.Domain(named)); hint != "" && !errors.Is(condition(err), imgsrc.ErrNotFound) {
			text += " (" + hint + ")"
		}
		errs = append(errs, fail(condition(err), "%s", text))
	}
	return noneOf(errs)
}

// pullHint says what to do about an error of a pull. Of several registries each has its own in the error, but for what is
// to be said once: that none has the image.
func pullHint(err error, candidates []reference.Named) string {
	if len(candidates) > 1 && !errors.Is(condition(err), imgsrc.ErrNotFound) {
		return ""
	}
	return arrivalHint(err, reference.Domain(candidates[0]))
}

// noneOf is the failure of all candidates. Its condition is the first that is more than that there is no such image.
func noneOf(errs []error) error {
	var texts []string
	var cond error
	for _, err := range errs {
		texts = append(texts, err.Error())
		if c := condition(err); cond == nil || errors.Is(cond, imgsrc.ErrNotFound) && c != nil {
			cond = c
		}
	}
	return fail(cond, "none of %d registries has it: %s", len(errs), strings.Join(texts, "; "))
}

// pullOne pulls one reference.
func (o *Ops) pullOne(ctx context.Context, p pullLine, named reference.Named, to Receiver, t *task) (err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watch := &watchdog{limit: o.opt.Timeout, bite: cancel, begun: time.Now()}
	go watch.watch(ctx)
	defer func() {
		if err != nil && ctx.Err() != nil {
			err = context.Cause(ctx) // why, and not where it was noticed
		}
	}()
	if o.opt.Offline {
		return fail(syscall.EHOSTUNREACH, "the mount is offline")
	}
	sys, err := o.fetching(named, p.authFile, p.tlsVerify)
	if err != nil {
		return err
	}
	o.choose(sys, p.platform)
	ref, err := docker.NewReference(named)
	if err != nil {
		return notReference(named.String(), err)
	}
	name, err := to.CheckName(named.String())
	if _, digested := named.(reference.Digested); digested { // podman keeps such a name too; nobody types it as a tag
		name, err = named.String(), nil
	}
	if err != nil {
		return err
	}
	only := p.platform
	if p.all {
		only = nil
	}
	var id string
	pull := func(ref types.ImageReference) (err error) {
		if p.dryRun {
			return shorter(o.attempt(ctx, t, watch, func() error { return o.askWhether(ctx, ref, sys, only, p.all, to) }), ref)
		}
		a := arrival{to: to, name: name, ref: ref, sys: sys, only: only, blobs: true, task: t, watch: watch}
		if into, apart := to.(indexReceiver); p.all && apart {
			id, err = o.pullAll(ctx, a, into, named)
		} else {
			a.all = p.all
			id, err = o.receive(ctx, a)
		}
		return err
	}
	err = pullNested(ref, named, pull)
	if inner := (*nested)(nil); p.all && errors.As(err, &inner) {
		p.all = false
		if err = pullNested(ref, named, pull); err == nil && !p.dryRun {
			o.pullWarning(fmt.Sprintf("the index %s lists other indexes: of it only the image for the mount's platform was pulled", quote(name)))
		}
	}
	if p.dryRun {
		return err
	}
	if err != nil {
		return err
	}
	t.came(o.show(ctx, to, id, name), named.String())
	return nil
}

// withIndex calls do with the manifest or index that ref means, if the policy allows it.
func (o *Ops) withIndex(ctx context.Context, ref types.ImageReference, sys *types.SystemContext, do func(src types.ImageSource, policy *signature.PolicyContext, text []byte, mediaType string) error) error {
	policy, err := o.policy()
	if err != nil {
		return err
	}
	defer func() { _ = policy.Destroy() }()
	src, err := ref.NewImageSource(ctx, sys)
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }()
	top := image.UnparsedInstance(src, nil)
	if _, err := policy.IsRunningImageAllowed(ctx, top); err != nil {
		return err
	}
	text, mediaType, err := top.Manifest(ctx)
	if err != nil {
		return err
	}
	return do(src, policy, text, mediaType)
}

// pullAll pulls all images of an index one by one, and then the index. What is no image stays in the registry: artifacts, which
// is said, and the attestations that builders put beside images.
func (o *Ops) pullAll(ctx context.Context, a arrival, into indexReceiver, named reference.Named) (id string, err error) {
	var index []byte
	var instances []instance
	var artifacts []digest.Digest
	look := func(src types.ImageSource, _ *signature.PolicyContext, text []byte, mediaType string) error {
		if !manifest.MIMETypeIsMultiImage(mediaType) {
			return nil
		}
		index = text
		list, err := manifest.ListFromBlob(text, mediaType)
		if err != nil {
			return fail(imgsrc.ErrDamaged, "reading the index: %s", err)
		}
		instances, artifacts, err = instancesOf(ctx, src, list, a.to)
		return err
	}
	err = o.attempt(ctx, a.task, a.watch, func() error { return o.withIndex(ctx, a.ref, a.sys, look) })
	if err != nil {
		return "", shorter(err, a.ref)
	}
	if index == nil {
		return o.receive(ctx, a) // a single image
	}
	a.known = &blobPlan{whole: true}
	for _, it := range instances {
		a.known.add(it.blobs)
	}
	a.task.plan(*a.known)
	repo := reference.TrimNamed(named)
	ids := map[digest.Digest]string{}
	for _, it := range instances {
		digested, err := reference.WithDigest(repo, it.digest)
		if err != nil {
			return "", err
		}
		one := a
		if one.ref, err = docker.NewReference(digested); err != nil {
			return "", err
		}
		sys := *a.sys
		sys.OSChoice, sys.ArchitectureChoice, sys.VariantChoice = it.os, it.architecture, it.variant
		one.sys, one.name, one.id = &sys, "", it.config.Encoded()
		if ids[it.digest], err = o.receive(ctx, one); err != nil {
			return "", fmt.Errorf("image %s of the index: %w", it.digest, err)
		}
	}
	defer a.watch.pause()()
	id, err = into.AddIndex(ctx, a.name, index, ids, "docker://"+repo.Name())
	if err != nil {
		return id, err
	}
	o.others.own(id, a.name)
	for _, d := range artifacts {
		o.pullWarning(fmt.Sprintf("of the index %s %s", quote(a.name), artifactText(d, a.to)))
	}
	return id, nil
}

// pullWarning says what is not as it was in what is pulled.
func (o *Ops) pullWarning(text string) {
	o.log.Warn("pulling", "error", text)
	o.Record("pull-warning", "", text)
}

// An instance is an image of an index.
type instance struct {
	digest                    digest.Digest
	config                    digest.Digest
	os, architecture, variant string
	blobs                     blobPlan
}

// instancesOf returns the images of an index, and the artifacts, without what was attested of others. Error:
// imgsrc.ErrUnsupported if there is nothing but artifacts.
func instancesOf(ctx context.Context, src types.ImageSource, list manifest.List, to Receiver) (all []instance, artifacts []digest.Digest, err error) {
	for _, d := range list.Instances() {
		entry, err := list.Instance(d)
		if err != nil {
			return nil, nil, fail(imgsrc.ErrDamaged, "reading the index: %s", err)
		}
		platform := entry.ReadOnly.Platform
		if platform != nil && platform.OS == "unknown" {
			continue
		}
		text, mediaType, err := src.GetManifest(ctx, &d)
		if err != nil {
			return nil, nil, err
		}
		if manifest.MIMETypeIsMultiImage(mediaType) {
			return nil, nil, &nested{}
		}
		if keepable(text, mediaType) != nil {
			artifacts = append(artifacts, d)
			continue
		}
		m, err := manifest.FromBlob(text, mediaType)
		if err != nil {
			return nil, nil, fail(imgsrc.ErrDamaged, "reading manifest %s: %s", d, err)
		}
		it := instance{digest: d, config: m.ConfigInfo().Digest, blobs: planOf(text, mediaType)}
		if it.config.Validate() != nil {
			return nil, nil, fail(imgsrc.ErrUnsupported, "image %s of the index has no config", d)
		}
		if platform != nil {
			it.os, it.architecture, it.variant = platform.OS, platform.Architecture, platform.Variant
		}
		all = append(all, it)
	}
	if all == nil && artifacts != nil {
		return nil, nil, fail(imgsrc.ErrUnsupported, "there are %d artifacts in the index, and no image: %s holds images alone; an OCI layout keeps artifacts", len(artifacts), to.Name())
	}
	return all, artifacts, nil
}
