package ops

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"

	"github.com/moby/moby/client"
	"go.podman.io/image/v5/types"
	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
)

// An engineAddress is where an engine is and how it is to be spoken to, as the docker command takes it from DOCKER_HOST,
// DOCKER_TLS_VERIFY, DOCKER_CERT_PATH and DOCKER_CONFIG.
type engineAddress struct {
	url    *url.URL // of a tcp address it has a port
	certs  string   // the directory of ca.pem, cert.pem and key.pem; empty: no TLS
	verify bool     // that the engine's certificate is one of ca.pem's
}

// engineHere reads the variables. Error: imgsrc.ErrInvalid.
func engineHere() (engineAddress, error) {
	host := cmp.Or(os.Getenv(client.EnvOverrideHost), client.DefaultDockerHost)
	u, err := client.ParseHostURL(host)
	if err != nil {
		return engineAddress{}, fail(imgsrc.ErrInvalid, "%s is no engine's address: DOCKER_HOST is unix:///PATH or tcp://HOST:PORT", quote(host))
	}
	at := engineAddress{url: u}
	if u.Scheme != "tcp" {
		return at, nil
	}
	at.certs, at.verify = os.Getenv(client.EnvOverrideCertPath), os.Getenv(client.EnvTLSVerify) != ""
	if at.verify && at.certs == "" {
		at.certs = os.Getenv("DOCKER_CONFIG")
		if home, err := os.UserHomeDir(); at.certs == "" && err == nil {
			at.certs = filepath.Join(home, ".docker")
		}
	}
	if u.Port() == "" {
		port := "2375"
		if at.certs != "" {
			port = "2376"
		}
		u.Host = net.JoinHostPort(u.Hostname(), port)
	}
	return at, nil
}

// String is the address as it is typed.
func (at engineAddress) String() string { return at.url.Scheme + "://" + at.url.Host + at.url.Path }

// configure tells the library, which takes tcp for TLS in any case.
func (at engineAddress) configure(sys *types.SystemContext) {
	sys.DockerDaemonHost = at.String()
	switch {
	case at.certs != "":
		sys.DockerDaemonCertPath, sys.DockerDaemonInsecureSkipTLSVerify = at.certs, !at.verify
	case at.url.Scheme == "tcp":
		sys.DockerDaemonHost = "http://" + at.url.Host
	}
}

// answers fails unless the engine can be connected to, and over tcp asked, with TLS or without. The library would only say that
// a pipe of its own was closed.
func (at engineAddress) answers(ctx context.Context) error {
	if at.url.Scheme != "unix" && at.url.Scheme != "tcp" {
		return nil // the library knows what to make of it
	}
	conn, err := net.DialTimeout(at.url.Scheme, at.url.Host, engineTimeout)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ECONNREFUSED):
		return fail(unix.ECONNREFUSED, "no engine answers at %s: start it, or set DOCKER_HOST for the mount", redactWord(at.String()))
	case err != nil:
		return err
	}
	if err := conn.Close(); err != nil || at.url.Scheme == "unix" {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, engineTimeout)
	defer cancel()
	if err := at.ping(ctx); err != nil {
		return fmt.Errorf("asking the engine at %s (%s): %w: check DOCKER_HOST, DOCKER_CERT_PATH and DOCKER_TLS_VERIFY of the mount", redactWord(at.String()), at.means(), err)
	}
	return nil
}

// means says whether there is TLS, in an error's text.
func (at engineAddress) means() string {
	if at.certs == "" {
		return "without TLS"
	}
	return "with the certificates in " + at.certs
}

// ping asks the engine whether it is there.
func (at engineAddress) ping(ctx context.Context) error {
	api, err := client.New(at.tls(), client.WithHost(at.String()), client.WithAPIVersionFromEnv())
	if err != nil {
		return err
	}
	defer api.Close()
	_, err = api.Ping(ctx, client.PingOptions{})
	return err
}

// tls is what the certificates mean for the engine's client, nil if there are none.
func (at engineAddress) tls() client.Opt {
	switch {
	case at.certs == "":
		return nil
	case !at.verify: // then it is DOCKER_CERT_PATH that names them
		return client.WithTLSClientConfigFromEnv()
	}
	return client.WithTLSClientConfig(filepath.Join(at.certs, "ca.pem"), filepath.Join(at.certs, "cert.pem"), filepath.Join(at.certs, "key.pem"))
}
