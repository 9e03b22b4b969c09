package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/pkg/sysregistriesv2"

	"github.com/imgfs/imgfs/imgsrc"
)

// A place is one server that may have a repository, and the repository's name there.
type place struct {
	*endpoint
	repo      string
	namespace string // of a proxy for several registries; empty: none
	mirror    bool   // another is asked if it does not have what is wanted
}

func (p place) request(method, path string) *request {
	r := &request{method: method, path: p.repo + path, repo: p.repo, scope: pullScope(p.repo), header: http.Header{}, want: []int{http.StatusOK}}
	if p.namespace != "" {
		r.query = url.Values{"ns": {p.namespace}}
	}
	return r
}

// places are the servers to ask for a repository: the mirrors that registries.conf has for it, and the registry last. ref
// is a tag or a digest; without one there are no mirrors, whose lists may be out of date.
func (c *Client) places(repo, ref string) ([]place, error) {
	named, err := reference.ParseNamed(c.host + "/" + repo)
	if err == nil && ref != "" {
		if d, bad := digest.Parse(ref); bad == nil {
			named, err = reference.WithDigest(named, d)
		} else {
			named, err = reference.WithTag(named, ref)
		}
	}
	if err != nil {
		return nil, &failure{text: fmt.Sprintf("%s/%s %q is no reference: %s", c.host, repo, ref, err), condition: imgsrc.ErrInvalid}
	}
	found, err := c.find(named.Name())
	if err != nil {
		return nil, err
	}
	if found == nil {
		e, err := c.endpoint(c.host, false)
		return []place{{endpoint: e, repo: repo}}, err
	}
	sources, err := found.PullSourcesFromReference(named)
	if err != nil {
		return nil, &failure{text: "registries.conf: " + err.Error(), condition: imgsrc.ErrInvalid}
	}
	if ref == "" {
		sources = sources[len(sources)-1:]
	}
	var all []place
	for i, s := range sources {
		e, err := c.endpoint(reference.Domain(s.Reference), s.Endpoint.Insecure)
		if err != nil {
			return nil, err
		}
		all = append(all, place{e, reference.Path(s.Reference), s.Endpoint.NamespaceProxy, i < len(sources)-1})
	}
	return all, nil
}

// patience is how long an answer is waited for, of limit at most: a mirror's for half of the time that there is, so that the registry
// can be asked in the other.
func (p place) patience(ctx context.Context, limit time.Duration) time.Duration {
	if !p.mirror {
		return limit
	}
	if end, ends := ctx.Deadline(); ends {
		limit = min(limit, time.Until(end))
	}
	return limit / 2
}

// find returns what registries.conf has for a name, nil if nothing.
func (c *Client) find(name string) (*sysregistriesv2.Registry, error) {
	found, err := sysregistriesv2.FindRegistry(c.sys, name)
	if err != nil {
		return nil, &failure{text: "reading registries.conf: " + clean(err.Error(), nil)}
	}
	if found != nil && found.Blocked {
		return nil, &failure{text: fmt.Sprintf("%s is blocked in %s", found.Prefix, sysregistriesv2.ConfigurationSourceDescription(c.sys)), condition: imgsrc.ErrDenied}
	}
	return found, nil
}

// endpoint returns the server of a host. insecure is what registries.conf says.
func (c *Client) endpoint(host string, insecure bool) (*endpoint, error) {
	key := fmt.Sprint(host, insecure)
	c.mu.Lock()
	e := c.endpoints[key]
	c.mu.Unlock()
	if e != nil {
		return e, nil
	}
	trusted := false
	if c.verify != nil {
		insecure = !*c.verify
	} else if !insecure {
		trusted = c.trusts(host)
	}
	e, err := c.newEndpoint(host, insecure || trusted)
	if err != nil {
		return nil, err
	}
	if trusted {
		e.makeStrict()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if other := c.endpoints[key]; other != nil {
		return other, nil
	}
	c.endpoints[key] = e
	return e, nil
}

// hasMirrors says whether anything but the registry itself is asked for a blob.
func (c *Client) hasMirrors(repo string, d digest.Digest) bool {
	all, err := c.places(repo, d.String())
	return err == nil && len(all) > 1
}

// each calls work with one server after the other, until one of them has what is wanted. The last one's failure counts,
// which is the registry's own.
func (c *Client) each(ctx context.Context, repo, ref string, work func(place) error) error {
	all, err := c.places(repo, ref)
	if err != nil {
		return err
	}
	return c.eachOf(ctx, all, work)
}

func (c *Client) eachOf(ctx context.Context, all []place, work func(place) error) (err error) {
	for i, p := range all {
		last := i == len(all)-1
		p.mu.Lock()
		down := time.Now().Before(p.downUntil)
		p.mu.Unlock()
		if down && !last {
			continue
		}
		if err = work(p); err == nil || ctx.Err() != nil || last {
			return err
		}
		c.log.Debug("asking a mirror", "mirror", p.host, "error", err)
		if f := (*failure)(nil); errors.As(err, &f) && f.status == 0 && !errors.Is(err, imgsrc.ErrDamaged) {
			p.mu.Lock()
			p.downUntil = time.Now().Add(c.limits.down)
			p.mu.Unlock()
		}
	}
	return err
}

// whole returns the server of the whole registry, and what the names there begin with that lie somewhere else by
// registries.conf.
func (c *Client) whole() (p place, prefix string, err error) {
	found, err := c.find(c.host)
	if err != nil {
		return place{}, "", err
	}
	if found == nil || found.Location == "" {
		p.endpoint, err = c.endpoint(c.host, found != nil && found.Insecure)
		return p, "", err
	}
	host, path, _ := strings.Cut(found.Location, "/")
	if path != "" {
		prefix = path + "/"
	}
	p.endpoint, err = c.endpoint(host, found.Insecure)
	p.namespace = found.NamespaceProxy
	return p, prefix, err
}
