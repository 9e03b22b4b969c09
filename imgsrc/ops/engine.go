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
	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc/dockerhost"
)

// An engine is a name in the Docker engine at DOCKER_HOST.
type engine struct{ named reference.NamedTagged }

func parseDaemon(rest string, _ pathResolver) (destination, error) {
	named, err := parseTagged(rest)
	return &engine{named}, err
}

func (d *engine) kind() *kind    { return daemonKind }
func (d *engine) String() string { return "docker-daemon:" + d.named.String() }
func (d *engine) check() error   { return nil }

func (d *engine) hint(err error) string {
	if full := (*engineFull)(nil); errors.As(err, &full) {
		return "make room on the disk of the engine at " + full.at
	}
	return localHint(err)
}

// An engineFull is what an engine said that has no room on its disk for what it was sent.
type engineFull struct {
	error
	at string // the engine's address
}

func (e *engineFull) Unwrap() []error { return []error{unix.ENOSPC, e.error} }

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

// engineFailed says what became of an engine that did not take what it was sent: whether its disk is full, and whether it is still
// there if it broke off. Then the library only says that a pipe of its own was closed.
func engineFailed(ctx context.Context, err error) error {
	if at, gone := engineHere(); gone == nil && dockerhost.IsFull(err) {
		return &engineFull{err, redactWord(at.String())}
	}
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
