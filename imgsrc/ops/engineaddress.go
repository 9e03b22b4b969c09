package ops

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"

	"github.com/moby/moby/client"
	"go.podman.io/image/v5/types"
	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc/dockerhost"
)

// An engineAddress is where the engine of a push is.
type engineAddress struct{ dockerhost.Address }

// engineHere is the engine at DOCKER_HOST. Errors: imgsrc.ErrInvalid, imgsrc.ErrUnsupported.
func engineHere() (engineAddress, error) {
	at, err := dockerhost.Parse("")
	return engineAddress{at}, err
}

// configure tells the library, which takes tcp for TLS in any case.
func (at engineAddress) configure(sys *types.SystemContext) {
	sys.DockerDaemonHost = at.String()
	switch {
	case at.Certs != "":
		sys.DockerDaemonCertPath, sys.DockerDaemonInsecureSkipTLSVerify = at.Certs, !at.Verify
	case at.Network == "tcp":
		sys.DockerDaemonHost = "http://" + at.Host
	}
}

// answers fails unless the engine can be connected to, and over tcp asked, with TLS or without. The library would only say that
// a pipe of its own was closed.
func (at engineAddress) answers(ctx context.Context) error {
	conn, err := net.DialTimeout(at.Network, at.Host, engineTimeout)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ECONNREFUSED):
		return fail(unix.ECONNREFUSED, "no engine answers at %s: start it, or set DOCKER_HOST for the mount", redactWord(at.String()))
	case err != nil:
		return err
	}
	if err := conn.Close(); err != nil || at.Network == "unix" {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, engineTimeout)
	defer cancel()
	if err := at.ping(ctx); err != nil {
		return fmt.Errorf("asking the engine at %s (%s): %w: check DOCKER_HOST, DOCKER_CERT_PATH and DOCKER_TLS_VERIFY of the mount", redactWord(at.String()), at.Means(), err)
	}
	return nil
}

// ping asks the engine whether it is there.
func (at engineAddress) ping(ctx context.Context) error {
	api, err := at.Client()
	if err != nil {
		return err
	}
	defer api.Close()
	_, err = api.Ping(ctx, client.PingOptions{})
	return err
}
