package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
)

// origin returns the registry itself, without its mirrors: what is changed is changed there.
func (c *Client) origin(repo string) (place, error) {
	all, err := c.places(repo, "")
	if err != nil {
		return place{}, err
	}
	return all[len(all)-1], nil
}

// original returns a manifest as the registry itself has it, and the media type that it is kept under there.
func (c *Client) original(ctx context.Context, repo string, d digest.Digest) (doc Document, mediaType string, err error) {
	p, err := c.origin(repo)
	if err != nil {
		return doc, "", err
	}
	r := p.request(http.MethodGet, "/manifests/"+d.String())
	r.header.Set("Accept", accepted)
	header, body, err := c.document(ctx, p, r, imgsrc.MaxManifest)
	if err != nil {
		return doc, "", err
	}
	c.counted(d, len(body))
	if doc, err = newDocument(r.doing(p.endpoint), d.String(), header, body); err != nil {
		return doc, "", err
	}
	if mediaType = doc.MediaType; mediaType == "" { // it does not say
		mediaType = typeOf(body)
	}
	return doc, mediaType, nil
}

// put stores a manifest under a tag, or under its digest.
func (c *Client) put(ctx context.Context, repo, ref, mediaType string, doc Document) error {
	p, err := c.origin(repo)
	if err != nil {
		return err
	}
	r := p.request(http.MethodPut, "/manifests/"+ref)
	r.scope, r.body = pushScope(p.repo), doc.sent
	r.want = []int{http.StatusCreated, http.StatusOK, http.StatusAccepted}
	r.header.Set("Content-Type", mediaType)
	header, _, err := c.document(ctx, p, r, maxPage)
	if err != nil {
		return mayPush(err)
	}
	if got, err := digest.Parse(header.Get("Docker-Content-Digest")); err == nil && got != doc.Digest && got.Algorithm() == doc.Digest.Algorithm() {
		return &failure{text: fmt.Sprintf("%s: the registry has made %s of %s", r.doing(p.endpoint), got, doc.Digest), condition: imgsrc.ErrDamaged}
	}
	return nil
}

// mayPush says what to do about a refusal that names no reason of its own.
func mayPush(err error) error {
	var f *failure
	if errors.As(err, &f) && f.status == http.StatusForbidden {
		f.text += ": whoever is logged in may not write there"
	}
	return err
}

// meaning returns what a tag means in the registry itself.
func (c *Client) meaning(ctx context.Context, repo, tag string) (digest.Digest, error) {
	p, err := c.origin(repo)
	if err != nil {
		return "", err
	}
	for _, method := range []string{http.MethodHead, http.MethodGet} { // a registry need not say it with the first
		r := p.request(method, "/manifests/"+tag)
		r.header.Set("Accept", accepted)
		header, body, err := c.document(ctx, p, r, imgsrc.MaxManifest)
		if err != nil && (method == http.MethodGet || !errors.Is(err, imgsrc.ErrUnsupported)) {
			return "", err
		}
		if err != nil {
			continue
		}
		if d, bad := digest.Parse(header.Get("Docker-Content-Digest")); bad == nil {
			return d, nil
		}
		if method == http.MethodGet {
			return digest.FromBytes(body), nil
		}
	}
	return "", nil // not reached: GET has an answer or an error
}

// untag removes a tag, and nothing else: the specification lets a registry do that, and does not ask it to
// (https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#deleting-tags). The manifest is never deleted in
// its place, which would take all its other tags with it. Error: imgsrc.ErrUnsupported where the registry does not.
func (c *Client) untag(ctx context.Context, repo, tag string) error {
	p, err := c.origin(repo)
	if err != nil {
		return err
	}
	r := p.request(http.MethodDelete, "/manifests/"+tag)
	r.scope = deleteScope(p.repo)
	r.want = []int{http.StatusAccepted, http.StatusOK, http.StatusNoContent}
	_, _, err = c.document(ctx, p, r, maxPage)
	var f *failure
	if err == nil || !errors.As(err, &f) {
		return err
	}
	switch f.status {
	case http.StatusNotFound:
		// An attempt whose answer was lost has removed it, or else the registry means that it does not do this.
		if _, there := c.meaning(ctx, repo, tag); errors.Is(there, imgsrc.ErrNotFound) {
			return nil
		}
	case http.StatusBadRequest, http.StatusMethodNotAllowed, http.StatusNotImplemented:
	default:
		return mayPush(err)
	}
	f.condition = imgsrc.ErrUnsupported
	f.text += ": this registry does not remove single tags on request: remove it with the registry's own tools, or give the tag to another image"
	return f
}

// hasBlob says whether a repository of the registry itself has a blob.
func (c *Client) hasBlob(ctx context.Context, repo string, d digest.Digest) (bool, error) {
	p, err := c.origin(repo)
	if err != nil {
		return false, err
	}
	_, _, err = c.document(ctx, p, p.request(http.MethodHead, "/blobs/"+d.String()), 0)
	if errors.Is(err, imgsrc.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// Mount gives a repository a blob of another one of the same registry, if that has it
// (https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#mounting-a-blob-from-another-repository). Errors:
// imgsrc.ErrNotFound; imgsrc.ErrUnsupported if the registry wants the bytes instead.
func (c *Client) Mount(ctx context.Context, repo, from string, d digest.Digest) error {
	there, err := c.hasBlob(ctx, from, d) // or the registry would begin an upload
	if err == nil && !there {
		err = fmt.Errorf("mounting blob %s from %s/%s: %w", d, c.host, from, imgsrc.ErrNotFound)
	}
	if err != nil {
		return err
	}
	return c.mount(ctx, repo, from, d)
}

// mount is Mount without looking whether the blob is there.
func (c *Client) mount(ctx context.Context, repo, from string, d digest.Digest) error {
	p, err := c.origin(repo)
	if err != nil {
		return err
	}
	source, err := c.origin(from)
	if err != nil {
		return err
	}
	if source.endpoint != p.endpoint {
		return errNoMount(d, from)
	}
	r := p.request(http.MethodPost, "/blobs/uploads/")
	r.scope = pushScope(p.repo) + " " + pullScope(source.repo)
	if r.query == nil {
		r.query = url.Values{}
	}
	r.query.Set("mount", d.String())
	r.query.Set("from", source.repo)
	r.want = []int{http.StatusCreated, http.StatusAccepted}
	header, _, err := c.document(ctx, p, r, maxPage)
	if err != nil {
		return mayPush(err)
	}
	if header.Get("Docker-Upload-UUID") == "" && header.Get("Range") == "" && !strings.Contains(header.Get("Location"), "/uploads/") {
		return nil
	}
	c.abandon(ctx, p, header.Get("Location"))
	return errNoMount(d, from)
}

func errNoMount(d digest.Digest, from string) error {
	return &failure{
		text:      fmt.Sprintf("mounting blob %s from %s: the registry wants it sent again: write the name to push instead of tags", d, from),
		condition: imgsrc.ErrUnsupported,
	}
}

// abandon ends an upload that the registry has begun, if it leads to one of its own.
func (c *Client) abandon(ctx context.Context, p place, location string) {
	u, err := url.Parse(location)
	if err != nil || u.Host != "" && u.Host != p.address {
		return
	}
	path, ok := strings.CutPrefix(u.Path, "/v2/"+p.repo+"/blobs/uploads/")
	if !ok {
		return
	}
	r := p.request(http.MethodDelete, "/blobs/uploads/"+path)
	r.query, r.scope = u.Query(), pushScope(p.repo)
	r.want = []int{http.StatusNoContent, http.StatusOK, http.StatusAccepted}
	if resp, err := p.send(ctx, r); err == nil {
		discard(resp)
	}
}
