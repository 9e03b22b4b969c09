package registry

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/flight"
)

// Of what an index lists a listing has little of its own accord: a repository of a thousand tags would cost a request for each
// platform of each of them. The rest is asked for when somebody follows a platform's link (Ask), or wants all (AskAll).

const (
	// maxUnasked is how many images of one index are listed unasked.
	maxUnasked = 32
	// maxOfIndex is how many of one index are listed when all are asked for, and maxOfAll how many of all indexes.
	maxOfIndex = 1000
	maxOfAll   = 20_000
	// absentInLists is how long a listing does not ask again for what the registry lacked.
	absentInLists = 10 * time.Minute
	// maxLacking is how much of that is remembered.
	maxLacking = 10_000
)

// children is what a source has been asked for of what its indexes list.
type children struct {
	asked    map[digest.Digest]bool
	all      bool // have been asked for: a listing asks for those of indexes that come
	whole    bool // and the last listing has them
	failed   error
	failedAt time.Time
	lacking  map[childKey]lacking
}

// A childKey is a manifest that an index lists, and the index's repository.
type childKey struct {
	repo   string
	digest digest.Digest
}

// lacking is the answer that a child is not there.
type lacking struct {
	err error
	at  time.Time
}

var _ imgsrc.Asker = (*Source)(nil)

// noteLacking notes that a child is not in the registry, if that is what the error says.
func (s *Source) noteLacking(k childKey, err error) {
	if !errors.Is(err, imgsrc.ErrNotFound) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := &s.children; c.lacking == nil || len(c.lacking) >= maxLacking {
		c.lacking = map[childKey]lacking{}
	}
	s.children.lacking[k] = lacking{err, time.Now()}
}

// lacks is why a child was not there when it was asked for, if that is not longer ago than given; otherwise nil.
func (s *Source) lacks(k childKey, within time.Duration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l, ok := s.children.lacking[k]; ok && time.Since(l.at) < within {
		return l.err
	}
	return nil
}

// Lacks implements [imgsrc.Asker].
func (s *Source) Lacks(index imgsrc.Desc, d digest.Digest) bool {
	var repos []string
	s.mu.Lock()
	if s.state != nil && s.state.entries[index.Digest] != nil {
		repos = s.state.reposOf(index.Digest)
	}
	s.mu.Unlock()
	return !slices.ContainsFunc(repos, func(repo string) bool { return s.lacks(childKey{repo, d}, absentInLists) == nil })
}

// unaskedChildren are the entries of an index that are listed without being asked for: the one for the platform, and
// where the source is a single reference those of all other platforms, which are few requests once. Attestations, which
// call their platform unknown, are not among them.
func (s *Source) unaskedChildren(e *entry) []imgsrc.Child {
	var all []imgsrc.Child
	if c := imgsrc.Choose(e.children, s.platform); c != nil && c.Digest.Validate() == nil {
		all = append(all, *c)
	}
	if s.tag == "" && s.digest == "" {
		return all
	}
	for _, c := range e.children {
		if len(all) < maxUnasked && c.Platform != nil && c.Platform.OS != "unknown" && c.Digest.Validate() == nil {
			all = append(all, c)
		}
	}
	return all
}

// wantedChildren are the entries of an index that a listing is to have.
func (w *walk) wantedChildren(e *entry) []imgsrc.Child {
	s := w.source
	all := s.unaskedChildren(e)
	unasked := len(all)
	for _, c := range e.children {
		switch {
		case c.Digest.Validate() != nil, !s.isAsked(c.Digest):
		case slices.ContainsFunc(all[:unasked], func(o imgsrc.Child) bool { return o.Digest == c.Digest }):
		case len(all) >= maxOfIndex, w.askedFor >= maxOfAll:
			s.leavesOut("images", e.image.repo+"@"+e.image.desc.Digest.String(), len(all))
			return all
		default:
			w.askedFor++
			all = append(all, c)
		}
	}
	return all
}

// isAsked says whether a listing is to have an image because somebody has asked for it.
func (s *Source) isAsked(d digest.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.children.all || s.children.asked[d]
}

// Ask implements [imgsrc.Asker]. What one repository with the index lacks another may have.
func (s *Source) Ask(ctx context.Context, index imgsrc.Desc, d digest.Digest) error {
	var repos []string
	there := false
	s.mu.Lock()
	if st := s.state; st != nil && st.entries[index.Digest] != nil && slices.Contains(index.Lists, d) {
		repos = st.reposOf(index.Digest)
		there = st.entries[d] != nil
	}
	s.mu.Unlock()
	if there {
		return nil
	}
	err := imgsrc.ErrNotFound
	for _, repo := range repos {
		if err = s.askIn(ctx, repo, d); !errors.Is(err, imgsrc.ErrNotFound) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("asking %s for image %s of index %s: %w", s.client.host, d, index.Digest, err)
	}
	return nil
}

// reposOf are the repositories that have a manifest which is listed, as far as the listing knows.
func (st *state) reposOf(d digest.Digest) []string {
	repos := []string{st.entries[d].image.repo}
	for _, t := range st.refs {
		if t.Digest == d && !slices.Contains(repos, t.Repo) {
			repos = append(repos, t.Repo)
		}
	}
	return repos
}

func (s *Source) askIn(ctx context.Context, repo string, d digest.Digest) error {
	if err := s.lacks(childKey{repo, d}, absentTime); err != nil {
		return err
	}
	_, err := inTime(ctx, s, flightKey{"child of " + repo, d}, func(ctx context.Context) (bool, error) {
		return true, s.addChild(ctx, repo, d)
	})
	return err
}

// addChild asks for a manifest that an index lists, and for what a listing has of it, if it is an index.
func (s *Source) addChild(ctx context.Context, repo string, d digest.Digest) error {
	if _, err := s.manifest(ctx, repo, d); err != nil {
		s.noteLacking(childKey{repo, d}, err)
		return err
	}
	w := &walk{source: s, state: &state{entries: map[digest.Digest]*entry{}}}
	if err := w.read(ctx, []wantedManifest{{repo: repo, digest: d}}); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.children.asked == nil {
		s.children.asked = map[digest.Digest]bool{}
	}
	s.children.asked[d] = true
	delete(s.children.lacking, childKey{repo, d})
	s.extend(w.state.entries)
	return nil
}

// extend adds to the last listing what was asked for. The caller holds s.mu.
func (s *Source) extend(entries map[digest.Digest]*entry) {
	st := &state{entries: entries}
	if old := s.state; old != nil {
		st.at, st.refs, st.problems = old.at, old.refs, old.problems
		st.adopt(old)
	}
	s.state = st
	s.moved()
}

// adopt takes from another listing what this one lacks, or could not read: what could be read is the same in both.
func (st *state) adopt(other *state) {
	for d, e := range other.entries {
		if st.entries[d] == nil || isBetter(e, st.entries[d]) {
			st.entries[d] = e
		}
	}
}

// isBetter says whether a could be read, and b, of the same digest, could not.
func isBetter(a, b *entry) bool {
	return a != nil && a.image.desc.Damaged == nil && b.image.desc.Damaged != nil
}

// keepChildren takes into a new listing what was asked for while it was made, which the one before that had not, and forgets what
// no index lists any more. The caller holds s.mu.
func (s *Source) keepChildren(st, before *state) {
	if s.state != nil {
		for d, e := range st.entries {
			if isBetter(s.state.entries[d], e) { // an index that could not be read has lost all of its own
				st.entries[d] = s.state.entries[d]
			}
		}
	}
	listed := map[digest.Digest]bool{}
	for level := slices.Collect(maps.Values(st.entries)); len(level) > 0; {
		e := level[0]
		level = level[1:]
		for _, d := range e.image.desc.Lists {
			if listed[d] {
				continue
			}
			listed[d] = true
			if st.entries[d] == nil && s.state != nil && s.state.entries[d] != nil && (before == nil || before.entries[d] == nil) {
				st.entries[d] = s.state.entries[d]
				level = append(level, st.entries[d])
			}
		}
	}
	maps.DeleteFunc(s.children.asked, func(d digest.Digest, _ bool) bool { return !listed[d] })
}

// AskAll implements [imgsrc.Asker].
func (s *Source) AskAll(ctx context.Context) error {
	s.mu.Lock()
	c := s.children
	s.mu.Unlock()
	switch {
	case c.whole:
		return nil
	case c.failed != nil && time.Since(c.failedAt) < failedTime:
		return c.failed
	}
	_, err := flight.Do(ctx, s.flights, flightKey{"children", ""}, func(ctx context.Context) (bool, error) {
		err := s.addAll(ctx)
		if err != nil {
			err = fmt.Errorf("asking %s for what its indexes list: %w", s.Name(), err)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.children.failed, s.children.failedAt = err, time.Now()
		s.children.whole = err == nil
		return true, err
	})
	return err
}

// addAll reads what the indexes of the last listing list. What has come of it stays in the cache if the rest cannot be had.
func (s *Source) addAll(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	s.mu.Lock()
	old := s.state
	s.mu.Unlock()
	if old == nil {
		if _, err := s.List(ctx); err != nil {
			return err
		}
	}
	s.mu.Lock()
	s.children.all = true
	old = s.state
	s.mu.Unlock()
	w := &walk{source: s, old: old, state: &state{entries: map[digest.Digest]*entry{}}}
	var level []wantedManifest
	for _, t := range old.refs {
		level = append(level, wantedManifest{t.Repo, t.Digest, t.MediaType})
	}
	err := w.read(ctx, level)
	if err == nil {
		err = w.unknown
	}
	if err != nil {
		return err
	}
	for d, e := range w.state.entries {
		if e == nil || e.image.desc.Damaged == nil || errors.Is(e.image.desc.Damaged, imgsrc.ErrDamaged) {
			continue
		}
		if old.entries[d] == nil || isPassing(e.image.desc.Damaged) {
			return e.image.desc.Damaged // it cannot be told what that is
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.extend(w.state.entries)
	return nil
}

// isPassing says whether a request has failed in a way that the next one may not.
func isPassing(err error) bool {
	var f *failure
	return errors.As(err, &f) && (f.temporary || f.status == 0)
}

// having are the registries that have an image.
func (f *Followed) having(d digest.Digest) []*Source {
	return slices.DeleteFunc(f.sources(), func(s *Source) bool {
		m, _ := s.held(d)
		return m == nil
	})
}

// Ask asks the registries that have the index, one after the other: what one lacks another may have.
func (f *Followed) Ask(ctx context.Context, index imgsrc.Desc, d digest.Digest) error {
	for _, s := range f.having(index.Digest) {
		if err := s.Ask(ctx, index, d); !errors.Is(err, imgsrc.ErrNotFound) {
			return err
		}
	}
	return fmt.Errorf("asking for image %s of index %s: %w", d, index.Digest, imgsrc.ErrNotFound)
}

// AskAll implements [imgsrc.Asker]: there is what was asked for, and no more.
func (f *Followed) AskAll(ctx context.Context) error { return ctx.Err() }

// Lacks implements [imgsrc.Asker]: only what all of them lack.
func (f *Followed) Lacks(index imgsrc.Desc, d digest.Digest) bool {
	return !slices.ContainsFunc(f.having(index.Digest), func(s *Source) bool { return !s.Lacks(index, d) })
}
