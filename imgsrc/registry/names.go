package registry

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"

	"go.podman.io/image/v5/docker/reference"

	"github.com/imgfs/imgfs/imgsrc"
)

// maxPages bounds how many pages of a list are asked for: a registry can always say that there is another.
const maxPages = 1000

// maxPage is how many bytes a page may have. There are registries that put what each manifest is beside the tags (gcr.io).
const maxPage = 16 << 20

// Tags returns at most limit tags of a repository, and whether there are more.
func (c *Client) Tags(ctx context.Context, repo string, limit int) (tags []string, more bool, err error) {
	err = c.each(ctx, repo, "", func(p place) error {
		r := p.request(http.MethodGet, "/tags/list")
		tags, more, err = c.list(ctx, p, r, limit, "tags", func(tag string) bool { return reference.TagRegexp.FindString(tag) == tag })
		return err
	})
	return tags, more, err
}

// Catalog returns the names of at most limit repositories, and whether there are more. Many registries answer with
// imgsrc.ErrDenied or imgsrc.ErrNotFound.
func (c *Client) Catalog(ctx context.Context, limit int) (repos []string, more bool, err error) {
	p, prefix, err := c.whole()
	if err != nil {
		return nil, false, err
	}
	r := &request{method: http.MethodGet, path: "_catalog", scope: catalogScope, header: http.Header{}, want: []int{http.StatusOK}}
	if p.namespace != "" {
		r.query = url.Values{"ns": {p.namespace}}
	}
	repos, more, err = c.list(ctx, p, r, limit, "repositories", func(repo string) bool {
		below, ok := strings.CutPrefix(repo, prefix)
		_, err := reference.ParseNamed(c.host + "/" + below)
		return ok && err == nil
	})
	for i := range repos {
		repos[i] = strings.TrimPrefix(repos[i], prefix)
	}
	return repos, more, err
}

// Ping asks whether the registry is there, and lets the user in.
func (c *Client) Ping(ctx context.Context) error {
	p, _, err := c.whole()
	if err != nil {
		return err
	}
	r := &request{method: http.MethodGet, want: []int{http.StatusOK}}
	_, _, err = c.document(ctx, p, r, maxPage)
	return err
}

// nextLink is the header with which a registry leads to the next page (RFC 8288), one of several perhaps.
var nextLink = regexp.MustCompile(`(?i)<([^>]*)>[^<]*;\s*rel\s*=\s*["']?next(?:["'\s;,]|$)`)

// list reads the pages of a list of names, which is a member of each page. Names that keep does not accept do not count:
// nothing that is no name may come this far.
func (c *Client) list(ctx context.Context, p place, r *request, limit int, member string, keep func(string) bool) (names []string, more bool, err error) {
	size := min(limit+1, 1000)
	if r.query == nil {
		r.query = url.Values{}
	}
	r.query.Set("n", strconv.Itoa(size))
	seen := map[string]bool{}
	for range maxPages {
		header, body, err := c.document(ctx, p, r, maxPage)
		if err != nil {
			return nil, false, err
		}
		var page map[string]json.RawMessage
		var list []string
		err = json.Unmarshal(body, &page)
		if err == nil && page[member] != nil {
			err = json.Unmarshal(page[member], &list)
		}
		if err != nil {
			return nil, false, &failure{text: fmt.Sprintf("%s: not the JSON of a list", r.doing(p.endpoint)), condition: imgsrc.ErrDamaged}
		}
		fresh := false
		for _, name := range list {
			if seen[name] {
				continue
			}
			seen[name], fresh = true, true
			if !keep(name) {
				continue
			}
			if len(names) == limit {
				return names, true, nil
			}
			names = append(names, name)
		}
		next := nextQuery(header)
		if next == nil && len(list) == size { // a registry that cuts the list without saying so
			next = url.Values{"n": {strconv.Itoa(size)}, "last": {list[len(list)-1]}}
		}
		if next == nil || len(list) > 0 && !fresh { // a page may be empty because the user may see nothing of it
			return names, false, nil
		}
		if ns := r.query.Get("ns"); ns != "" {
			next.Set("ns", ns)
		}
		if next.Encode() == r.query.Encode() {
			return names, false, nil
		}
		r.query = next
	}
	return names, true, nil
}

// nextQuery is the query of the next page. Where else a link leads is of no interest: pages are asked for where the first
// one was.
func nextQuery(header http.Header) url.Values {
	for _, link := range header.Values("Link") {
		m := nextLink.FindStringSubmatch(link)
		if m == nil {
			continue
		}
		if u, err := url.Parse(m[1]); err == nil && u.RawQuery != "" {
			return u.Query()
		}
	}
	return nil
}
