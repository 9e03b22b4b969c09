package ops

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"go.podman.io/image/v5/docker/daemon"
	"go.podman.io/image/v5/docker/reference"
)

// An engine is a name in the Docker engine at DOCKER_HOST.
type engine struct{ named reference.NamedTagged }

func parseDaemon(rest string, _ pathResolver) (destination, error) {
	named, err := parseTagged(rest)
	return &engine{named}, err
}

func (d *engine) kind() *kind           { return daemonKind }
func (d *engine) String() string        { return "docker-daemon:" + d.named.String() }
func (d *engine) check() error          { return nil }
func (d *engine) hint(err error) string { return localHint(err) }

// engineTimeout is how long an engine may take to be connected to, and to answer when it is asked whether it is there.
const engineTimeout = 10 * time.Second

func (d *engine) stage(ctx context.Context, s staging) (staged, error) {
	at, err := engineHere()
	if err == nil {
		err = at.answers(ctx)
	}
	if err != nil {
		return staged{}, err
	}
	at.configure(s.sys)
	ref, err := daemon.NewReference("", d.named)
	return staged{ref: ref}, err
}

// engineGone says of an engine that broke off what it was sent whether it is still there. The library only says that a pipe
// of its own was closed.
func engineGone(ctx context.Context, err error) error {
	if !errors.Is(err, io.ErrClosedPipe) && !strings.Contains(err.Error(), io.ErrClosedPipe.Error()) {
		return err
	}
	at, gone := engineHere()
	if gone == nil {
		gone = at.answers(ctx)
	}
	if gone != nil {
		return fmt.Errorf("the engine broke off: %w", gone)
	}
	return fail(nil, "the engine broke off: its log may say why")
}

// engineAnswers says whether the engine still answers, which it does while it unpacks what it was sent: that can take any
// time, and it says nothing about it.
func engineAnswers(ctx context.Context) bool {
	at, err := engineHere()
	return err == nil && at.ping(ctx) == nil
}
