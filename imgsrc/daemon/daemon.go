package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"regexp"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/moby/moby/client"
	"go.podman.io/image/v5/docker/reference"

	"github.com/imgfs/imgfs/imgsrc"
	"github.com/imgfs/imgfs/imgsrc/flight"
	"github.com/imgfs/imgfs/imgsrc/layer"
)

// Options are what Open needs.
type Options struct {
	// Ref restricts the listing to the image that the engine knows by this name or id. Empty: all.
	Ref string
	// Cache holds layers; it stays open when the source is closed. Nil: the source has one of its own, which keeps
	// nothing in a directory.
	Cache *layer.Cache
	// CacheDir is where manifests and configs are kept, below docker-daemon/, and where an image is put while it is taken
	// apart. Empty: they are kept in memory, and images are put where temporary files go.
	CacheDir string
	// Log gets what goes wrong beside reading. Nil discards it.
	Log *slog.Logger
	// Host is the engine's address, unix:///PATH or tcp://HOST:PORT. Empty: DOCKER_HOST, or the default socket.
	Host string
}

// A Source is the images of one engine.
type Source struct {
	ref      string
	engine   *engine
	cache    *layer.Cache
	ownCache bool
	log      *slog.Logger
	records  *records
	work     *flight.Group
	saving   chan struct{} // one for each image that may be saved at a time
	stall    time.Duration // how long a save may send nothing
	quiet    time.Duration // how long it may do so before the engine is asked whether it is there

	turn     chan struct{} // one lists at a time
	tagging  sync.RWMutex  // a listing does not fall between the steps of a change of names
	stamp    atomic.Int64
	listedAs atomic.Pointer[fingerprint] // what the last listing was made from

	unsaved sync.Map // the images of which the log has it that they cannot be saved, by id: whether it is because of what came

	mu     sync.Mutex
	known  map[string]*image       // from the last List, by id
	spools map[string]*spool       // images that are being taken apart, by id
	failed flight.Failures[string] // to save an image, by its id
	pinned []*pin                  // the youngest last
	recent *recent[*document]      // by id
	closed bool
}

var _ imgsrc.Tagger = (*Source)(nil)

// maxSaves is how many images are saved at a time. The engine writes each of them to its own disk first.
const maxSaves = 2

// Open connects to an engine. Errors: imgsrc.ErrNoSource if none answers or it has no image of the name that is asked
// for, with fs.ErrPermission if it may not be asked.
func Open(ctx context.Context, o Options) (*Source, error) {
	s, err := open(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("docker-daemon: %w", err)
	}
	return s, nil
}

func open(ctx context.Context, o Options) (*Source, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Ref != "" && !IsRef(o.Ref) {
		return nil, noSource(fmt.Sprintf("%q is neither an image's name nor an id", o.Ref), imgsrc.ErrInvalid)
	}
	e, err := newEngine(o.Host)
	if err != nil {
		return nil, err
	}
	s := &Source{
		ref: o.Ref, engine: e, cache: o.Cache, log: o.Log,
		records: openRecords(o.CacheDir, o.Log),
		work:    flight.New("docker-daemon", o.Log),
		saving:  make(chan struct{}, maxSaves),
		stall:   stallTime,
		quiet:   quietTime,
		turn:    make(chan struct{}, 1),
		spools:  map[string]*spool{},
		recent:  newRecent[*document](recentDocuments),
	}
	if s.cache == nil {
		s.ownCache = true
		s.cache, err = layer.OpenCache("", 0, o.Log)
	}
	if err == nil {
		err = s.check(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

var idPattern = regexp.MustCompile(`^(?:sha256:)?[0-9a-f]{64}$`)

// IsRef says whether ref can be a name or an id. Anything else must not get into the path of a request.
func IsRef(ref string) bool {
	if idPattern.MatchString(ref) {
		return true
	}
	_, err := reference.ParseNormalizedNamed(ref)
	return err == nil
}

// check fails if there is no engine, or not the image.
func (s *Source) check(ctx context.Context) error {
	err := s.ping(ctx)
	switch {
	case err != nil && ctx.Err() != nil:
		return err
	case err != nil:
		return noSource(err.Error(), err)
	case s.ref == "":
		return nil
	}
	_, err = s.inspect(ctx, s.ref)
	if errors.Is(err, imgsrc.ErrNotFound) {
		return noSource(fmt.Sprintf("the engine at %s has no image %q: docker images lists what it has", s.engine.host, s.ref), err)
	}
	return err
}

// ping asks the engine whether it is there.
func (s *Source) ping(ctx context.Context) error {
	_, err := ask(ctx, s.engine, func(ctx context.Context) (client.PingResult, error) {
		return s.engine.api.Ping(ctx, client.PingOptions{NegotiateAPIVersion: true})
	})
	return err
}

// Name returns docker-daemon: or docker-daemon:REF.
func (s *Source) Name() string { return "docker-daemon:" + s.ref }

// Stamp moves when this source has changed names, or a watch has seen a change. Of anything else it knows nothing.
func (s *Source) Stamp() imgsrc.Stamp { return imgsrc.Stamp(strconv.FormatInt(s.stamp.Load(), 10)) }

// Close stops the saves that are under way and lets go of the layers. Those that are in the cache stay readable.
func (s *Source) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.work.Close()
	s.unpin(0)
	err := errors.Join(s.engine.api.Close(), s.records.close())
	if s.ownCache && s.cache != nil {
		err = errors.Join(err, s.cache.Close())
	}
	return err
}

// errClosed is what reading fails with after Close.
var errClosed = fmt.Errorf("docker-daemon: %w", fs.ErrClosed)
