package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/imgfs/imgfs/imgsrc"
)

// A walk makes one listing.
type walk struct {
	source *Source
	state  *state
	old    *state // the last listing; nil if there is none

	mu         sync.Mutex
	problems   []error
	unanswered int
	askedFor   int   // children that are not listed unasked
	unknown    error // why it cannot be told of one of them whether it is there
}

func (w *walk) problem(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.problems = append(w.problems, err)
}

// answered counts the requests that got no answer, or none that says anything of what was asked for, and fails when they
// are too many: the registry is gone then, and each of a thousand tags would wait for its time to run out.
func (w *walk) answered(err error) error {
	var f *failure
	if err == nil || !errors.As(err, &f) || errors.Is(err, imgsrc.ErrDamaged) {
		return nil
	}
	weight := 0
	switch {
	case f.status == 0:
		weight = noAnswer
	case f.status == http.StatusTooManyRequests, f.status >= 500:
		weight = badAnswer
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.unanswered += weight; weight > 0 && w.unanswered >= maxUnanswered {
		return err
	}
	return nil
}

// references are those that the source is for, without their digests as yet.
func (w *walk) references(ctx context.Context) ([]tagged, error) {
	s := w.source
	switch {
	case s.onlyAsked && s.offline:
		refs, err := s.docs.loadTags(s.listName())
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return refs, err
	case s.onlyAsked:
		return nil, nil
	case s.offline:
		return s.docs.loadTags(s.listName())
	case s.tag != "" || s.digest != "":
		return []tagged{{Repo: s.repo, Tag: s.tag, Digest: s.digest}}, nil
	case s.repo != "":
		return w.tags(ctx, s.repo, maxTags)
	}
	repos, more, err := s.client.Catalog(ctx, maxRepos)
	if err != nil {
		err = fmt.Errorf("asking %s for the names of its repositories: %w", s.client.host, err)
		if !isRefusal(err) || s.client.Ping(ctx) != nil {
			return nil, err
		}
		// Most public registries tell nobody. What is asked for by name is there all the same.
		w.problem(err)
		return nil, nil
	}
	if more {
		s.leavesOut("repositories", s.client.host, maxRepos)
	}
	slices.Sort(repos)
	return w.allTags(ctx, repos)
}

// isRefusal says whether a registry has answered that it does not do this, or not for this user.
func isRefusal(err error) bool {
	return errors.Is(err, imgsrc.ErrDenied) || errors.Is(err, imgsrc.ErrNotFound) || errors.Is(err, imgsrc.ErrUnsupported)
}

// allTags asks for the tags of several repositories. One that cannot be asked is a problem of the listing.
func (w *walk) allTags(ctx context.Context, repos []string) ([]tagged, error) {
	lists := make([][]tagged, len(repos))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for i, repo := range repos {
		g.Go(func() error {
			var err error
			if lists[i], err = w.tags(gctx, repo, maxRepoTags); err != nil && gctx.Err() == nil {
				w.problem(fmt.Errorf("listing the tags of %s/%s: %w", w.source.client.host, repo, err))
				lists[i] = w.known(repo)
				return w.answered(err)
			}
			return gctx.Err()
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	all := slices.Concat(lists...)
	if len(all) > maxImages {
		w.source.leavesOut("tags", w.source.client.host, maxImages)
		all = all[:maxImages]
	}
	return all, nil
}

// known are the tags that a repository had in the last listing.
func (w *walk) known(repo string) []tagged {
	if w.old == nil {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(w.old.refs), func(t tagged) bool { return t.Repo != repo || t.Tag == "" })
}

func (w *walk) tags(ctx context.Context, repo string, limit int) ([]tagged, error) {
	tags, more, err := w.source.client.Tags(ctx, repo, limit)
	if err != nil {
		return nil, err
	}
	if more {
		w.source.leavesOut("tags", w.source.client.host+"/"+repo, limit)
	}
	refs := make([]tagged, len(tags))
	for i, tag := range tags {
		refs[i] = tagged{Repo: repo, Tag: tag}
	}
	return refs, nil
}

// resolve finds out what the references mean. One that cannot be asked about keeps its last meaning, if there was one.
func (w *walk) resolve(ctx context.Context, refs []tagged) error {
	s := w.source
	if s.offline {
		w.state.refs = refs
		return nil
	}
	found := make([]tagged, len(refs))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(2 * parallel)
	for i, t := range refs {
		g.Go(func() error {
			r, err := s.resolve(gctx, t)
			switch {
			case gctx.Err() != nil:
				return gctx.Err()
			case err == nil:
				found[i] = r
				return nil
			case errors.Is(err, imgsrc.ErrNotFound): // removed since the tags were listed
				w.problem(err)
				return nil
			}
			w.problem(err)
			if w.old != nil {
				if k := slices.IndexFunc(w.old.refs, t.same); k >= 0 {
					found[i] = w.old.refs[k]
				}
			}
			return w.answered(err)
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	w.state.refs = slices.DeleteFunc(found, func(t tagged) bool { return t.Digest == "" })
	if len(w.state.refs) > 0 || len(refs) == 0 {
		return nil
	}
	if more := len(w.problems) - 1; more > 0 {
		return fmt.Errorf("%w (and %d more)", w.problems[0], more)
	}
	return w.problems[0]
}

// resolve returns the reference with its digest: what a tag means now.
func (s *Source) resolve(ctx context.Context, t tagged) (tagged, error) {
	ref := t.Tag
	if ref == "" {
		ref = t.Digest.String()
		if s.docs.has(t.Digest) {
			return t, nil
		}
	}
	doc, err := s.client.Head(ctx, t.Repo, ref)
	if err != nil {
		return t, err
	}
	if t.Tag != "" {
		t.Digest = doc.Digest
	}
	t.MediaType = doc.MediaType
	if doc.Bytes != nil {
		s.docs.put(t.Digest, doc.Bytes)
	}
	return t, nil
}

// A wantedManifest is one that a listing needs.
type wantedManifest struct {
	repo      string
	digest    digest.Digest
	mediaType string // by the index that lists it, or the registry; empty: unknown
}

// read reads manifests, and those that belong to them: of an index the one for the platform. Each is met once, which
// also ends cycles.
func (w *walk) read(ctx context.Context, level []wantedManifest) error {
	for depth := 0; len(level) > 0 && depth <= maxDepth; depth++ {
		g, gctx := errgroup.WithContext(ctx)
		g.SetLimit(parallel)
		var fresh []wantedManifest
		elsewhere := map[digest.Digest][]wantedManifest{} // the same, by the index of another repository
		for _, m := range level {
			if depth > 0 && w.source.lacks(childKey{m.repo, m.digest}, absentInLists) != nil {
				continue
			}
			if e, ok := w.state.entries[m.digest]; !ok {
				w.state.entries[m.digest] = nil
				fresh = append(fresh, m)
			} else if e == nil {
				elsewhere[m.digest] = append(elsewhere[m.digest], m)
			}
		}
		entries := make([]*entry, len(fresh))
		for i, m := range fresh {
			if w.old != nil {
				if e := w.old.entries[m.digest]; e != nil && e.image.desc.Damaged == nil {
					entries[i] = e.in(append(elsewhere[m.digest], m))
					continue
				}
			}
			g.Go(func() (err error) {
				entries[i], err = w.source.readEntry(gctx, m)
				if gctx.Err() != nil {
					return gctx.Err()
				}
				if err != nil {
					return w.answered(err)
				}
				return nil
			})
		}
		if err := g.Wait(); err != nil {
			return err
		}
		level = nil
		for i, m := range fresh {
			e := entries[i]
			// A registry need not have all that an index lists, nor the cache; what was asked for by name it should have.
			if bad := e.image.desc.Damaged; depth > 0 && (errors.Is(bad, imgsrc.ErrNotFound) || errors.Is(bad, errOffline)) {
				delete(w.state.entries, m.digest)
				w.source.noteLacking(childKey{m.repo, m.digest}, bad)
				if !errors.Is(bad, imgsrc.ErrNotFound) {
					w.unknown = bad
				}
				level = append(level, elsewhere[m.digest]...)
				continue
			}
			w.state.entries[m.digest] = e
			for _, c := range w.wantedChildren(e) {
				for _, in := range append([]wantedManifest{m}, elsewhere[m.digest]...) {
					level = append(level, wantedManifest{in.repo, c.Digest, c.MediaType})
				}
			}
		}
	}
	return nil
}

// in returns the entry, in one of the repositories that are known to have it. The one that it was in may have lost it since.
func (e *entry) in(wanted []wantedManifest) *entry {
	if slices.ContainsFunc(wanted, func(m wantedManifest) bool { return m.repo == e.image.repo }) {
		return e
	}
	img := &image{source: e.image.source, repo: wanted[len(wanted)-1].repo, desc: e.image.desc, configSize: e.image.configSize}
	img.layers.Store(e.image.layers.Load())
	img.whole.Store(e.image.whole.Load())
	return &entry{image: img, layers: e.layers, children: e.children}
}

// readEntry reads a manifest. There is an entry also if that fails: it is damaged then. The error is only for counting.
func (s *Source) readEntry(ctx context.Context, m wantedManifest) (*entry, error) {
	e := &entry{image: &image{source: s, repo: m.repo, desc: imgsrc.Desc{
		ID: m.digest.Encoded()[:64], Digest: m.digest, MediaType: m.mediaType,
	}}}
	doc, err := s.manifest(ctx, m.repo, m.digest)
	if err != nil {
		e.image.desc.Damaged = fmt.Errorf("reading manifest %s: %w", m.digest, err)
		return e, err
	}
	desc := &e.image.desc
	desc.Size, desc.MediaType = doc.Size, typeOf(doc.Bytes)
	return e, e.parse(ctx, doc.Bytes)
}

// parse takes from a manifest's bytes what the listing says of it.
func (e *entry) parse(ctx context.Context, b []byte) error {
	desc := &e.image.desc
	facts, err := imgsrc.Load(ctx, manifestOnly{*desc, b})
	if err != nil {
		return err
	}
	var own struct {
		Config struct {
			Digest digest.Digest `json:"digest"`
			Size   *int64        `json:"size"`
		} `json:"config"`
	}
	if desc.Damaged = facts.ManifestErr; desc.Damaged == nil {
		desc.Damaged = json.Unmarshal(b, &own)
	}
	if desc.Damaged != nil {
		return nil //nolint:nilerr // it is listed as damaged
	}
	desc.Subject = facts.Subject
	for _, c := range facts.Children {
		desc.Lists = append(desc.Lists, c.Digest)
	}
	for _, l := range facts.Layers {
		e.layers = append(e.layers, string(l.Digest))
	}
	e.image.layers.Store(&facts.Layers)
	e.children = facts.Children
	if d := own.Config.Digest; d != "" && facts.Kind != imgsrc.KindIndex {
		if err := d.Validate(); err != nil {
			desc.Damaged = fmt.Errorf("reading manifest %s: config %q: %w: %w", desc.Digest, d, imgsrc.ErrDamaged, err)
			return nil
		}
		desc.Config, e.image.configSize = d, own.Config.Size
		if facts.Kind == imgsrc.KindImage {
			desc.ID = d.Encoded()[:64]
		}
	}
	return nil
}

// manifestOnly is an image of which only the manifest is looked at.
type manifestOnly struct {
	desc  imgsrc.Desc
	bytes []byte
}

func (m manifestOnly) Desc() imgsrc.Desc                        { return m.desc }
func (m manifestOnly) Manifest(context.Context) ([]byte, error) { return m.bytes, nil }
func (m manifestOnly) Config(context.Context) ([]byte, error)   { return nil, imgsrc.ErrAbsent }
func (m manifestOnly) Blob(context.Context, digest.Digest) (imgsrc.Content, error) {
	return nil, imgsrc.ErrAbsent
}

func (m manifestOnly) Diff(context.Context, int) (imgsrc.Content, error) {
	return nil, imgsrc.ErrAbsent
}

func (m manifestOnly) Files(context.Context, int) (imgsrc.Files, error) {
	return nil, imgsrc.ErrAbsent
}
