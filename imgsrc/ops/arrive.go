package ops

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"regexp"
	"strings"
	"syscall"

	"github.com/docker/distribution/registry/api/errcode"
	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/copy"
	"go.podman.io/image/v5/docker"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/pkg/sysregistriesv2"
	"go.podman.io/image/v5/transports"
	"go.podman.io/image/v5/types"

	"github.com/imgfs/imgfs/imgsrc"
)

// An arrival is one image that is to be put into a source of this mount.
type arrival struct {
	to    Receiver
	name  string // as CheckName returns it; empty: none
	id    string // by which it is put there without a name
	ref   types.ImageReference
	sys   *types.SystemContext // of the place that it comes from
	only  *imgsrc.Platform     // a single image must be for it; nil: for any
	all   bool                 // with all images of the index that it is
	exact bool                 // as it is, to the byte
	blobs bool                 // its layers there are blobs of the manifest's digests, compressed or not
	known *blobPlan            // of several images, of which it is one, as the task has been told; nil: it is the only one
	text  []byte               // its manifest there; nil: its own
	task  *task
	watch *watchdog

	instances []digest.Digest // with these images of the index that it is; nil: see all
}

// receive copies an image into the source that takes it, if the signature policy lets it through, and returns its id
// there; empty if the source does not say.
func (o *Ops) receive(ctx context.Context, a arrival) (id string, err error) {
	ctx = imgsrc.WithWaiting(ctx, a.watch.waits(a.task))
	policy, err := o.policy()
	if err != nil {
		return "", err
	}
	defer func() { _ = policy.Destroy() }()
	if src, ok := a.ref.(*source); ok { // a copy asks about one name alone
		if err := permitted(ctx, policy, src); err != nil {
			return "", err
		}
	}
	receive := a.to.Receive
	if to, ok := a.to.(manifestReceiver); ok && a.text != nil {
		receive = func(ctx context.Context, name, id string, copy func(types.ImageReference) error) error {
			return to.ReceiveAs(ctx, name, id, a.text, copy)
		}
	}
	resume := a.watch.pause() // what a store waits for before the copy and after it is not the registry's
	err = receive(ctx, a.name, a.id, func(to types.ImageReference) error {
		resume()
		defer func() { resume = a.watch.pause() }()
		var resolved types.ImageReference
		sys := *a.sys // of the destination: which platform is wanted is checked there once more
		options := &copy.Options{SourceCtx: a.sys, DestinationCtx: &sys, ReportResolvedReference: &resolved, PreserveDigests: a.exact}
		options.RemoveSignatures = isLayout(a.to) // which has no place for them; the policy is asked of them all the same
		if a.all {
			options.ImageListSelection = copy.CopyAllImages
		}
		if a.instances != nil {
			options.ImageListSelection, options.Instances = copy.CopySpecificImages, a.instances
		}
		plans := &planner{task: a.task, watch: a.watch, only: a.only, all: a.all, tars: !isLayout(a.to), known: a.known}
		into := to
		if a.blobs && isLayout(a.to) {
			into = &recompressed{to, types.PreserveOriginal} // uncompressed ones too: their digests are the image's
		}
		var from types.ImageReference = &plannedSource{a.ref, plans}
		into = &plannedDestination{into, plans}
		_, here := a.ref.(*source) // its readers count the bytes, and it tells what there will be
		if here {
			from = a.ref
		}
		if _, simple := to.(interface{ SimpleSigningOnly() }); simple && !here {
			err := o.attempt(ctx, a.task, a.watch, func() (err error) {
				options.RemoveSignatures, err = otherSignatures(ctx, a.ref, a.sys, plans)
				return err
			})
			if err != nil {
				return err
			}
		}
		once := func() error {
			options := *options
			stop := watchArrival(&options, a.task, a.watch, here)
			defer stop()
			_, err := copy.Image(ctx, policy, into, from, &options)
			return err
		}
		var err error
		if here {
			err = once()
		} else {
			err = o.attempt(ctx, a.task, a.watch, once)
		}
		id = idOf(resolved)
		if made, ok := to.(interface{ Received() string }); ok && id == "" {
			id = made.Received()
		}
		return err
	})
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil { // a copy that was left behind, waiting for a lock, has id and resume still
		return "", shorter(err, a.ref)
	}
	resume()
	o.others.own(cmp.Or(id, a.id), a.name)
	return id, nil
}

// spoolText is where a blob was kept in the meantime, which is of no use to anybody.
var spoolText = regexp.MustCompile(`writing blob: (storing blob to file "[^"]*": (happened during read: )?|adding layer with blob "[^ ]*": )`)

// rejectedText names the image, which the operation does as well.
var rejectedText = regexp.MustCompile(`Running image \S+ is rejected by policy\.`)

// shorter leaves out of an error's text what the operation says already.
func shorter(err error, ref types.ImageReference) error {
	if err = saidOnce(err); err == nil {
		return nil
	}
	text := spoolText.ReplaceAllString(err.Error(), "")
	text = rejectedText.ReplaceAllString(text, "rejected")
	for _, prefix := range []string{"initializing source " + transports.ImageName(ref) + ": ", "Source image rejected: "} {
		text = strings.Replace(text, prefix, "", 1)
	}
	if text == err.Error() {
		return err
	}
	return &reworded{text, err}
}

// closingText is what the library says first of a destination that could not be closed, after a copy that has failed.
var closingText = regexp.MustCompile(`^ ?\(dest: (.+?)\): `)

// saidOnce leaves out what went wrong with closing a destination if that is what went wrong before: a full disk is full.
func saidOnce(err error) error {
	if err == nil {
		return nil
	}
	text := err.Error()
	closing := closingText.FindStringSubmatch(text)
	if closing == nil {
		return err
	}
	if rest := text[len(closing[0]):]; strings.Contains(rest, closing[1]) {
		return &reworded{rest, err}
	}
	return err
}

// A reworded error is another one with a text of its own.
type reworded struct {
	text string
	err  error
}

func (r *reworded) Error() string { return r.text }
func (r *reworded) Unwrap() error { return r.err }

// watchArrival makes the library report its progress, and passes it on to the task. The watchdog watches as long as bytes of
// a blob are still to come, and until the first one does; what comes between, and last, is the work of the store. counted
// says that somebody else counts the bytes that are read.
func watchArrival(options *copy.Options, t *task, watch *watchdog, counted bool) (stop func()) {
	reports := make(chan types.ProgressProperties)
	options.Progress, options.ProgressInterval = reports, 1 // each read: else nobody says when the last byte is here
	done := make(chan struct{})
	go func() {
		defer close(done)
		coming := map[digest.Digest]int64{} // what is left of each blob
		var resume func()
		for report := range reports {
			watch.reached.Store(true)
			d := report.Artifact.Digest
			blob := t.blob(d, report.Artifact.Size)
			switch report.Event {
			case types.ProgressEventNewArtifact:
				coming[d] = report.Artifact.Size
				if !counted {
					blob.begun()
				}
			case types.ProgressEventSkipped:
				blob.skipped()
			}
			if n := int64(report.OffsetUpdate); n > 0 {
				t.sends(n)
				if !counted {
					blob.add(int(n))
				}
				coming[d] -= n
			}
			if report.Event == types.ProgressEventDone {
				blob.finished()
				delete(coming, d)
			}
			if report.Artifact.Size > 0 && coming[d] <= 0 {
				delete(coming, d)
			}
			watch.touch()
			if idle := len(coming) == 0; idle && resume == nil {
				resume = watch.pause()
			} else if !idle && resume != nil {
				resume()
				resume = nil
			}
		}
		if resume != nil {
			resume()
		}
	}()
	return func() {
		close(reports)
		<-done
	}
}

// fetching returns what the library needs to know to fetch from the registry host.
func (o *Ops) fetching(named reference.Named, authFile string, verify types.OptionalBool) (*types.SystemContext, error) {
	sys := o.system(pushLine{authFile: authFile})
	sys.DockerRegistryUserAgent = "imgfs"
	configured, err := sysregistriesv2.FindRegistry(sys, named.Name())
	if err != nil {
		return nil, err
	}
	if configured != nil && configured.Blocked {
		return nil, fail(imgsrc.ErrDenied, "registries.conf blocks %s", configured.Prefix)
	}
	verify = o.verify(pushLine{tlsVerify: verify})
	switch {
	case verify != types.OptionalBoolUndefined:
		sys.DockerInsecureSkipTLSVerify = types.NewOptionalBool(verify == types.OptionalBoolFalse)
	case configured == nil && o.opt.Insecure(reference.Domain(named)):
		sys.DockerInsecureSkipTLSVerify = types.OptionalBoolTrue
	}
	return sys, nil
}

// unknown reports whether a registry said that it has no such repository, or no such image.
func unknown(err error) bool {
	var code errcode.ErrorCoder
	var status docker.UnexpectedHTTPStatusError
	switch {
	case errors.As(err, &code):
		switch code.ErrorCode().String() {
		case "MANIFEST_UNKNOWN", "NAME_UNKNOWN":
			return true
		}
	case errors.As(err, &status):
		return status.StatusCode == http.StatusNotFound
	}
	text := err.Error()
	return strings.Contains(text, "StatusCode: 404,") || strings.Contains(text, "no image found in ")
}

// arrivalHint says what to do about an error of fetching from the registry host.
func arrivalHint(err error, host string) string {
	var other *otherPlatform
	switch c := condition(err); {
	case rejected(err):
		return "the signature policy (policy.json) does not let this image in"
	case errors.As(err, &other): // which says it
		return ""
	case errors.Is(c, imgsrc.ErrNotFound) && strings.Contains(err.Error(), "no image found in "):
		return "name one of the platforms that it has with platform=os/architecture"
	case errors.Is(c, imgsrc.ErrNotFound):
		return "check the name and the tag"
	case errors.Is(c, syscall.ENOSPC):
		return "make room where the images are, or where TMPDIR is (/var/tmp)"
	}
	return registryHint(err, host)
}

// show makes what has arrived visible in the tree, and returns its id.
func (o *Ops) show(ctx context.Context, to imgsrc.Source, id, name string) string {
	snapshot, err := o.opt.Catalog.Refresh(context.WithoutCancel(ctx))
	if err != nil {
		o.log.Warn("listing what has arrived", "source", to.Name(), "error", redact(err.Error()))
	}
	if id == "" && name != "" {
		if entry := snapshot.ByName(name); entry != nil {
			id = entry.ID
		}
	}
	return id
}

// came says which image has come, and of what.
func (t *task) came(id, reference string) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.operation.arrived, t.reference = id, reference
}

// becomes says that the operation has turned out to be of another kind.
func (t *task) becomes(kind string) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.kind = kind
}
