package fs

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/imgfs/imgfs/imgsrc"
)

// Some files say what an image is to the others in the catalog. They are computed when somebody asks, once for each state
// of the catalog; their time moves only when they say something else than they last said.

// derivedBytes is how much memory such files may take together.
const derivedBytes = 4 << 20

// standing is what such a file is computed from.
type standing struct {
	e     *imgsrc.Entry
	snap  *imgsrc.Snapshot
	state *state
	facts *imgsrc.Facts
	img   *image
	r     *rendered

	passing bool // what was found may be repaired: it is not to be kept
}

type derivedKey struct{ slot, row uint32 }

// derivedFile is what a file says in one state of the catalog.
type derivedFile struct {
	generation uint64
	entry      *imgsrc.Entry
	text       []byte
	err        error
	at         time.Time
}

// derivedState is what a file said when it was last looked at.
type derivedState struct {
	sum uint64 // the beginning of its SHA-256: there is one for each file of each image that was looked at
	at  time.Time
}

// derive returns what a derived file says. The error is in it too, so that an absent file is not computed again.
func (img *image) derive(ctx context.Context, r *rendered, row *row) (derivedFile, error) {
	e, err := img.current()
	if err != nil {
		return derivedFile{}, err
	}
	s := img.f.state.Load()
	key := derivedKey{img.slot, row.id}
	passing := img.isRemote() || r.damaged || r.sketched // what has been fetched changes meanwhile
	if d, ok := img.f.derived.get(key); ok && d.generation == s.snap.Generation && d.entry == e && !passing {
		return d, d.err
	}
	st := &standing{e: e, snap: s.snap, state: s, facts: r.facts, img: img, r: r}
	text, err := row.derived(ctx, st)
	err = r.ofFacts(err)
	if err != nil && (ctx.Err() != nil || !errors.Is(err, imgsrc.ErrAbsent)) {
		return derivedFile{}, err
	}
	d := derivedFile{generation: s.snap.Generation, entry: e, text: text, err: err, at: r.created}
	if row.isLive(r) {
		first := img.namesTime()
		if row.dated {
			first = r.created
		}
		d.at = img.changedAt(row.id, sha256.Sum256(text), s, first)
	}
	if !passing && !st.passing {
		img.f.derived.put(key, d, int64(len(text))+128)
	}
	return d, err
}

// isLive says whether what the file says may change: info.json does so only for an index.
func (row *row) isLive(r *rendered) bool {
	return row.derived != nil && (row.name != "info.json" || r.facts.Kind == imgsrc.KindIndex)
}

// changedAt is when what has this number last said something else than this sum stands for; first, if it has not.
func (img *image) changedAt(id uint32, text [sha256.Size]byte, s *state, first time.Time) time.Time {
	sum := binary.LittleEndian.Uint64(text[:])
	img.mu.Lock()
	defer img.mu.Unlock()
	was, ok := img.derived[id]
	switch {
	case !ok:
		was.at = first
	case was.sum != sum:
		was.at = later(was.at, s.at)
	}
	was.sum = sum
	img.derived[id] = was
	return was.at
}

func parentText(ctx context.Context, s *standing) ([]byte, error) {
	if err := s.r.noFacts(); err != nil {
		return nil, err
	}
	id, err := s.parent(ctx)
	if err == nil && id == "" {
		err = imgsrc.ErrAbsent
	}
	return []byte(id + "\n"), err
}

func childrenText(ctx context.Context, s *standing) ([]byte, error) {
	if s.facts.Kind != imgsrc.KindImage {
		return nil, imgsrc.ErrAbsent
	}
	if err := s.r.noFacts(); err != nil {
		return nil, err
	}
	children, err := s.children(ctx)
	if err != nil {
		return nil, err
	}
	if len(children) == 0 {
		return nil, imgsrc.ErrAbsent
	}
	ids := make([]string, 0, len(children))
	for _, c := range children {
		ids = append(ids, c.ID)
	}
	return linesOf(ids), nil
}

func inspectJSON(ctx context.Context, s *standing) ([]byte, error) {
	parent, err := s.parent(ctx)
	if err != nil {
		return nil, err
	}
	first := s.e.First()
	return imgsrc.InspectJSON(s.facts, imgsrc.Standing{
		Names:        slices.Concat(s.e.Names, s.e.RemoteNames),
		RepoDigests:  gather(s.e, func(h imgsrc.Held) []string { return h.RepoDigests }),
		NamesHistory: first.NamesHistory,
		Digest:       first.RecordedDigest,
		Parent:       parent,
		Unpacked:     first.Unpacked,
	})
}

func infoJSON(_ context.Context, s *standing) ([]byte, error) {
	return imgsrc.InfoJSON(s.facts, func(d digest.Digest) (id string, present *bool) {
		e := s.snap.ByDigest(d)
		if e == nil && mayHave(s.e, d) {
			return "", nil
		}
		is := e != nil
		if is {
			id = e.ID
		}
		return id, &is
	})
}

// liveJSON says from which sources an image is, and how many images have each of its layers.
func liveJSON(ctx context.Context, s *standing) ([]byte, error) {
	type source struct {
		Source string        `json:"source"`
		Digest digest.Digest `json:"digest,omitempty"`
		Names  []string      `json:"names,omitempty"`
		// Nearest says that this is the one whose layers are read.
		Nearest bool `json:"nearest,omitempty"`
		// Fetched is how many bytes of the image have come over the network since it was mounted.
		Fetched *int64 `json:"bytesFetched,omitempty"`
	}
	var live struct {
		Sources      []source `json:"sources"`
		SharedLayers []int    `json:"imagesWithLayer,omitempty"`
		LeftOutOfOCI string   `json:"leftOutOfOCI,omitempty"` // why it is not in oci/
	}
	near := heldBy{}
	if s.facts.Kind != imgsrc.KindIndex {
		near = s.img.near
	}
	for _, h := range s.e.Held {
		of := heldBy{h.Source, h.Desc().Digest}
		from := source{Source: h.Source.Name(), Digest: of.digest, Names: slices.Concat(h.Names, h.RemoteNames), Nearest: of == near}
		if far, ok := h.Image.(interface{ Fetched() int64 }); ok {
			n := far.Fetched()
			from.Fetched = &n
		}
		live.Sources = append(live.Sources, from)
	}
	live.SharedLayers = s.snap.LayerUsers(s.e)
	if why := s.img.f.oci.whyNot(ctx, s); why != nil {
		live.LeftOutOfOCI = why.Error()
		s.passing = errors.Is(why, imgsrc.ErrDamaged)
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(live); err != nil {
		return nil, fmt.Errorf("encoding what is known of image %s: %w", s.e.ID, err)
	}
	return []byte(b.String()), nil
}
