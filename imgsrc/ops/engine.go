package ops

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"
	"time"

	"github.com/moby/moby/client"
	"go.podman.io/image/v5/docker/daemon"
	"go.podman.io/image/v5/docker/reference"
	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
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

func (d *engine) stage(_ context.Context, s staging) (staged, error) {
	host := engineHost()
	if err := answers(host); err != nil {
		return staged{}, err
	}
	s.sys.DockerDaemonHost = host
	ref, err := daemon.NewReference("", d.named)
	return staged{ref: ref}, err
}

func engineHost() string { return cmp.Or(os.Getenv(client.EnvOverrideHost), client.DefaultDockerHost) }

// engineGone says of an engine that broke off what it was sent whether it is still there. The library only says that a pipe
// of its own was closed.
func engineGone(err error) error {
	if !errors.Is(err, io.ErrClosedPipe) && !strings.Contains(err.Error(), io.ErrClosedPipe.Error()) {
		return err
	}
	if gone := answers(engineHost()); gone != nil {
		return fmt.Errorf("the engine broke off: %w", gone)
	}
	return fail(nil, "the engine broke off: its log may say why")
}

// answers fails unless the engine can be connected to. The library would only say that a pipe of its own was closed.
func answers(host string) error {
	u, err := client.ParseHostURL(host)
	if err != nil {
		return fail(imgsrc.ErrInvalid, "%s is no engine's address: DOCKER_HOST is unix:///PATH or tcp://HOST:PORT", quote(host))
	}
	if u.Scheme != "unix" && u.Scheme != "tcp" || u.Scheme == "tcp" && u.Port() == "" {
		return nil // the library knows what to make of it
	}
	conn, err := net.DialTimeout(u.Scheme, u.Host, engineTimeout)
	switch {
	case err == nil:
		return conn.Close()
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ECONNREFUSED):
		return fail(unix.ECONNREFUSED, "no engine answers at %s: start it, or set DOCKER_HOST for the mount", redactWord(host))
	}
	return err
}

// engineAnswers says whether the engine still answers, which it does while it unpacks what it was sent: that can take any
// time, and it says nothing about it.
func engineAnswers(ctx context.Context) bool {
	api, err := client.New(client.FromEnv)
	if err != nil {
		return false
	}
	defer api.Close()
	_, err = api.Ping(ctx, client.PingOptions{})
	return err == nil
}
