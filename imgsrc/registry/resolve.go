package registry

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/docker/reference"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/flight"
)

// Resolve returns the image that a full reference means, by tag or digest, in any repository of this registry, and lists
// it from then on. It takes as long as a document may (ten seconds) at most, and what has failed is the answer for a moment.
// Errors: imgsrc.ErrInvalid if it is no reference or of another registry; imgsrc.ErrNotFound;
// imgsrc.ErrDenied; what the network says.
func (s *Source) Resolve(ctx context.Context, name string) (imgsrc.Listed, error) {
	t, err := s.reference(name)
	if err != nil {
		return imgsrc.Listed{}, err
	}
	if listed, ok := s.listed(t); ok {
		return listed, nil
	}
	if s.offline {
		return imgsrc.Listed{}, fmt.Errorf("resolving %s: %w: %w", name, imgsrc.ErrNotFound, errOffline)
	}
	_, err = inTime(ctx, s, t, func(ctx context.Context) (tagged, error) { return t, s.add(ctx, t) })
	if err != nil {
		return imgsrc.Listed{}, fmt.Errorf("resolving %s: %w", name, err)
	}
	listed, ok := s.listed(t)
	if !ok {
		return listed, fmt.Errorf("resolving %s: %w", name, imgsrc.ErrNotFound)
	}
	return listed, nil
}

// reference reads a full reference of this registry.
func (s *Source) reference(name string) (tagged, error) {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return tagged{}, fmt.Errorf("%w: %q is no reference: %w", imgsrc.ErrInvalid, name, err)
	}
	if reference.Domain(named) != s.client.host {
		return tagged{}, fmt.Errorf("%w: %q is not of the registry %s", imgsrc.ErrInvalid, name, s.client.host)
	}
	t := tagged{Repo: reference.Path(named)}
	if d, ok := named.(reference.Digested); ok {
		t.Digest = d.Digest()
		return t, nil
	}
	t.Tag = reference.TagNameOnly(named).(reference.Tagged).Tag()
	return t, nil
}

// listed returns what the last listing has for a reference.
func (s *Source) listed(t tagged) (imgsrc.Listed, bool) {
	s.mu.Lock()
	st := s.state
	s.mu.Unlock()
	if st == nil {
		return imgsrc.Listed{}, false
	}
	d := t.Digest
	if i := slices.IndexFunc(st.refs, t.same); i >= 0 {
		d = st.refs[i].Digest
	} else if t.Tag != "" {
		return imgsrc.Listed{}, false
	}
	for _, l := range s.listing(st).Images {
		if l.Desc().Digest == d {
			return l, true
		}
	}
	return imgsrc.Listed{}, false
}

// add resolves a reference and puts it into the listing.
func (s *Source) add(ctx context.Context, t tagged) error {
	found, err := s.resolve(ctx, t)
	if err != nil {
		return err
	}
	w := &walk{source: s, state: &state{entries: map[digest.Digest]*entry{}}}
	if err := w.read(ctx, []wantedManifest{{found.Repo, found.Digest, found.MediaType}}); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	st := &state{entries: w.state.entries}
	if old := s.state; old != nil {
		st.at, st.refs, st.problems = old.at, slices.Clone(old.refs), old.problems
		st.adopt(old)
	}
	s.asked = appendNew(s.asked, found)
	st.refs = appendNew(st.refs, found)
	s.state = st
	if !st.at.IsZero() {
		s.docs.saveTags(s.listName(), st.refs)
	}
	s.moved()
	return nil
}

// Names returns the references that there are, without asking what they mean: those of the last listing if it is young,
// and otherwise what the registry says its tags are.
func (s *Source) Names(ctx context.Context) ([]string, error) {
	s.mu.Lock()
	st := s.state
	s.mu.Unlock()
	var refs []tagged
	if st != nil && !st.at.IsZero() {
		refs = st.refs
	} else {
		var err error
		refs, err = flight.Do(ctx, s.flights, flightKey{"names", ""}, func(ctx context.Context) ([]tagged, error) {
			return (&walk{source: s, state: &state{}}).references(ctx)
		})
		if err != nil {
			return nil, fmt.Errorf("listing %s: %w", s.Name(), err)
		}
	}
	var names []string
	for _, t := range refs {
		if t.Tag != "" {
			names = append(names, s.client.host+"/"+t.Repo+":"+t.Tag)
		}
	}
	return names, nil
}

// Instance returns the image d of an index that the listing has, whether or not it lists that too. Error:
// imgsrc.ErrNotFound.
func (s *Source) Instance(ctx context.Context, index imgsrc.Desc, d digest.Digest) (imgsrc.Image, error) {
	of, _ := s.held(index.Digest)
	if of == nil || d.Validate() != nil {
		return nil, fmt.Errorf("looking for image %s of index %s: %w", d, index.Digest, imgsrc.ErrNotFound)
	}
	e, err := s.readEntry(ctx, wantedManifest{repo: of.repo, digest: d})
	if err == nil {
		err = e.image.desc.Damaged
	}
	if err != nil {
		return nil, fmt.Errorf("looking for image %s of index %s: %w", d, index.Digest, err)
	}
	return e.image, nil
}

// Instance is the method of the registries that have the index: what one lacks another may have.
func (f *Followed) Instance(ctx context.Context, index imgsrc.Desc, d digest.Digest) (imgsrc.Image, error) {
	for _, s := range f.having(index.Digest) {
		if img, err := s.Instance(ctx, index, d); !errors.Is(err, imgsrc.ErrNotFound) {
			return img, err
		}
	}
	return nil, fmt.Errorf("looking for image %s of index %s: %w", d, index.Digest, imgsrc.ErrNotFound)
}
