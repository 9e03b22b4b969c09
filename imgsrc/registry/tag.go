package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/docker/reference"

	"github.com/imgfs/imgfs/imgsrc"
)

var (
	_ imgsrc.Tagger = (*Source)(nil)
	_ imgsrc.Tagger = (*Followed)(nil)
)

// CheckName implements [imgsrc.Tagger]: a name is a full reference of this registry, whose tag is latest if there is none.
func (s *Source) CheckName(name string) (string, error) {
	full, err := fullName(name, s.repo)
	if err != nil {
		return "", err
	}
	if host := reference.Domain(full); host != s.client.host {
		return "", errOtherHost(full.String(), s.client.host)
	}
	return full.String(), nil
}

// CheckName implements [imgsrc.Tagger]: a name is a full reference, whose tag is latest if there is none.
func (f *Followed) CheckName(name string) (string, error) {
	full, err := fullName(name, "")
	if err != nil {
		return "", err
	}
	return full.String(), nil
}

// fullName reads a name that has a registry in it: what podman takes for docker.io/library/web or localhost/web may as
// well be meant for a tag of the image's own repository. repo is only for the text.
func fullName(name, repo string) (reference.NamedTagged, error) {
	if strings.Contains(name, "://") {
		return nil, fmt.Errorf("%w: %q: write the reference alone, HOST/REPOSITORY:TAG", imgsrc.ErrInvalid, name)
	}
	host, _, below := strings.Cut(name, "/")
	if !below || !strings.ContainsAny(host, ".:") && host != "localhost" {
		if repo == "" {
			repo = "REPOSITORY"
		}
		return nil, fmt.Errorf("%w: %q names no registry: write HOST/%s:TAG", imgsrc.ErrInvalid, name, repo)
	}
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return nil, fmt.Errorf("%w: %q is no reference: %w", imgsrc.ErrInvalid, name, err)
	}
	tagged, ok := reference.TagNameOnly(named).(reference.NamedTagged)
	if _, digested := named.(reference.Digested); !ok || digested {
		return nil, fmt.Errorf("%w: %q: write a tag and no digest", imgsrc.ErrInvalid, name)
	}
	return tagged, nil
}

func errOtherHost(name, host string) error {
	return fmt.Errorf("%w: %s is of another registry than %s: write it to push, which copies the image there", imgsrc.ErrInvalid, name, host)
}

// Tag implements [imgsrc.Tagger]: the registry gets the manifest's own bytes under each new tag, so that its digest stays.
// Where that is another repository, the registry is asked to mount the blobs there. A tag is removed by its name, and only
// if it still means this image. Names are changed one after the other. Errors: also imgsrc.ErrUnsupported for what the
// registry does not do, imgsrc.ErrDenied, and what the network says.
func (s *Source) Tag(ctx context.Context, img imgsrc.Desc, add, remove []string) error {
	if err := s.retag(ctx, img, add, remove); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("changing the tags of %s in %s: %w", img.Digest, s.client.host, err)
	}
	return nil
}

func (s *Source) retag(ctx context.Context, img imgsrc.Desc, add, remove []string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if s.offline {
		return fmt.Errorf("the mount is offline: %w", syscall.EHOSTUNREACH)
	}
	m, have := s.held(img.Digest)
	if m == nil {
		return fmt.Errorf("%w: it is not in the listing any more", imgsrc.ErrNotFound)
	}
	var added, removed []tagged
	for _, list := range []struct {
		names []string
		to    *[]tagged
	}{{add, &added}, {remove, &removed}} {
		for _, name := range list.names {
			t, err := s.reference(name)
			if err != nil {
				return err
			}
			*list.to = append(*list.to, t)
		}
	}
	for _, t := range removed { // before anything is changed
		if !slices.ContainsFunc(have, t.same) {
			return fmt.Errorf("%w: the image has no tag %s/%s:%s", imgsrc.ErrNotFound, s.client.host, t.Repo, t.Tag)
		}
	}
	added = slices.DeleteFunc(added, func(t tagged) bool { return slices.ContainsFunc(removed, t.same) })
	if err := s.addTags(ctx, m, added); err != nil {
		return err
	}
	for _, t := range removed {
		if err := s.removeTag(ctx, img.Digest, t); err != nil {
			return err
		}
	}
	return nil
}

// held returns the image of a digest as the last listing has it, and the tags that mean it.
func (s *Source) held(d digest.Digest) (m *image, tags []tagged) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state == nil || s.state.entries[d] == nil {
		return nil, nil
	}
	for _, t := range s.state.refs {
		if t.Digest == d && t.Tag != "" {
			tags = append(tags, t)
		}
	}
	return s.state.entries[d].image, tags
}

// addTags gives the image tags, in the repository that it is in or others.
func (s *Source) addTags(ctx context.Context, m *image, tags []tagged) error {
	if len(tags) == 0 {
		return nil
	}
	d := m.desc.Digest
	doc, mediaType, err := s.client.original(ctx, m.repo, d)
	if err != nil {
		return err
	}
	ready := map[string]bool{m.repo: true} // the repositories that have all that the manifest names
	for _, t := range tags {
		if !ready[t.Repo] {
			c := crossing{client: s.client, from: m.repo, to: t.Repo, done: map[digest.Digest]bool{}}
			if err := c.parts(ctx, doc, 0); err != nil {
				return err
			}
			ready[t.Repo] = true
		}
		if err := s.client.put(ctx, t.Repo, t.Tag, mediaType, doc); err != nil {
			return err
		}
		t.Digest = d
		s.retagged(t, false)
	}
	return nil
}

// removeTag removes a tag if it means the image d.
func (s *Source) removeTag(ctx context.Context, d digest.Digest, t tagged) error {
	means, err := s.client.meaning(ctx, t.Repo, t.Tag)
	switch {
	case errors.Is(err, imgsrc.ErrNotFound):
		s.retagged(t, true)
		return err
	case err != nil:
		return err
	case means != d:
		return fmt.Errorf("%w: %s/%s:%s means another image by now, %s", imgsrc.ErrNotFound, s.client.host, t.Repo, t.Tag, means)
	}
	if err := s.client.untag(ctx, t.Repo, t.Tag); err != nil {
		return err
	}
	s.retagged(t, true)
	return nil
}

// A retag is a change that was made here.
type retag struct {
	tagged
	removed bool
}

// retagged puts a change into the listing, and into the one that is perhaps being made.
func (s *Source) retagged(t tagged, removed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change := retag{t, removed}
	s.retags = append(s.retags, change)
	s.asked = change.apply(s.asked)
	st := *s.state
	st.refs = change.apply(slices.Clone(st.refs))
	s.state = &st
	if !st.at.IsZero() || s.onlyAsked {
		s.docs.saveTags(s.listName(), st.refs)
	}
	s.moved()
}

// apply returns the references after the change.
func (r retag) apply(refs []tagged) []tagged {
	i := slices.IndexFunc(refs, r.same)
	switch {
	case i < 0 && !r.removed:
		return append(refs, r.tagged)
	case i >= 0 && !r.removed:
		refs[i] = r.tagged
	case i >= 0:
		return slices.Delete(refs, i, i+1)
	}
	return refs
}

// A crossing takes what a manifest names from one repository to another of the same registry.
type crossing struct {
	client   *Client
	from, to string
	done     map[digest.Digest]bool
}

// maxCrossing is how many blobs and manifests one tag may take with it.
const maxCrossing = 10_000

// parts makes the other repository have all that the manifest doc names. What the first one does not have, of an index
// or of layers that a registry need not keep, is passed over: the registry decides whether it takes the manifest then.
func (c *crossing) parts(ctx context.Context, doc Document, depth int) error {
	desc := imgsrc.Desc{Digest: doc.Digest, Size: doc.Size, MediaType: typeOf(doc.Bytes)}
	facts, err := imgsrc.Load(ctx, manifestOnly{desc, doc.Bytes})
	if err == nil {
		err = facts.ManifestErr
	}
	if err != nil {
		return fmt.Errorf("reading manifest %s: %w", doc.Digest, err)
	}
	for _, child := range facts.Children {
		if depth >= maxDepth {
			break
		}
		if err := c.manifest(ctx, child.Digest, depth+1); err != nil {
			return err
		}
	}
	if facts.Kind == imgsrc.KindIndex {
		return nil
	}
	blobs := []digest.Digest{configOf(doc.Bytes)}
	for _, l := range facts.Layers {
		blobs = append(blobs, l.Digest)
	}
	for _, d := range blobs {
		if !c.first(d) {
			continue
		}
		have, err := c.client.hasBlob(ctx, c.to, d)
		if err == nil && !have {
			err = c.client.mount(ctx, c.to, c.from, d)
		}
		if errors.Is(err, imgsrc.ErrUnsupported) {
			if there, err := c.client.hasBlob(ctx, c.from, d); err == nil && !there {
				continue
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// first says whether d is a digest that has not been taken yet, and there is room for it.
func (c *crossing) first(d digest.Digest) bool {
	if c.done[d] || d.Validate() != nil || len(c.done) >= maxCrossing {
		return false
	}
	c.done[d] = true
	return true
}

// manifest takes an image of an index.
func (c *crossing) manifest(ctx context.Context, d digest.Digest, depth int) error {
	if !c.first(d) {
		return nil
	}
	doc, mediaType, err := c.client.original(ctx, c.from, d)
	if err != nil {
		if errors.Is(err, imgsrc.ErrNotFound) {
			err = nil // the registry decides
		}
		return err
	}
	if err := c.parts(ctx, doc, depth); err != nil {
		return err
	}
	return c.client.put(ctx, c.to, d.String(), mediaType, doc)
}

// Tag implements [imgsrc.Tagger], in the registries that have the image.
func (f *Followed) Tag(ctx context.Context, img imgsrc.Desc, add, remove []string) error {
	type change struct{ add, remove []string }
	changes := map[*Source]*change{}
	var order []*Source
	for _, list := range []struct {
		names []string
		of    func(*change) *[]string
	}{
		{add, func(c *change) *[]string { return &c.add }},
		{remove, func(c *change) *[]string { return &c.remove }},
	} {
		for _, name := range list.names {
			s, err := f.holder(img.Digest, name)
			if err != nil {
				return fmt.Errorf("changing the tags of %s: %w", img.Digest, err)
			}
			if changes[s] == nil {
				changes[s] = &change{}
				order = append(order, s)
			}
			of := list.of(changes[s])
			*of = append(*of, name)
		}
	}
	defer f.Pushed(add...)
	for _, s := range order {
		if err := s.Tag(ctx, img, changes[s].add, changes[s].remove); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// holder returns the registry that a name belongs to, if it has the image.
func (f *Followed) holder(d digest.Digest, name string) (*Source, error) {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return nil, fmt.Errorf("%w: %q is no reference: %w", imgsrc.ErrInvalid, name, err)
	}
	err = fmt.Errorf("%w: no registry has it any more", imgsrc.ErrNotFound)
	for _, s := range f.sources() {
		if m, _ := s.held(d); m == nil {
			continue
		}
		if s.Host() == reference.Domain(named) {
			return s, nil
		}
		err = errOtherHost(name, s.Host())
	}
	return nil, err
}

// Pushed lets names be asked for again that were not there.
func (f *Followed) Pushed(names ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, name := range names {
		delete(f.absent, name)
	}
}

// configOf is the digest of the config that a manifest names; empty if it names none.
func configOf(manifest []byte) digest.Digest {
	var doc struct {
		Config struct {
			Digest digest.Digest `json:"digest"`
		} `json:"config"`
	}
	_ = json.Unmarshal(manifest, &doc) // what is no manifest names none
	return doc.Config.Digest
}
