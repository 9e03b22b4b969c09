package ops

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"go.podman.io/storage"

	"github.com/imgfs/imgfs/imgsrc"
)

// Options are what operations need to know of the mount that they belong to.
type Options struct {
	// Catalog has the images and their sources.
	Catalog *imgsrc.Catalog
	// ReadOnly refuses every request with imgsrc.ErrReadOnly.
	ReadOnly bool
	// AuthFile holds the credentials for registries, in the format of containers-auth.json(5). Empty: where podman looks.
	AuthFile string
	// TLSVerify says whether registries must have a valid certificate. nil: as registries.conf and Insecure say.
	TLSVerify *bool
	// Insecure reports whether a registry, which is given as HOST[:PORT], needs no certificate. nil: those on this machine's
	// loopback, as with CRI-O and Docker.
	Insecure func(host string) bool
	// Platform is which image of an index is pulled, loaded or pushed, where not all are. Zero: the one for this machine.
	Platform imgsrc.Platform
	// Open opens a path, or TRANSPORT:PLACE, as the source that it would be for a mount. nil: nothing can be loaded.
	Open func(ctx context.Context, place string) (imgsrc.Source, error)
	// Registry returns a registry in which blobs can be mounted, with the credentials of authFile (empty: AuthFile) and
	// tlsVerify (nil: as TLSVerify says). nil: all blobs are sent.
	Registry func(host, authFile string, tlsVerify *bool) Mounter
	// OpenReceiver opens a containers-storage that is no source of the mount, to push to it. nil: there is none.
	OpenReceiver func(ctx context.Context, options storage.StoreOptions) (Receiver, error)
	// Offline refuses pushes to registries and pulls from them.
	Offline bool
	// SignaturePolicy is the policy.json to go by. Empty: the system's.
	SignaturePolicy string
	// PathInside reports whether a path lies in this mount. It is given absolute, clean paths in which symbolic links are
	// resolved, so that comparing it with the mountpoint will do. It must not look the path up: the file system that would
	// answer is the one that waits. nil: no path does.
	PathInside func(path string) bool
	// Pushes is how many pushes may run at once; 0 means 4.
	Pushes int
	// Timeout is how long a registry may keep silent in the middle of a push or a pull; 0 means two minutes, which leaves a slow one
	// the time to store a large layer.
	Timeout time.Duration
	// Log gets one line for each failed operation; nil means none.
	Log *slog.Logger
}

// Request is one write to a control file, or what ln, mv and rm ("link") and rmdir ("remove") ask for.
type Request struct {
	// Control is the file's name: "tags", "push", "pull", "load"; or "link", with lines as for tags, or "remove".
	Control string
	Image   string     // the id of the image whose control it is; empty for pull and load
	Lines   [][]string // the words of each line; blank lines and comments are left out
	Key     string     // equal for equal writes, and only for those; empty: this request is never joined
	UID     uint32     // the writer
	PID     uint32     // the writer; 0 if it cannot be seen from here
	Remote  bool       // of a link: its name is one in a registry
	Err     error      // why Lines could not be made out: Do records it and fails with it

	late *task // becomes a job if it takes long; may be nil
}

// Ops carries out requests. Its methods may be called from several goroutines at once.
type Ops struct {
	opt    Options
	log    *slog.Logger
	jobs   *jobs
	turns  turns // of the jobs that copy
	tasks  tasks
	events eventLog
	others changes
	errors lastErrors
	known  knownBlobs

	backoff time.Duration // between two attempts at a push or a pull

	noPolicy sync.Once // says once that there is no signature policy

	// copy does the work of one push. Tests of what surrounds it put something quicker here.
	copy func(ctx context.Context, p pushJob) error
}

// New returns an Ops that carries out requests until it is closed.
func New(opt Options) *Ops {
	if opt.Pushes == 0 {
		opt.Pushes = 4
	}
	if opt.Timeout == 0 {
		opt.Timeout = 2 * time.Minute
	}
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	if opt.Insecure == nil {
		opt.Insecure = loopback
	}
	if opt.Open == nil {
		opt.Open = func(_ context.Context, place string) (imgsrc.Source, error) {
			return nil, fail(imgsrc.ErrUnsupported, "%s: nothing can be loaded here", quote(place))
		}
	}
	if opt.PathInside == nil {
		opt.PathInside = func(string) bool { return false }
	}
	o := &Ops{opt: opt, log: opt.Log, jobs: newJobs(opt.Log), turns: turns{free: opt.Pushes}, backoff: firstBackoff}
	o.copy = o.copyImage
	o.others.report = o.events.add
	if opt.Catalog != nil {
		opt.Catalog.OnChange(o.others.look)
	}
	return o
}

// Do carries out one request: it checks all the lines, runs them in their order, and returns when the last one is done or
// the first has failed. When ctx ends first, Do returns ctx's error at once; the work stops unless a Do with the same Key
// comes within two seconds, which then waits for the work that is under way. If it ends for a cause that is ETIMEDOUT nobody
// will come again: the work has failed with that, and Do returns what is recorded of it.
//
// Errors: imgsrc.ErrInvalid (a line, a name, a destination), ErrNotFound (the image, or the name to be removed),
// ErrExists, ErrReadOnly, ErrDenied (by a registry, or the signature policy), ErrUnsupported, ErrDamaged; of the system's
// ECONNREFUSED, EHOSTUNREACH, ETIMEDOUT, ENOSPC and what opening a path says; ECANCELED when the job was cancelled,
// or the Ops closed.
func (o *Ops) Do(ctx context.Context, r Request) error {
	return o.jobs.do(ctx, r.Key, func(ctx context.Context) (err error) {
		switch r.Control {
		case "push", "pull", "load":
		default: // not for long: meanwhile nothing is anybody else's
			defer o.others.hold()()
			var t *task
			ctx, t = o.beginLate(ctx, r)
			r.late = t
			err = fail(nil, "internal error; the log has more") // should it panic
			defer func() { t.over(err) }()
		}
		switch r.Control {
		case "tags":
			return o.tags(ctx, r, o.tag)
		case "link":
			return o.tags(ctx, r, o.link)
		case "remove":
			return o.remove(ctx, r)
		case "push":
			return o.push(ctx, r)
		case "pull":
			return o.pull(ctx, r)
		case "load":
			return o.load(ctx, r)
		}
		op := operation{kind: r.Control, doing: "writing " + r.Control + " of", request: r, start: time.Now()}
		return o.done(op, fail(imgsrc.ErrInvalid, "there is no such control"))
	})
}

// refuse returns why nothing of a request is to be carried out, nil if there is no reason.
func (o *Ops) refuse(r Request) error {
	if o.opt.ReadOnly {
		return fail(imgsrc.ErrReadOnly, "this mount is read-only")
	}
	return r.Err
}

// Record adds an event that is not an operation ("drop": half a line that was never completed); text is the error if
// status ends in -error.
func (o *Ops) Record(status, image, text string) {
	e := event{Type: status, Image: image}
	if strings.HasSuffix(status, "-error") {
		e.Error = oneLine(text)
	} else {
		e.Message = oneLine(text)
	}
	o.events.add(e)
}

// Events returns the events since New as JSON lines, oldest first, and when the last was added (zero if there is none).
// Past 1 MiB the older half is dropped. The bytes are never changed afterwards.
func (o *Ops) Events() (text []byte, changed time.Time) { return o.events.read() }

// LastError returns the text of the last failed operation on the image with this id, without one of the last pull or load,
// empty if there was none or one has succeeded since, and when that changed (zero if it never did).
func (o *Ops) LastError(id string) (text string, changed time.Time) { return o.errors.get(id) }

// Close cancels what is running or queued and waits until it is gone, or until ctx ends, whose error it then returns.
// Requests that come later fail with ECANCELED.
func (o *Ops) Close(ctx context.Context) error { return o.jobs.close(ctx) }

// image returns the catalog's entry for the image of a request, from a listing that is not older than the request.
func (o *Ops) image(ctx context.Context, id string) (*imgsrc.Snapshot, *imgsrc.Entry, error) {
	snapshot, err := o.opt.Catalog.Refresh(ctx)
	if e := snapshot.ByID(id); e != nil {
		return snapshot, e, nil // what another source's listing failed with is no concern of this image
	}
	if err != nil {
		return nil, nil, err
	}
	return nil, nil, fail(imgsrc.ErrNotFound, "the image is not there any more")
}

// An operation is what is being done, or was, or was refused: what the events, the log and the error text say of it. One
// that takes its time becomes a job, see begin.
type operation struct {
	kind      string // what the job is called, and the event: "push"; "push-error" when it failed
	status    string // what the event is called instead; may be empty
	doing     string // begins the error text: "pushing"
	to        string // what follows the image in the error text; may be empty
	reference string // a name or a destination
	hint      func(error) string
	request   Request
	start     time.Time
	bytes     int64  // sent
	job       uint32 // its number; 0: it was none
	arrived   string // the id of the image that came of it
}

func (op *operation) event() event {
	image := op.request.Image
	if image == "" {
		image = op.arrived
	}
	return event{
		Type: cmp.Or(op.status, op.kind), Image: image, Reference: redactWord(op.reference), User: &op.request.UID,
		Duration: seconds(time.Since(op.start)), Bytes: op.bytes, Job: cmp.Or(op.job, op.request.late.listed()),
	}
}

func (o *Ops) succeeded(op operation) {
	id := op.arrived
	if op.kind == "remove" {
		id = op.request.Image
	}
	o.others.own(id, strings.Fields(op.reference)...)
	o.events.add(op.event())
	o.errors.set(op.request.Image, "")
}

// done records that op has ended with err, and returns what Do returns: nil, or an error without credentials in it.
func (o *Ops) done(op operation, err error) error {
	if err == nil {
		o.succeeded(op)
		return nil
	}
	prefix := fmt.Sprintf("%s %.12s", op.doing, op.request.Image)
	if op.request.Image == "" {
		prefix = strings.TrimSpace(op.doing + " " + redactWord(op.reference))
	}
	if op.to != "" {
		prefix += " to " + op.to
	}
	cond := condition(err)
	text := prefix + ": " + err.Error()
	if hint := op.hintFor(err); hint != "" {
		text += ": " + hint
	}
	f := &failure{text: oneLine(text), condition: cond}
	e := op.event()
	e.Type += "-error"
	e.Error = f.text
	o.events.add(e)
	o.errors.set(op.request.Image, f.text)
	o.log.Warn(op.doing, "image", op.request.Image, "reference", e.Reference, "user", op.request.UID, "error", f.text)
	return f
}
