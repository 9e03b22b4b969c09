package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"strings"
	"sync/atomic"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/moby/client"
	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/dockerhost"
)

// How long the engine may take. A listing of a thousand images takes it some 100 ms.
const (
	dialTimeout   = 10 * time.Second
	answerTimeout = 10 * time.Second // for an answer to a question
	changeTimeout = time.Minute      // for a change of names, of which the last removes the image
	listTimeout   = 5 * time.Minute  // for all the answers that make a listing
)

// An engine is the client of one engine.
type engine struct {
	api    *client.Client
	host   string
	answer time.Duration // how long an answer to a question may take
	// lastDial is why it could not be connected to: the library's errors do not keep it.
	lastDial atomic.Pointer[error]
}

// errNoEngine is in all errors that mean that the engine cannot be reached.
var errNoEngine = errors.New("no engine answers")

// errSilent is in all errors that mean that it was reached, and does not answer.
var errSilent = errors.New("the engine is silent")

// A failure says in its text what is wrong, and is what its reasons are for errors.Is.
type failure struct {
	text    string
	reasons []error
}

func (f *failure) Error() string   { return f.text }
func (f *failure) Unwrap() []error { return f.reasons }

// newEngine makes a client for host, which is DOCKER_HOST or the default socket if it is empty. It connects to nothing yet.
func newEngine(host string) (*engine, error) {
	at, err := dockerhost.Parse(host)
	if err != nil {
		return nil, noSource(err.Error(), err)
	}
	e := &engine{host: at.String(), answer: answerTimeout}
	if e.api, err = at.Client(client.WithDialContext(e.dialer(at))); err != nil {
		return nil, noSource(fmt.Sprintf("connecting to %s: %v", e.host, err), err)
	}
	return e, nil
}

// noSource is an error of Open.
func noSource(text string, reasons ...error) error {
	return &failure{text: text, reasons: append([]error{imgsrc.ErrNoSource}, reasons...)}
}

func (e *engine) dialer(at dockerhost.Address) func(context.Context, string, string) (net.Conn, error) {
	d := net.Dialer{Timeout: dialTimeout}
	return func(ctx context.Context, _, asked string) (net.Conn, error) {
		to := at.Host
		if at.Network == "tcp" {
			to = asked // a proxy's, perhaps
		}
		conn, err := d.DialContext(ctx, at.Network, to)
		if err != nil {
			e.lastDial.Store(&err)
		}
		return conn, err
	}
}

// ask asks the engine for something that it has at hand. Error: also errSilent.
func ask[T any](ctx context.Context, e *engine, ask func(context.Context) (T, error)) (T, error) {
	return call(ctx, e, e.answer, ask)
}

// call has the engine do something.
func call[T any](ctx context.Context, e *engine, timeout time.Duration, ask func(context.Context) (T, error)) (T, error) {
	limited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	answer, err := ask(limited)
	if err != nil {
		var none T
		return none, e.explain(ctx, err)
	}
	return answer, nil
}

// explain turns an error of the client into one of this project's. ctx is the caller's.
func (e *engine) explain(ctx context.Context, err error) error {
	text := strings.TrimPrefix(err.Error(), "Error response from daemon: ")
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, context.DeadlineExceeded):
		return &failure{fmt.Sprintf("the engine at %s does not answer in time", e.host), []error{errSilent, unix.ETIMEDOUT}}
	case client.IsErrConnectionFailed(err):
		return e.unreachable(err)
	case dockerhost.IsFull(err):
		return &failure{fmt.Sprintf("the engine at %s: %s", e.host, text), []error{unix.ENOSPC, err}}
	case strings.HasPrefix(text, "empty export"):
		return &failure{"an engine saves no image without layers: of its config there is what docker inspect shows", []error{imgsrc.ErrUnsupported, err}}
	case cerrdefs.IsNotFound(err):
		return &failure{text, []error{imgsrc.ErrNotFound, err}}
	case cerrdefs.IsConflict(err):
		return &failure{text, []error{imgsrc.ErrInUse, err}}
	case cerrdefs.IsInvalidArgument(err):
		return &failure{text, []error{imgsrc.ErrInvalid, err}}
	case cerrdefs.IsPermissionDenied(err), cerrdefs.IsUnauthorized(err):
		return &failure{text, []error{imgsrc.ErrDenied, err}}
	}
	return &failure{fmt.Sprintf("the engine at %s: %s", e.host, text), []error{err}}
}

// unreachable says why there is no connection.
func (e *engine) unreachable(err error) error {
	cause := err
	if d := e.lastDial.Load(); d != nil {
		cause = *d
	}
	if errors.Is(cause, fs.ErrPermission) {
		return &failure{fmt.Sprintf("no engine may be asked at %s: its socket is for root and the group docker", e.host), []error{errNoEngine, cause}}
	}
	if errors.Is(cause, fs.ErrNotExist) { // the socket: what was asked for may well be there
		cause = unix.ECONNREFUSED
	}
	text := fmt.Sprintf("no engine answers at %s: is it running, and DOCKER_HOST right?", e.host)
	var dial *net.OpError
	if !errors.Is(cause, unix.ECONNREFUSED) && !errors.As(cause, &dial) { // TLS, or something else than an engine
		text += " (" + cause.Error() + ")"
	}
	return &failure{text, []error{errNoEngine, cause}}
}
