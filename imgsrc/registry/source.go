package registry

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/docker/reference"
	"golang.org/x/sync/semaphore"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/flight"
	"github.com/imgfs/imgfs/imgsrc/layer"
)

// A Source is an image, a repository or a whole registry.
type Source struct {
	client    *Client
	repo      string // empty: all of the registry
	tag       string // empty: all of the repository, unless there is a digest
	digest    digest.Digest
	cache     *layer.Cache
	onlyAsked bool // lists nothing else than what was asked for
	offline   bool
	platform  imgsrc.Platform
	every     time.Duration // tags are asked about no more often
	log       *slog.Logger
	fetching  Fetching // nil: see Options

	flights  *flight.Group
	failures flight.Failures[any] // of inTime, by its keys
	docs     *documents
	blobs    *blobs

	generation atomic.Uint64 // counts the changes of the listing
	wanted     atomic.Int64  // when somebody last looked at the stamp, in nanoseconds since 1970
	looked     atomic.Int64  // when the registry was last asked what there is

	mu       sync.Mutex
	state    *state // the last listing; nil: none yet
	failed   error  // why the last attempt to list failed; nil: it did not
	failedAt time.Time
	asked    []tagged // by Resolve, beyond what the source is for
	retags   []retag  // by Tag, since the last attempt to list began
	watchers map[chan struct{}]bool
	children children

	fetchedAll atomic.Int64
	fetchedMu  sync.Mutex
	fetched    map[digest.Digest]*atomic.Int64

	// Layers that are read by their tables of contents, the parts of blobs that came for that, and their chunks.
	lazyMu    sync.Mutex
	lazies    map[lazyKey]*lazy
	parts     map[digest.Digest]*ranges
	tocs      chan struct{}
	unpacking *semaphore.Weighted
	unpacked  *unpackedChunks
	told      partsTold
	spoilt    sync.Map // of digest.Digest to spoilt

	foreign sync.Map // of hasForeign
	warned  sync.Map // what was left out of a listing, and said

	lastFacts atomic.Pointer[imgsrc.Facts] // of the image whose layers were opened last
}

var _ imgsrc.Source = (*Source)(nil)

// lookEvery is how often the registry is asked whether a tag has moved, at most.
const lookEvery = time.Minute

// Open opens a source, and asks the registry whether it is there. Errors: imgsrc.ErrInvalid if Ref is none;
// imgsrc.ErrNoSource if the registry has no such image or repository; imgsrc.ErrDenied; what the network says; offline,
// imgsrc.ErrNoSource if nothing is kept of it.
func Open(ctx context.Context, o Options) (*Source, error) {
	s, err := newSource(o)
	if err != nil {
		return nil, fmt.Errorf("opening a registry: %w", err) // without what was typed: it may have a password in it
	}
	if err := s.check(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("opening %s: %w", s.Name(), err), s.Close())
	}
	return s, nil
}

func newSource(o Options) (*Source, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Platform.OS == "" {
		o.Platform = imgsrc.HostPlatform()
	}
	o.test = o.test.complete()
	s := &Source{
		cache: o.Cache, onlyAsked: o.Asked, offline: o.Offline, platform: o.Platform, every: o.test.every, log: o.Log, fetching: o.Fetching,
		watchers: map[chan struct{}]bool{}, fetched: map[digest.Digest]*atomic.Int64{},
		lazies: map[lazyKey]*lazy{}, parts: map[digest.Digest]*ranges{}, tocs: make(chan struct{}, parallelTOCs),
		unpacking: semaphore.NewWeighted(unpackBytes), unpacked: newUnpacked(), told: partsTold{fetching: o.Fetching},
	}
	host, err := s.parse(o.Ref)
	if err != nil {
		return nil, err
	}
	s.client = newClient(host, o, s.count)
	s.flights = flight.New("registry", o.Log)
	s.docs = openDocuments(o.CacheDir, o.Log)
	s.blobs = newBlobs(s, o.CacheDir)
	return s, nil
}

func invalid(format string, args ...any) error {
	return imgsrc.Of(imgsrc.ErrInvalid, fmt.Errorf(format, args...))
}

// CheckRef says whether HOST[/REPO[:TAG|@DIGEST]] is written as it has to be. Error: imgsrc.ErrInvalid.
func CheckRef(ref string) error {
	_, err := new(Source).parse(ref)
	return err
}

// parse takes HOST[/REPO[:TAG|@DIGEST]] apart.
func (s *Source) parse(ref string) (host string, err error) {
	host, rest, below := strings.Cut(ref, "/")
	switch {
	case strings.Contains(host, "@"):
		return "", invalid("credentials do not belong into a reference: log in with `podman login`")
	case !strings.ContainsAny(host, ".:") && host != "localhost":
		return "", invalid("%q is no registry: write its host first, as in docker.io/library/nginx", host)
	case !below:
		rest = "x" // any name will do
	}
	named, err := reference.ParseNormalizedNamed(host + "/" + rest)
	if err != nil {
		return "", invalid("docker://%s: %w", ref, err)
	}
	if !below {
		return reference.Domain(named), nil
	}
	s.repo = reference.Path(named)
	if t, ok := named.(reference.Tagged); ok {
		s.tag = t.Tag()
	}
	if d, ok := named.(reference.Digested); ok {
		s.digest = d.Digest()
	}
	if s.tag != "" && s.digest != "" {
		return "", invalid("%s has both a tag and a digest", named)
	}
	return reference.Domain(named), nil
}

// check fails if what the source is for is not there.
func (s *Source) check(ctx context.Context) error {
	if s.onlyAsked {
		return nil
	}
	if s.offline {
		if _, err := s.docs.loadTags(s.listName()); err != nil {
			return fmt.Errorf("%w: offline, and it was never listed with this cache", imgsrc.ErrNoSource)
		}
		return nil
	}
	_, err := flight.Do(ctx, s.flights, flightKey{"check", ""}, func(ctx context.Context) (bool, error) { return true, s.ask(ctx) })
	if errors.Is(err, imgsrc.ErrNotFound) {
		return fmt.Errorf("%w: %w", imgsrc.ErrNoSource, err)
	}
	return err
}

func (s *Source) ask(ctx context.Context) error {
	switch {
	case s.repo == "":
		return s.client.Ping(ctx)
	case s.tag == "" && s.digest == "":
		_, _, err := s.client.Tags(ctx, s.repo, 1)
		return err
	}
	_, err := s.resolve(ctx, tagged{Repo: s.repo, Tag: s.tag, Digest: s.digest})
	return err
}

// Name returns docker://HOST[/REPO[:TAG|@DIGEST]].
func (s *Source) Name() string {
	name := "docker://" + s.client.host
	if s.repo != "" {
		name += "/" + s.repo
	}
	if s.tag != "" {
		name += ":" + s.tag
	}
	if s.digest != "" {
		name += "@" + s.digest.String()
	}
	return name
}

// listName is the name under which the listing is kept.
func (s *Source) listName() string {
	if s.onlyAsked {
		return s.Name() + " as far as asked for"
	}
	return s.Name()
}

// Host is the registry's, as in references.
func (s *Source) Host() string { return s.client.host }

// Stamp counts the changes that were noticed. Looking at it is what makes the registry be asked again, in the background
// and at most once a minute: while nobody looks, nobody is asked.
func (s *Source) Stamp() imgsrc.Stamp {
	now := time.Now()
	s.wanted.Store(now.UnixNano())
	if s.isDue(now) {
		s.flights.Start(flightKey{"look", ""}, s.lookAgain)
	}
	return imgsrc.Stamp(strconv.FormatUint(s.generation.Load(), 10))
}

// isDue says whether the last listing is old enough for another. Before the first one nothing is: List makes it.
func (s *Source) isDue(now time.Time) bool {
	last := s.looked.Load()
	return !s.offline && last != 0 && now.Sub(time.Unix(0, last)) >= s.every
}

func (s *Source) lookAgain(ctx context.Context) (any, error) {
	st, err := s.look(ctx)
	if err != nil && ctx.Err() == nil {
		s.log.Warn("looking for tags that have moved", "source", s.Name(), "error", err)
	}
	return st, err
}

// idleTime is how long after the last look at the stamp a watch goes on asking the registry.
const idleTime = 10 * time.Minute

// Watch asks the registry once a minute while the stamp is looked at now and then, and calls changed when something is
// different.
func (s *Source) Watch(ctx context.Context, changed func()) error {
	told := make(chan struct{}, 1)
	s.mu.Lock()
	s.watchers[told] = true
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.watchers, told)
	}()
	tick := time.NewTicker(s.every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.flights.Done():
			return fmt.Errorf("watching %s: %w", s.Name(), fs.ErrClosed)
		case <-told:
			changed()
		case now := <-tick.C:
			if s.isDue(now) && now.Sub(time.Unix(0, s.wanted.Load())) < idleTime {
				s.flights.Start(flightKey{"look", ""}, s.lookAgain)
			}
		}
	}
}

// moved counts a change of the listing, and tells those who watch. The caller holds s.mu.
func (s *Source) moved() {
	s.generation.Add(1)
	for w := range s.watchers {
		select {
		case w <- struct{}{}:
		default: // it has not yet taken notice of the last one
		}
	}
}

// Close stops what is under way, and closes all files. Contents that are open fail with fs.ErrClosed.
func (s *Source) Close() error {
	s.flights.Close()
	s.unpacked.close()
	s.lazyMu.Lock()
	for d, r := range s.parts {
		delete(s.parts, d)
		r.close()
	}
	s.lazyMu.Unlock()
	s.told.close()
	s.blobs.close()
	s.client.Close()
	return s.docs.close()
}

// count notes bytes that have come in from the network.
func (s *Source) count(d digest.Digest, n int) {
	if n <= 0 {
		return
	}
	s.fetchedAll.Add(int64(n))
	s.fetchedMu.Lock()
	c := s.fetched[d]
	if c == nil {
		c = &atomic.Int64{}
		s.fetched[d] = c
	}
	s.fetchedMu.Unlock()
	c.Add(int64(n))
}

func (s *Source) fetchedOf(d digest.Digest) int64 {
	s.fetchedMu.Lock()
	defer s.fetchedMu.Unlock()
	if c := s.fetched[d]; c != nil {
		return c.Load()
	}
	return 0
}

// A flightKey is work of one kind, on one thing.
type flightKey struct {
	work string
	on   digest.Digest
}

// Fetched is how many bytes of manifests, configs and layers have come from the registry since the source was opened.
func (s *Source) Fetched() int64 { return s.fetchedAll.Load() }

// tagged is a reference and what it meant.
type tagged struct {
	Repo   string        `json:"repo"`
	Tag    string        `json:"tag,omitempty"` // empty: by digest only
	Digest digest.Digest `json:"digest"`        // empty: not known yet
	// MediaType is what the registry calls it: all that is known of a manifest that cannot be read. Empty: unknown.
	MediaType string `json:"mediaType,omitempty"`
}

func (t tagged) valid() bool {
	return t.Digest.Validate() == nil && filepath.IsLocal(t.Repo)
}

func (t tagged) same(o tagged) bool {
	return t.Repo == o.Repo && t.Tag == o.Tag && (t.Tag != "" || t.Digest == o.Digest)
}

func appendNew(list []tagged, t tagged) []tagged {
	if slices.ContainsFunc(list, t.same) {
		return list
	}
	return append(list, t)
}

// leavesOut says in the log, once, that a listing is cut.
func (s *Source) leavesOut(what, of string, listed int) {
	if _, said := s.warned.LoadOrStore(what+of, true); !said {
		s.log.Warn("listing a registry: leaving out the rest of its "+what, "source", s.Name(), "of", of, "listed", listed)
	}
}
