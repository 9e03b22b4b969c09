package registry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"go.podman.io/image/v5/docker/reference"

	"github.com/imgfs/imgfs/imgsrc"
)

const (
	// absentTime is how long one that is not there is not asked for again.
	absentTime = 10 * time.Second
	// maxAbsent is how many of those are remembered.
	maxAbsent = 10_000
)

// Followed is the source of the images, of any registry, that somebody has asked for by name. Nobody is asked for
// anything before that.
type Followed struct {
	o Options

	mu      sync.Mutex
	hosts   []*Source
	absent  map[string]absence
	watches []func(*Source) // of those who watch: begins with another source
	closed  bool
}

var _ imgsrc.Source = (*Followed)(nil)

// An absence is the answer that a reference is not there.
type absence struct {
	err   error
	until time.Time
}

// NewFollowed returns the source; Options.Ref is not used.
func NewFollowed(o Options) *Followed {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	o.Asked = true
	return &Followed{o: o, absent: map[string]absence{}}
}

// Follow asks for a full reference and returns the id of its image, which is listed from then on. Errors: as with
// Source.Resolve; it takes ten seconds at most.
func (f *Followed) Follow(ctx context.Context, ref string) (id string, err error) {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return "", fmt.Errorf("%w: %q is no reference: %w", imgsrc.ErrInvalid, ref, err)
	}
	f.mu.Lock()
	known, ok := f.absent[named.String()]
	f.mu.Unlock()
	if ok && time.Now().Before(known.until) {
		return "", known.err
	}
	s, err := f.host(ctx, reference.Domain(named))
	if err != nil {
		return "", err
	}
	img, err := s.Resolve(ctx, named.String())
	if errors.Is(err, imgsrc.ErrNotFound) {
		f.mu.Lock()
		if len(f.absent) >= maxAbsent {
			clear(f.absent)
		}
		f.absent[named.String()] = absence{err, time.Now().Add(absentTime)}
		f.mu.Unlock()
	}
	if err != nil {
		return "", err
	}
	return img.Desc().ID, nil
}

// host returns the source for a registry, which is there from the first time that it is asked for.
func (f *Followed) host(ctx context.Context, host string) (*Source, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil, fmt.Errorf("following into %s: %w", host, imgsrc.ErrNotFound)
	}
	for _, s := range f.hosts {
		if s.Host() == host {
			return s, nil
		}
	}
	o := f.o
	o.Ref = host
	s, err := Open(ctx, o)
	if err != nil {
		return nil, err
	}
	f.hosts = append(f.hosts, s)
	for _, begin := range f.watches {
		begin(s)
	}
	return s, nil
}

func (f *Followed) sources() []*Source {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]*Source{}, f.hosts...)
}

// Name implements [imgsrc.Source].
func (f *Followed) Name() string { return "docker:" }

// List implements [imgsrc.Source]. A registry that does not answer is a problem of the listing.
func (f *Followed) List(ctx context.Context) (*imgsrc.Listing, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	all := &imgsrc.Listing{}
	for _, s := range f.sources() {
		l, err := s.List(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			all.Problems = append(all.Problems, err)
			continue
		}
		all.Images = append(all.Images, l.Images...)
		all.Problems = append(all.Problems, l.Problems...)
	}
	return all, nil
}

// Stamp implements [imgsrc.Source].
func (f *Followed) Stamp() imgsrc.Stamp {
	var b strings.Builder
	for _, s := range f.sources() {
		b.WriteString(s.Host() + " " + string(s.Stamp()) + " ")
	}
	return imgsrc.Stamp(b.String())
}

// Watch implements [imgsrc.Source]: it watches every registry from when it is first asked for.
func (f *Followed) Watch(ctx context.Context, changed func()) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	begin := func(s *Source) {
		wg.Go(func() {
			if err := s.Watch(ctx, changed); err != nil && ctx.Err() == nil {
				f.o.Log.Debug("watching registry", "source", s.Name(), "error", err)
			}
		})
	}
	f.mu.Lock()
	for _, s := range f.hosts {
		begin(s)
	}
	f.watches = append(f.watches, begin)
	at := len(f.watches) - 1
	f.mu.Unlock()
	<-ctx.Done()
	f.mu.Lock()
	f.watches[at] = func(*Source) {}
	f.mu.Unlock()
	return nil
}

// Fetched is how many bytes have come from all registries.
func (f *Followed) Fetched() int64 {
	var sum int64
	for _, s := range f.sources() {
		sum += s.Fetched()
	}
	return sum
}

// Close implements [imgsrc.Source].
func (f *Followed) Close() error {
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	var errs []error
	for _, s := range f.sources() {
		errs = append(errs, s.Close())
	}
	return errors.Join(errs...)
}
