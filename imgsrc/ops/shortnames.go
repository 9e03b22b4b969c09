package ops

import (
	"strings"

	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/pkg/sysregistriesv2"
)

// ShortNames returns the full references that a name may stand for, the first choice first, as podman looks for them in
// its store: the alias that registries.conf(5) has for it, then localhost, then the registries to search for unqualified
// names, then docker.io. A name with a registry stands for itself. None if it is no reference.
func (o *Ops) ShortNames(name string) []string {
	named, err := reference.ParseDockerRef(name)
	if err != nil {
		return nil
	}
	if !isShort(name) {
		return []string{named.String()}
	}
	repo, tag := name, "latest"
	if i := strings.LastIndexByte(name, ':'); i >= 0 { // no port: there is no registry
		repo, tag = name[:i], name[i+1:]
	}
	var all []string
	// What is wrong with the configuration is podman's business; the rest holds without it.
	if alias, _, err := sysregistriesv2.ResolveShortNameAlias(nil, repo); err != nil {
		o.log.Debug("resolving short name", "name", name, "error", err)
	} else if alias != nil {
		all = append(all, alias.Name()+":"+tag)
	}
	registries, err := sysregistriesv2.UnqualifiedSearchRegistries(nil)
	if err != nil {
		o.log.Debug("resolving short name", "name", name, "error", err)
	}
	for _, registry := range append([]string{"localhost"}, registries...) {
		if full, err := reference.ParseDockerRef(registry + "/" + repo + ":" + tag); err == nil {
			all = append(all, full.String())
		}
	}
	return append(all, named.String())
}

// isShort says whether a reference names no registry, which is told by its first component as Docker tells it.
func isShort(name string) bool {
	host, _, ok := strings.Cut(name, "/")
	return !ok || !strings.ContainsAny(host, ".:") && host != "localhost"
}
