package dockerhost

import (
	"errors"
	"strings"
	"testing"

	"github.com/imgfs/imgfs/imgsrc"
)

func TestParse(t *testing.T) {
	t.Setenv("HOME", "/home/me")
	for name, test := range map[string]struct {
		host, variable      string // what is asked for, and DOCKER_HOST
		verify, certs, conf string // DOCKER_TLS_VERIFY, DOCKER_CERT_PATH, DOCKER_CONFIG
		want                Address
	}{
		"nothing said":              {want: Address{Network: "unix", Host: "/var/run/docker.sock"}},
		"the variable":              {variable: "tcp://here:1", want: Address{Network: "tcp", Host: "here:1"}},
		"another than the variable": {host: "unix:///sock", variable: "tcp://here:1", want: Address{Network: "unix", Host: "/sock"}},
		"a socket has no TLS":       {host: "unix:///sock", verify: "1", certs: "/certs", want: Address{Network: "unix", Host: "/sock"}},
		"no port":                   {host: "tcp://here", want: Address{Network: "tcp", Host: "here:2375"}},
		"no port, with TLS":         {host: "tcp://here", certs: "/certs", want: Address{Network: "tcp", Host: "here:2376", Certs: "/certs"}},
		"an address of version 6":   {host: "tcp://[::1]", want: Address{Network: "tcp", Host: "[::1]:2375"}},
		"a path":                    {host: "tcp://here:1/engine", want: Address{Network: "tcp", Host: "here:1", path: "/engine"}},
		"verified by path":          {host: "tcp://here:1", verify: "1", certs: "/certs", conf: "/conf", want: Address{Network: "tcp", Host: "here:1", Certs: "/certs", Verify: true}},
		"verified by configuration": {host: "tcp://here:1", verify: "1", conf: "/conf", want: Address{Network: "tcp", Host: "here:1", Certs: "/conf", Verify: true}},
		"verified by its default":   {host: "tcp://here:1", verify: "1", want: Address{Network: "tcp", Host: "here:1", Certs: "/home/me/.docker", Verify: true}},
		"a configuration alone":     {host: "tcp://here:1", conf: "/conf", want: Address{Network: "tcp", Host: "here:1"}},
	} {
		t.Run(name, func(t *testing.T) {
			for variable, value := range map[string]string{"DOCKER_HOST": test.variable, "DOCKER_TLS_VERIFY": test.verify, "DOCKER_CERT_PATH": test.certs, "DOCKER_CONFIG": test.conf} {
				t.Setenv(variable, value)
			}
			if got, err := Parse(test.host); err != nil || got != test.want {
				t.Errorf("%+v, %v, want %+v", got, err, test.want)
			}
		})
	}
}

func TestNoAddress(t *testing.T) {
	for host, want := range map[string]struct {
		condition error
		text      string
	}{
		"junk":                    {imgsrc.ErrInvalid, `"junk" is no engine's address: DOCKER_HOST is`},
		"tcp://a b":               {imgsrc.ErrInvalid, "no engine's address"},
		"ssh://there":             {imgsrc.ErrUnsupported, "ssh is not supported: forward"},
		"npipe:////./pipe/docker": {imgsrc.ErrUnsupported, "of this kind is not supported: DOCKER_HOST is"},
	} {
		if _, err := Parse(host); !errors.Is(err, want.condition) || !strings.Contains(err.Error(), want.text) {
			t.Errorf("%s: %v", host, err)
		}
	}
}
