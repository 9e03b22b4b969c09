package ops

import (
	"context"
	"log/slog"
	"net"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/docker"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/image/v5/pkg/sysregistriesv2"
	"go.podman.io/image/v5/types"

	"github.com/imgfs/imgfs/imgsrc"
)

// A destination is where a push goes.
type destination interface {
	kind() *kind
	// String is the destination as a person would type it, for texts.
	String() string
	// check fails if something is in the way. It changes nothing.
	check() error
	// stage makes what copying needs. The caller calls the discard of what it returns, also after a commit.
	stage(ctx context.Context, s staging) (staged, error)
	// hint says what to do about an error of a push to here; empty if nothing is known.
	hint(err error) string
}

// staging is what a destination may need to know of the push.
type staging struct {
	sys    *types.SystemContext // to be completed
	blobs  []digest.Digest      // the blobs that will be copied as they are
	verify types.OptionalBool   // as asked for in the line or of the mount

	insecure func(host string) bool // registries that need no certificate where verify says nothing

	openStore  receiverOpener
	guard      func(ctx context.Context, run func(context.Context) error) error // see jobs.guard
	openLayout func(ctx context.Context, dir string, blobs []digest.Digest) *present
	log        *slog.Logger
}

// staged is a destination that is ready to be copied to.
type staged struct {
	ref     types.ImageReference
	commit  func(ctx context.Context) error // makes visible what was copied; nil where the copy does
	discard func(why error)                 // removes what is left over, of a copy that failed if why is not nil; nil where there is nothing
	left    <-chan error                    // says why the destination was given up in the middle of the copy; nil: it cannot be
}

// A kind is what the destinations of one transport have in common.
type kind struct {
	name       string                         // the transport, as it is typed
	formats    []string                       // the manifests' media types that format= may ask for
	compresses bool                           // layers can be stored compressed
	preserves  bool                           // uncompressed layers stay so unless compression= says otherwise
	plain      bool                           // layers must be uncompressed, of known size and digest
	indexes    bool                           // an index can be stored with all its images
	signs      bool                           // signatures are kept with the image
	remote     bool                           // something at the other end can fall silent
	end        string                         // what is at the other end, where that is no registry
	file       bool                           // it is a file or a directory: what podman calls a save, and no push
	alive      func(ctx context.Context) bool // whether the other end still works if it has been silent; nil: it does not
	parse      func(rest string, resolve pathResolver) (destination, error)
}

var (
	registryKind = &kind{name: "docker://", formats: anyFormat, compresses: true, indexes: true, signs: true, remote: true}
	layoutKind   = &kind{name: "oci:", formats: ociFormat, compresses: true, indexes: true, file: true}
	ociFileKind  = &kind{name: "oci-archive:", formats: ociFormat, compresses: true, indexes: true, file: true}
	dockFileKind = &kind{name: "docker-archive:", formats: dockerFormat, plain: true, file: true}
	dirKind      = &kind{name: "dir:", formats: anyFormat, compresses: true, preserves: true, indexes: true, signs: true, file: true}
	storeKind    = &kind{name: "containers-storage:", formats: anyFormat[:2]}
	daemonKind   = &kind{name: "docker-daemon:", formats: dockerFormat, plain: true, remote: true, end: "the engine"}

	anyFormat    = []string{imgspecv1.MediaTypeImageManifest, manifest.DockerV2Schema2MediaType, manifest.DockerV2Schema1SignedMediaType}
	ociFormat    = anyFormat[:1]
	dockerFormat = anyFormat[1:2]

	// kinds has the transports that can be pushed to.
	kinds = map[string]*kind{
		"docker":             registryKind,
		"oci":                layoutKind,
		"oci-archive":        ociFileKind,
		"docker-archive":     dockFileKind,
		"dir":                dirKind,
		"containers-storage": storeKind,
		"docker-daemon":      daemonKind,
	}
	// readOnlyKinds has those that the other tools know and that cannot be pushed to.
	readOnlyKinds = []string{"atomic", "ostree", "sif", "tarball"}
)

func init() { // not in the table, because the parsers look at it
	registryKind.parse = parseRegistry
	layoutKind.parse = parseLayout
	ociFileKind.parse = parseOCIArchive
	dockFileKind.parse = parseDockerArchive
	dirKind.parse = parseDir
	storeKind.parse = parseStore
	daemonKind.parse, daemonKind.alive = parseDaemon, engineAnswers
}

// isTransport says whether a word is the name of a transport, whatever can be done with it.
func isTransport(name string) bool { return kinds[name] != nil || slices.Contains(readOnlyKinds, name) }

// parseDestination parses [TRANSPORT:]DESTINATION.
func parseDestination(text string, resolve pathResolver) (destination, error) {
	name, rest, ok := strings.Cut(text, ":")
	switch {
	case ok && kinds[name] != nil:
		return kinds[name].parse(rest, resolve)
	case ok && slices.Contains(readOnlyKinds, name):
		return nil, fail(imgsrc.ErrUnsupported, "%s: cannot be pushed to; can be: %s", name, knownKinds())
	case ok && strings.HasPrefix(rest, "//"):
		return nil, fail(imgsrc.ErrInvalid, "%s: unknown transport; known are %s", quote(text), knownKinds())
	}
	return parseRegistry("//"+text, resolve)
}

func knownKinds() string {
	var names []string
	for _, k := range []*kind{registryKind, layoutKind, ociFileKind, dockFileKind, dirKind, storeKind, daemonKind} {
		names = append(names, k.name)
	}
	return strings.Join(names, " ")
}

// A registry is a repository of a registry, and the tag or digest to push to.
type registry struct {
	ref   types.ImageReference
	named reference.Named
}

func parseRegistry(rest string, _ pathResolver) (destination, error) {
	name, ok := strings.CutPrefix(rest, "//")
	if !ok {
		return nil, fail(imgsrc.ErrInvalid, "%s: write docker://HOST/REPOSITORY:TAG", quote("docker:"+rest))
	}
	if redactWord("docker://"+name) != "docker://"+name {
		return nil, notReference("docker://"+name, nil)
	}
	ref, err := docker.ParseReference(rest)
	if err != nil {
		return nil, fail(imgsrc.ErrInvalid, "%s is not a reference: %s", quote(name), err)
	}
	return &registry{ref, ref.DockerReference()}, nil
}

func (d *registry) kind() *kind           { return registryKind }
func (d *registry) String() string        { return "docker://" + d.named.String() }
func (d *registry) check() error          { return nil }
func (d *registry) hint(err error) string { return registryHint(err, reference.Domain(d.named)) }

func (d *registry) stage(_ context.Context, s staging) (staged, error) {
	configured, err := sysregistriesv2.FindRegistry(s.sys, d.named.Name())
	if err != nil {
		return staged{}, err
	}
	if configured != nil && configured.Blocked {
		return staged{}, fail(imgsrc.ErrDenied, "registries.conf blocks %s", configured.Prefix)
	}
	s.sys.DockerInsecureSkipTLSVerify = s.verify
	switch {
	case s.verify != types.OptionalBoolUndefined:
		s.sys.DockerInsecureSkipTLSVerify = types.NewOptionalBool(s.verify == types.OptionalBoolFalse)
	case s.insecure(reference.Domain(d.named)):
		s.sys.DockerInsecureSkipTLSVerify = types.OptionalBoolTrue
	}
	return staged{ref: d.ref}, nil
}

// loopback reports whether a registry's host, with or without a port, is this machine for certain.
func loopback(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.Trim(host, "[]")
	return host == "localhost" || net.ParseIP(host).IsLoopback()
}

// parseTagged parses a name with a tag, which is "latest" if none is given.
func parseTagged(name string) (reference.NamedTagged, error) {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return nil, fail(imgsrc.ErrInvalid, "%s is not a reference: %s", quote(name), err)
	}
	tagged, ok := reference.TagNameOnly(named).(reference.NamedTagged)
	if _, digested := named.(reference.Digested); !ok || digested {
		return nil, fail(imgsrc.ErrInvalid, "%s: write a name and a tag, without a digest", quote(name))
	}
	return tagged, nil
}
