// Package dockerhost says where Docker's engine is and how it is to be spoken to, as the docker command takes it from
// DOCKER_HOST, DOCKER_TLS_VERIFY, DOCKER_CERT_PATH and DOCKER_CONFIG. It connects to nothing: that is for who reads images
// from an engine, and for who pushes one there.
package dockerhost

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/moby/client"
	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/imgsrc"
)

// An Address is where an engine is.
type Address struct {
	// Network and Host are what to dial: unix and a path, or tcp and HOST:PORT.
	Network, Host string
	// Certs is the directory of ca.pem, cert.pem and key.pem; empty: no TLS. A socket never has any.
	Certs string
	// Verify: the engine's certificate must be one of ca.pem's.
	Verify bool

	path string // of a tcp address that has one
}

// Parse reads an address, DOCKER_HOST's or the default socket's if it is empty, and the variables of TLS.
// Errors: imgsrc.ErrInvalid, imgsrc.ErrUnsupported.
func Parse(host string) (Address, error) {
	host = cmp.Or(host, os.Getenv(client.EnvOverrideHost), client.DefaultDockerHost)
	u, err := client.ParseHostURL(host)
	switch {
	case err != nil:
		return Address{}, imgsrc.Of(imgsrc.ErrInvalid, fmt.Errorf("%q is no engine's address: DOCKER_HOST is unix:///PATH or tcp://HOST:PORT", host))
	case u.Scheme == "ssh":
		return Address{}, imgsrc.Of(imgsrc.ErrUnsupported, fmt.Errorf("%s: ssh is not supported: forward the engine's socket (ssh -L) and give that as DOCKER_HOST", host))
	case u.Scheme != "unix" && u.Scheme != "tcp":
		return Address{}, imgsrc.Of(imgsrc.ErrUnsupported, fmt.Errorf("%s: an address of this kind is not supported: DOCKER_HOST is unix:///PATH or tcp://HOST:PORT", host))
	}
	at := Address{Network: u.Scheme, Host: u.Host, path: u.Path}
	if u.Scheme == "unix" {
		return at, nil
	}
	at.Certs, at.Verify = os.Getenv(client.EnvOverrideCertPath), os.Getenv(client.EnvTLSVerify) != ""
	if at.Verify && at.Certs == "" { // those of the docker command's configuration
		at.Certs = os.Getenv("DOCKER_CONFIG")
		if home, err := os.UserHomeDir(); at.Certs == "" && err == nil {
			at.Certs = filepath.Join(home, ".docker")
		}
	}
	at.Host = withPort(u, at.Certs != "")
	return at, nil
}

// withPort is the host of a tcp address with its port, which is another with TLS than without where none is named.
func withPort(u *url.URL, tls bool) string {
	switch {
	case u.Port() != "":
		return u.Host
	case tls:
		return net.JoinHostPort(u.Hostname(), "2376")
	}
	return net.JoinHostPort(u.Hostname(), "2375")
}

// String is the address as it is typed. It may have a user and a password in it.
func (at Address) String() string { return at.Network + "://" + at.Host + at.path }

// Means says whether there is TLS, in an error's text.
func (at Address) Means() string {
	if at.Certs == "" {
		return "without TLS"
	}
	return "with the certificates in " + at.Certs
}

// Client makes a client of the engine's API. It connects to nothing yet.
func (at Address) Client(opts ...client.Opt) (*client.Client, error) {
	return client.New(append([]client.Opt{at.tls(), client.WithHost(at.String()), client.WithAPIVersionFromEnv(), client.WithUserAgent("imgfs")}, opts...)...)
}

// IsFull says whether an error is an engine's word that its own disk is full: its API has no code for that.
func IsFull(err error) bool {
	return strings.Contains(err.Error(), unix.ENOSPC.Error()) && !errors.Is(err, unix.ENOSPC) // that would be this machine's
}

// tls is what the certificates mean for a client, nil if there are none.
func (at Address) tls() client.Opt {
	switch {
	case at.Certs == "":
		return nil
	case !at.Verify: // then it is DOCKER_CERT_PATH that names them
		return client.WithTLSClientConfigFromEnv()
	}
	return client.WithTLSClientConfig(filepath.Join(at.Certs, "ca.pem"), filepath.Join(at.Certs, "cert.pem"), filepath.Join(at.Certs, "key.pem"))
}
