package ops

import (
	"context"
	"path/filepath"
	"slices"
	"strings"

	"go.podman.io/image/v5/docker/policyconfiguration"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/image"
	"go.podman.io/image/v5/signature"
	"go.podman.io/image/v5/types"
)

// A signature policy has its requirements by scopes, whose form each transport has its own of: host, repository and tag for
// a registry and for Docker's engine, those below "[driver@graphroot]" for a store, paths for what lies in files. An image
// of the catalog is in all the scopes that the other tools would find it in, by whichever of its names.

// permitted fails if the policy does not let an image through under one of its names.
func permitted(ctx context.Context, policy *signature.PolicyContext, src *source) error {
	for _, name := range src.scopeNames() {
		if _, err := policy.IsRunningImageAllowed(ctx, image.UnparsedInstance(&scoped{src, name}, nil)); err != nil {
			return err
		}
	}
	return nil
}

// scoped is a source under one of its image's names.
type scoped struct {
	*source
	name reference.Named // nil: it has none
}

func (s *scoped) Reference() types.ImageReference { return s }

func (s *scoped) PolicyConfigurationIdentity() string { return s.scopes(s.name)[0] }

func (s *scoped) PolicyConfigurationNamespaces() []string { return s.scopes(s.name)[1:] }

// PolicyConfigurationIdentity is that of the image's first name.
func (s *source) PolicyConfigurationIdentity() string { return s.scopes(s.scopeNames()[0])[0] }

// PolicyConfigurationNamespaces are those of the image's first name.
func (s *source) PolicyConfigurationNamespaces() []string { return s.scopes(s.scopeNames()[0])[1:] }

// scopeNames returns the names that scopes may have for the image: at least one, which is nil if there is none.
func (s *source) scopeNames() []reference.Named {
	var all []reference.Named
	switch s.Transport().Name() {
	case "docker", "docker-daemon", "containers-storage":
		texts := slices.Concat(s.held.RemoteNames, s.held.Names)
		if len(texts) == 0 {
			texts = s.held.RepoDigests
		}
		if place, ok := strings.CutPrefix(s.held.Source.Name(), "docker://"); ok && len(texts) == 0 {
			texts = []string{place + "@" + s.held.Desc().Digest.String()}
		}
		for _, text := range texts {
			if named, err := reference.ParseNormalizedNamed(text); err == nil {
				all = append(all, reference.TagNameOnly(named))
			}
		}
	}
	if len(all) == 0 {
		return []reference.Named{nil}
	}
	return all
}

// scopes returns the scopes of the image under a name, the narrowest first. There is at least one.
func (s *source) scopes(name reference.Named) []string {
	_, place, _ := strings.Cut(s.held.Source.Name(), ":")
	var below []string // those of the name
	if name != nil {
		if narrowest, err := policyconfiguration.DockerReferenceIdentity(name); err == nil {
			below = append(below, narrowest)
		}
		below = append(below, policyconfiguration.DockerReferenceNamespaces(name)...)
	}
	switch s.Transport().Name() {
	case "docker", "docker-daemon":
		return append(below, "")
	case "containers-storage":
		store, _, _ := strings.Cut(strings.Trim(place, "[]"), "+")
		_, root, _ := strings.Cut(store, "@")
		all := []string{place}
		for _, name := range below {
			all = append(all, "["+store+"]"+name)
		}
		return append(all, "["+store+"]", "["+root+"]")
	}
	all := []string{place}
	if dir, _, _ := strings.Cut(place, ":"); filepath.IsAbs(dir) {
		if real, err := filepath.EvalSymlinks(dir); err == nil { // as the transports do
			dir = real
		}
		for ; dir != "/"; dir = filepath.Dir(dir) {
			all = append(all, dir)
		}
	}
	return all
}
