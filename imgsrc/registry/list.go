package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/manifest"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/flight"
)

// Bounds of a listing. What is beyond them is still there for Resolve.
const (
	maxRepos    = 1000 // of a registry
	maxTags     = 1000 // of a repository that is the source
	maxRepoTags = 100  // of each repository, if a registry is the source
	maxImages   = 5000 // references in all
	maxDepth    = 4    // indexes in indexes
	lookTime    = 5 * time.Minute
	failedTime  = 10 * time.Second // how long a failure to list is the answer without asking again

	// A listing gives up when what it met weighs this much: three requests without an answer, or
	// some twenty answers of trouble.
	maxUnanswered = 21
	noAnswer      = 7
	badAnswer     = 1
)

// errLook is that a registry answers, and there is no end of it.
var errLook = &failure{text: fmt.Sprintf("it could not be asked for all that it has in %s", lookTime), condition: syscall.ETIMEDOUT}

// A state is one listing. It is not changed once it is made.
type state struct {
	at       time.Time
	refs     []tagged // with their digests, in the order of the listing
	entries  map[digest.Digest]*entry
	problems []error
}

// An entry is one manifest or index.
type entry struct {
	image    *image
	layers   []string       // their digests
	children []imgsrc.Child // an index's
}

// List returns the last listing while it is young, and makes a new one otherwise: it asks for the tags, and what each of
// them means (HEAD), and reads the manifests that are not in the cache. No config and no layer is read. The package's
// documentation says what is listed of an index.
func (s *Source) List(ctx context.Context) (*imgsrc.Listing, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("listing %s: %w", s.Name(), err)
	}
	s.mu.Lock()
	st, failed := s.state, s.failed
	fresh := st != nil && (s.offline || time.Since(st.at) < s.every)
	if failed != nil && time.Since(s.failedAt) > failedTime {
		failed = nil
	}
	s.mu.Unlock()
	if !fresh {
		if failed != nil {
			return nil, fmt.Errorf("listing %s: %w", s.Name(), failed)
		}
		var err error
		if st, err = flight.Do(ctx, s.flights, flightKey{"look", ""}, s.look); err != nil {
			return nil, fmt.Errorf("listing %s: %w", s.Name(), err)
		}
	}
	return s.listing(st), nil
}

// look makes a new listing, and keeps it.
func (s *Source) look(ctx context.Context) (*state, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, lookTime, errLook)
	defer cancel()
	s.looked.Store(time.Now().UnixNano())
	s.mu.Lock()
	old, asked := s.state, slices.Clone(s.asked)
	s.retags = nil
	s.mu.Unlock()
	st, err := s.newState(ctx, old, asked)
	if err != nil && errors.Is(context.Cause(ctx), errLook) {
		err = errLook
	}
	s.looked.Store(time.Now().UnixNano())
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed, s.failedAt = err, time.Now(); err != nil {
		return nil, err
	}
	for _, t := range s.asked { // meanwhile
		if !slices.ContainsFunc(asked, t.same) {
			st.refs = appendNew(st.refs, t)
			st.adopt(s.state)
		}
	}
	for _, change := range s.retags { // what was asked for may be from before
		st.refs = change.apply(st.refs)
		st.adopt(s.state)
	}
	s.keepChildren(st, old)
	changed := old == nil || !st.equal(s.state)
	s.state = st
	if changed {
		if old != nil {
			s.moved()
		}
		if !s.offline {
			s.docs.saveTags(s.listName(), st.refs)
		}
	}
	return st, nil
}

// equal says whether both list the same.
func (st *state) equal(o *state) bool {
	return slices.Equal(st.refs, o.refs) && maps.EqualFunc(st.entries, o.entries, func(a, b *entry) bool {
		return (a.image.desc.Damaged == nil) == (b.image.desc.Damaged == nil)
	})
}

func (s *Source) newState(ctx context.Context, old *state, asked []tagged) (*state, error) {
	st := &state{at: time.Now(), entries: map[digest.Digest]*entry{}}
	w := &walk{source: s, state: st, old: old}
	refs, err := w.references(ctx)
	if err != nil {
		return nil, err
	}
	for _, t := range asked {
		refs = appendNew(refs, t)
	}
	if err := w.resolve(ctx, refs); err != nil {
		return nil, err
	}
	level := make([]wantedManifest, 0, len(st.refs))
	for _, t := range st.refs {
		level = append(level, wantedManifest{t.Repo, t.Digest, t.MediaType})
	}
	if err := w.read(ctx, level); err != nil {
		return nil, err
	}
	st.problems = w.problems
	return st, nil
}

// typeOf is a manifest's media type: what it says, or else what its fields show. What the registry calls it is not kept
// with it, and would be another answer at the next mount.
func typeOf(b []byte) string {
	var own struct {
		MediaType string `json:"mediaType"`
	}
	if json.Unmarshal(b, &own) == nil && own.MediaType != "" {
		return own.MediaType
	}
	if guess := manifest.GuessMIMEType(b); guess != "" {
		return guess
	}
	return v1.MediaTypeImageManifest
}

// listing is a state in the form of imgsrc. It belongs to the caller.
func (s *Source) listing(st *state) *imgsrc.Listing {
	names, digests := map[digest.Digest][]string{}, map[digest.Digest][]string{}
	var order []digest.Digest
	seen := map[digest.Digest]bool{}
	add := func(d digest.Digest) {
		if !seen[d] && st.entries[d] != nil {
			seen[d] = true
			order = append(order, d)
		}
	}
	noted := map[string]bool{} // a reference has one digest
	note := func(list map[digest.Digest][]string, d digest.Digest, name string) {
		if !noted[name] {
			noted[name] = true
			list[d] = append(list[d], name)
		}
	}
	for _, t := range st.refs {
		add(t.Digest)
		name := s.client.host + "/" + t.Repo
		if t.Tag != "" {
			note(names, t.Digest, name+":"+t.Tag)
		}
		note(digests, t.Digest, name+"@"+t.Digest.String())
	}
	// What indexes list stands behind what has a name, and what somebody had to ask for behind what is listed in any case: no
	// other manifest comes to stand for an image because of it.
	for _, asked := range []bool{false, true} {
		for i := 0; i < len(order); i++ {
			e := st.entries[order[i]]
			children := e.children
			if !asked {
				children = s.unaskedChildren(e)
			}
			for _, c := range children {
				if st.entries[c.Digest] != nil {
					note(digests, c.Digest, s.client.host+"/"+e.image.repo+"@"+c.Digest.String())
					add(c.Digest)
				}
			}
		}
	}
	l := &imgsrc.Listing{Problems: slices.Clone(st.problems)}
	for _, d := range order {
		e := st.entries[d]
		l.Images = append(l.Images, imgsrc.Listed{Image: e.image, RemoteNames: names[d], RepoDigests: digests[d], Layers: e.layers, Asked: s.onlyAsked})
	}
	return l
}
